"""What a comparison says to a stranger: which approximation to use.

An approximation follows the exact step where the cosine between the two is at least
0.9 and their lengths differ by less than a factor of 2. Of those that do, the quickest
is recommended; one made of the data's own labels is not, however close it comes.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

from natgrad.compare.error_sources import ErrorSource, in_words
from natgrad.compare.misspecification import Misspecification
from natgrad.compare.row import Row
from natgrad.compare.tables import duration

_FAITHFUL = 0.9
_LENGTH = 2.0
_POOR = 0.5
# How many times quicker something must be to be worth mentioning.
_CHEAP = 2.0


@dataclasses.dataclass(frozen=True)
class Verdict:
    """In plain words.

    Attributes:
        headline: one sentence, or two short ones.
        points: what else there is to know, a sentence or two each.
        line: what to paste into a program; empty where nothing is recommended.
    """

    headline: str
    points: tuple[str, ...]
    line: str = ""

    def __str__(self) -> str:
        line = f"\n    {self.line}" * bool(self.line)
        return self.headline + line + "".join(f"\n- {point}" for point in self.points)


def together(first: Verdict, *others: Verdict) -> Verdict:
    """One verdict that ends with what the others say."""
    rest = [text for other in others for text in (other.headline, *other.points)]
    return Verdict(first.headline, (*first.points, *rest), first.line)


def judge(
    rows: Sequence[Row],
    labels: Misspecification,
    sources: tuple[ErrorSource, ...] = (),
) -> Verdict:
    """Which of the approximations to use, and what to know about the others.

    Args:
        rows: the approximations measured.
        labels: what the data's labels say.
        sources: of K-FAC's error, where they were measured.
    """
    ranked = sorted(rows, key=_seconds)
    fishers = [row for row in ranked if not row.uses_targets]
    best = next((row for row in fishers if _follows(row)), None)
    points = _warnings(rows) + in_words(sources)
    points += [
        f"{row.name} is made of the data's own labels and is not the Fisher: its step "
        f"has cosine {row.step_cosine:.2f} with the natural gradient here, and "
        f"{row.step_norm_ratio:.2f} of its length."
        for row in rows
        if row.uses_targets
    ]
    points.append(f"The labels: {labels.verdict}.")
    if best is None:
        headline = "No approximation measured here follows the natural gradient."
        if fishers:
            nearest = max(fishers, key=_cosine)
            headline += (
                f" {nearest.name} comes closest (cosine {nearest.step_cosine:.2f})."
            )
        return Verdict(headline, tuple(points))
    close = (
        "which is the exact one to rounding"
        if best.agrees
        else f"which is close to the exact one (cosine {best.step_cosine:.2f}, "
        f"{best.step_norm_ratio:.2f} of its length)"
    )
    headline = (
        f"The natural gradient is followed most cheaply by {best.name}: "
        f"{duration(_seconds(best))} for a step {close}."
    )
    quick = [row for row in fishers if _CHEAP * _seconds(row) <= _seconds(best)]
    if quick:
        other = max(quick, key=_cosine)
        cheaper = (
            f"If {best.name} is too slow: {other.name} takes "
            f"{duration(_seconds(other))}, and its step has cosine "
            f"{other.step_cosine:.2f} with the exact one and "
            f"{other.step_norm_ratio:.2f} of its length."
        )
        points.insert(0, cheaper)
    return Verdict(headline, tuple(points))


def _follows(row: Row) -> bool:
    """Is its damped step nearly the exact one?"""
    near = 1 / _LENGTH <= row.step_norm_ratio <= _LENGTH
    return row.step_cosine >= _FAITHFUL and near


def _warnings(rows: Sequence[Row]) -> list[str]:
    """Poor directions, and full steps that go up."""
    poor = [row for row in rows if not row.step_cosine >= _POOR]
    up = [row.name for row in rows if not row.actual_loss_decrease > 0]
    points = []
    if poor:
        names = ", ".join(f"{row.name} ({row.step_cosine:.2f})" for row in poor)
        points.append(f"Far from the exact step (cosine below {_POOR:g}): {names}.")
    if up:
        points.append(
            f"A step of rate 1 raises the loss for {', '.join(up)}: take a smaller "
            "rate or more damping."
        )
    return points


def _seconds(row: Row) -> float:
    return row.cost.run_seconds


def _cosine(row: Row) -> float:
    return row.step_cosine if math.isfinite(row.step_cosine) else -2.0
