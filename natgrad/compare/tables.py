"""Tables: which figure stands in which column, how it is written, what it means.

Plain text here; `report` shows the same columns with rich.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Iterable, Sequence
from typing import Any

MISSING = "–"


@dataclasses.dataclass(frozen=True)
class Column:
    """A column of a table.

    Attributes:
        title: its heading, lines separated by newlines, with the unit where it has one.
        text: row -> what stands in the cell.
        meaning: one sentence for the legend; empty where the title says it all.
    """

    title: str
    text: Callable[[Any], str]
    meaning: str = ""


Table = tuple[Column, ...]


def figure(value: float | None) -> str:
    """Three significant digits, or two and an exponent: at most 7 characters."""
    if value is None:
        return MISSING
    if not math.isfinite(value):
        return f"{value:.0f}"
    if value == 0:
        return "0"
    if 0.01 <= abs(value) < 999.5:
        return f"{value:#.3g}".rstrip(".")
    if 1 <= abs(value) < 99999.5:
        return f"{value:.0f}"
    mantissa, _, exponent = f"{value:.1e}".partition("e")
    return f"{mantissa}e{int(exponent)}"


def size(count: int | None) -> str:
    """Bytes, with a decimal unit."""
    if count is None:
        return MISSING
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= scale:
            return f"{count / scale:.1f} {unit}"
    return f"{count} B"


def duration(seconds: float | None) -> str:
    """Seconds, with a unit."""
    if seconds is None:
        return MISSING
    if seconds >= 1:
        return f"{seconds:.1f} s"
    return f"{seconds * 1e3:.{0 if seconds >= 0.01 else 2}f} ms"


def marks(row: Any) -> str:
    """† for the data's own labels, ‡ for random ones; see `NOTES`."""
    return "†" * row.uses_targets + "‡" * row.uses_key


NOTES = (
    (
        "†",
        "made of the data's own labels: not the Fisher information, even where close",
    ),
    ("‡", "made of labels drawn from the model: the figures are those of one draw"),
)


def _of(name: str) -> Callable[[Any], str]:
    return lambda row: figure(getattr(row, name))


_NAME = Column("approximation", lambda row: row.name + marks(row))

_STEP: Table = (
    _NAME,
    Column(
        "rel.\nerror",
        _of("relative_error"),
        "‖A − F‖ / ‖F‖ in the Frobenius norm; 0 is exact",
    ),
    Column(
        "step\ncosine",
        _of("step_cosine"),
        "between the steps (A + λI)⁻¹g and (F + λI)⁻¹g; 1 is the same direction",
    ),
    Column("step\nlength", _of("step_norm_ratio"), "its length over the exact step's"),
    Column(
        "loss ↓\nby F",
        _of("predicted_loss_decrease"),
        "fall of the loss that the quadratic model with F predicts for A's step (nats)",
    ),
    Column(
        "loss ↓\nby A",
        _of("own_predicted_loss_decrease"),
        "the same with A itself: what an optimizer that has only A believes (nats)",
    ),
    Column(
        "loss ↓\nactual",
        _of("actual_loss_decrease"),
        "what the loss really falls by; negative where the full step overshoots (nats)",
    ),
    Column("KL\nby F", _of("predicted_kl"), "½⟨d, F d⟩ along A's step d (nats)"),
    Column("KL\nby A", _of("own_predicted_kl"), "½⟨d, A d⟩ (nats)"),
    Column("KL\nactual", _of("actual_kl"), "mean KL(p_θ ‖ p_{θ−d}) (nats)"),
)

_COST: Table = (
    _NAME,
    Column(
        "run",
        lambda row: duration(row.cost.run_seconds),
        "estimate A from the batch and solve for one step; median, gradient given",
    ),
    Column(
        "compile",
        lambda row: duration(row.cost.compile_seconds),
        "of the same, once",
    ),
    Column(
        "kept",
        lambda row: size(row.statistics_bytes),
        "the statistics that an optimizer carries from step to step",
    ),
    Column(
        "temporary",
        lambda row: size(row.cost.temporary_bytes),
        "what XLA allocates beside them during the step",
    ),
    Column(
        "residual",
        lambda row: figure(row.residual) + "!" * row.fallback,
        "|(A + λI)d − g| / |g|; ! where the solver fell back on its second choice",
    ),
)

FIDELITY: tuple[Table, ...] = (_STEP, _COST)

_BEST = lambda name: lambda entry: figure(entry.best and getattr(entry.best, name))

RACE: Table = (
    Column("optimizer", lambda entry: entry.name),
    Column(
        "best\nrate",
        lambda entry: (
            f"{entry.best.learning_rate:g}{'*' if entry.on_edge else ''}"
            if entry.best
            else "none"
        ),
        "learning rate with the lowest final train loss; * on the edge of its grid",
    ),
    Column("train\nloss", _BEST("final_train_loss"), "over all training data (nats)"),
    Column("test\nloss", _BEST("final_test_loss"), "on held-out data (nats)"),
    Column("test\nscore", _BEST("final_score"), "accuracy of classes, R² of numbers"),
    Column(
        "time\na step",
        lambda entry: duration(entry.seconds_a_step),
        "median over the runs, compiling and evaluating left out",
    ),
    Column("compile", lambda entry: duration(entry.compile_seconds), "once"),
    Column(
        "failed",
        lambda entry: f"{len(entry.failed)} of {len(entry.runs)}",
        "learning rates whose run was not finite or ended above its first loss; "
        "shown, and never the best",
    ),
)


def cells(table: Table, rows: Iterable[Any]) -> list[list[str]]:
    """The text of every cell, row by row."""
    return [[column.text(row) for column in table] for row in rows]


def legend(table: Sequence[Column]) -> list[tuple[str, str]]:
    """(title on one line, meaning) of the columns that need one."""
    return [
        (" ".join(column.title.split()), column.meaning)
        for column in table
        if column.meaning
    ]


def plain(table: Table, rows: Iterable[Any]) -> str:
    """A table as lines of text, the first column left, the others right."""
    titles = [column.title.split("\n") for column in table]
    height = max(map(len, titles))
    heads = [[""] * (height - len(title)) + title for title in titles]
    body = cells(table, rows)
    lines = [list(line) for line in zip(*heads, strict=True)]
    widths = [max(map(len, column)) for column in zip(*lines, *body, strict=True)]
    lines += [["─" * width for width in widths], *body]
    return "\n".join(
        "  ".join(
            text.ljust(width) if index == 0 else text.rjust(width)
            for index, (text, width) in enumerate(zip(line, widths, strict=True))
        ).rstrip()
        for line in lines
    )
