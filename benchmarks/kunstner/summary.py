"""The table of tuned methods: settings, losses, and what rounding does to them."""

from __future__ import annotations

import math
from typing import NamedTuple

from benchmarks.kunstner.tuning import CHAOTIC, Grid, Run
from natgrad.compare.tables import MISSING, Column, Table, figure


class Line(NamedTuple):
    """A method on a data set.

    Attributes:
        data: the set's name.
        grid: the tuned method.
    """

    data: str
    grid: Grid


def _power(value: float) -> str:
    return MISSING if math.isnan(value) else f"10^{math.log10(value):.4g}"


def _loss(run: Run | None) -> str:
    return MISSING if run is None else f"{run.losses[-1]:.7g}"


TABLE: Table = (
    Column("data", lambda line: line.data),
    Column("method", lambda line: line.grid.method),
    Column("η", lambda line: _power(line.grid.best.rate), "the best learning rate"),
    Column("λ", lambda line: _power(line.grid.best.damping), "and its damping"),
    Column(
        "last loss",
        lambda line: _loss(line.grid.best) + "*" * line.grid.best.chaotic,
        f"after 100 iterations (nats); * chaotic: changes by more than {CHAOTIC:g} of "
        "itself with the order of the rows",
    ),
    Column(
        "spread",
        lambda line: figure(line.grid.best.spread),
        "how far it changes, relative",
    ),
    Column(
        "not chaotic",
        lambda line: _loss(line.grid.steady),
        "last loss of the best setting that is not chaotic (nats)",
    ),
    Column(
        "chaotic",
        lambda line: f"{line.grid.chaotic_share:.0%}",
        "share of the leading settings that are",
    ),
)
