"""What a walk carries and what it collects: marks on values, findings on parameters."""

from __future__ import annotations

import dataclasses
import itertools
from collections.abc import Sequence

import jax.numpy as jnp

from natgrad.layers.examples import Path
from natgrad.layers.uses import Use
from natgrad.layers.views import View
from natgrad.typing import Array


@dataclasses.dataclass(frozen=True)
class Mark:
    """A value is scale ∘ view, plus a constant; or the result of the use `source`.

    With `early`, (a use, its operands, its scale), the view is of the result of that
    use, which was computed once for all examples; with `looked_up`, (a lookup, its
    operands, its scale), it is of what was looked up for each example.
    """

    view: View
    scaled: str = ""
    scale: Array | None = None
    source: Path | None = None
    early: tuple | None = None
    looked_up: tuple | None = None

    def times(self, factor: Array, shape: Sequence[int]) -> Mark:
        """The mark of a multiple: by a scalar, or entry by entry."""
        one_number = jnp.ndim(factor) == 0
        scale = factor if self.scale is None else self.scale * factor
        if not one_number or self.scaled == "array":
            return dataclasses.replace(
                self, scaled="array", scale=jnp.broadcast_to(scale, shape)
            )
        return dataclasses.replace(self, scaled="scalar", scale=scale)


# Of one value: a sum comes from several parameters, or from one in several ways.
Marks = tuple[Mark, ...]


@dataclasses.dataclass
class Findings:
    """What a walk found.

    Attributes:
        uses: every use, by path.
        joins: shift use -> (the use whose result it is added to, that result's view).
        unmatched: leaf -> reasons why a use of it was not understood.
        loops: paths of the scans of more than one step.
        rules: custom derivative -> whether it is that of the function it replaces.
    """

    uses: dict[Path, Use] = dataclasses.field(default_factory=dict)
    joins: dict[Path, tuple[Path, View]] = dataclasses.field(default_factory=dict)
    unmatched: dict[int, set[str]] = dataclasses.field(default_factory=dict)
    loops: set[Path] = dataclasses.field(default_factory=set)
    rules: dict[Path, bool] = dataclasses.field(default_factory=dict)

    def refuse(self, marks: Sequence[Marks], reason: str) -> None:
        """Notes that a use of these parameters was not understood."""
        for mark in itertools.chain(*marks):
            if mark.source is None:
                self.unmatched.setdefault(mark.view.leaf, set()).add(reason)
