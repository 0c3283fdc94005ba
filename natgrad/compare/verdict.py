"""What a comparison and a race say to a stranger: which approximation to use.

An approximation follows the exact step where the cosine between the two is at least
0.9 and their lengths differ by less than a factor of 2. Of those that do, the quickest
is recommended; one made of the data's own labels is not, however close it comes. In a
race the mark is the median of the final losses: who reaches it first, in seconds, wins
by time.
"""

from __future__ import annotations

import dataclasses
import itertools
import math
import statistics
from collections.abc import Sequence

from natgrad.compare.comparison import Comparison, Row
from natgrad.compare.standings import Entry, Race
from natgrad.compare.tables import duration, figure

FAITHFUL = 0.9
_LENGTH = 2.0
_POOR = 0.5
# How many times quicker something must be to be worth mentioning.
_CHEAP = 2.0


@dataclasses.dataclass(frozen=True)
class Verdict:
    """In plain words.

    Attributes:
        headline: one sentence.
        points: what else there is to know, a sentence or two each.
    """

    headline: str
    points: tuple[str, ...]


def verdict(comparison: Comparison | None, race: Race | None) -> Verdict:
    """The verdict of what is there; None for what was not measured."""
    parts = []
    if race is not None:
        parts.append(_race(race))
    if comparison is not None:
        parts.append(_fidelity(comparison))
    if not parts:
        return Verdict("Nothing was finished.", ())
    headlines, points = zip(*parts, strict=True)
    return Verdict(" ".join(headlines), tuple(itertools.chain(*points)))


def follows(row: Row) -> bool:
    """Is its damped step nearly the exact one?"""
    near = 1 / _LENGTH <= row.step_norm_ratio <= _LENGTH
    return row.step_cosine >= FAITHFUL and near


def _fidelity(comparison: Comparison) -> tuple[str, list[str]]:
    rows = comparison.rows
    ranked = sorted(rows, key=lambda row: row.cost.run_seconds)
    true = [row for row in ranked if not row.uses_targets]
    faithful = [row for row in true if follows(row)]
    points = []
    if faithful:
        best = faithful[0]
        close = (
            "which is the exact one to rounding"
            if best.agrees
            else f"which is close to the exact one (cosine {best.step_cosine:.2f}, "
            f"{best.step_norm_ratio:.2f} of its length)"
        )
        headline = (
            f"To follow the natural gradient, use {best.name}: of what does it is the "
            f"quickest, {duration(best.cost.run_seconds)} for a step {close}."
        )
    else:
        best = max(true, key=_cosine, default=None)
        headline = "No approximation measured here follows the natural gradient."
        if best is not None:
            headline += f" {best.name} comes closest (cosine {best.step_cosine:.2f})."
    if faithful:
        points += _cheaper(best, true)
    points += _warnings(rows)
    points += _labels(comparison)
    return headline, points


def _cheaper(best: Row, rows: Sequence[Row]) -> list[str]:
    """What to take where the recommended one is too slow."""
    quick = [row for row in rows if _CHEAP * _seconds(row) <= _seconds(best)]
    if not quick:
        return []
    other = max(quick, key=_cosine)
    return [
        f"If {best.name} is too slow: {other.name} takes "
        f"{duration(_seconds(other))}, and its step has cosine "
        f"{other.step_cosine:.2f} with the exact one and "
        f"{other.step_norm_ratio:.2f} of its length."
    ]


def _warnings(rows: Sequence[Row]) -> list[str]:
    """Poor directions, and full steps that go up."""
    points = []
    poor = [row for row in rows if not row.step_cosine >= _POOR]
    if poor:
        points.append(
            f"Far from the exact step (cosine below {_POOR:g}): "
            + ", ".join(f"{row.name} ({row.step_cosine:.2f})" for row in poor)
            + "."
        )
    up = [row.name for row in rows if not row.actual_loss_decrease > 0]
    if up:
        points.append(
            f"The full step raises the loss for {', '.join(up)}: take a smaller "
            "learning rate or more damping."
        )
    return points


def _labels(comparison: Comparison) -> list[str]:
    """What the data's labels say, and what follows for the empirical Fisher."""
    points = []
    for row in comparison.rows:
        if row.uses_targets:
            points.append(
                f"{row.name} is made of the data's own labels and is not the Fisher "
                f"information: its step has cosine {row.step_cosine:.2f} with the "
                f"natural gradient here, and {row.step_norm_ratio:.2f} of its length."
            )
    points.append(f"The labels: {comparison.misspecification.verdict}.")
    return points


def _race(race: Race) -> tuple[str, list[str]]:
    """Who trained best, by second and by step."""
    fit = [entry for entry in race.entries if entry.best is not None]
    failed = [
        f"{entry.name} ({len(entry.failed)} of {len(entry.runs)})"
        for entry in race.entries
        if entry.failed
    ]
    points = [f"Learning rates that failed: {', '.join(failed)}."] if failed else []
    if not fit:
        return "In training every run of every optimizer failed.", points
    mark = statistics.median(entry.best.final_train_loss for entry in fit)
    first = min(fit, key=lambda entry: _reaches(entry, mark))
    best = min(fit, key=lambda entry: entry.best.final_train_loss)
    headline = (
        f"To train, use {first.name}: it was the first at {figure(mark)} nats, the "
        f"median of all, after {duration(_reaches(first, mark))}."
    )
    lowest = (
        f"In training, {best.name} reached the lowest loss: "
        f"{figure(best.best.final_train_loss)} nats after {race.steps} steps of "
        f"{duration(best.seconds_a_step)} ({figure(best.best.final_test_loss)} on "
        "held-out data)."
    )
    return headline, [lowest, *points]


def _reaches(entry: Entry, mark: float) -> float:
    """Seconds until the loss is at most `mark`; inf if never."""
    pairs = zip(entry.best.seconds, entry.best.train_loss, strict=True)
    return next((seconds for seconds, loss in pairs if loss <= mark), math.inf)


def _seconds(row: Row) -> float:
    return row.cost.run_seconds


def _cosine(row: Row) -> float:
    return row.step_cosine if math.isfinite(row.step_cosine) else -2.0
