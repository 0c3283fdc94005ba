"""Tables: which figure stands in which column, what it means, and how it is written."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

from natgrad.compare.extras import require
from natgrad.compare.figures import Figures

MISSING = "–"


@dataclasses.dataclass(frozen=True)
class Column:
    """A column of a table."""

    title: str  # lines of its heading, with the unit where it has one
    text: Callable[[Any], str]  # row -> what stands in the cell
    meaning: str = ""  # for the legend; empty where the title says it all


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


def estimate(value: float, noise: float) -> str:
    """A figure and its standard error, where that can be seen."""
    if math.isnan(value):
        return MISSING
    visible = math.isfinite(noise) and noise > 1e-3 * abs(value)
    return figure(value) + (f"±{noise:.0g}" if visible else "")


def size(count: float) -> str:
    """Bytes, with a decimal unit."""
    for unit, scale in (("GB", 1e9), ("MB", 1e6), ("kB", 1e3)):
        if count >= scale:
            return f"{count / scale:.1f} {unit}"
    return f"{count:.0f} B"


def duration(seconds: float) -> str:
    """Seconds, with a unit."""
    if seconds >= 1:
        return f"{seconds:.1f} s"
    return f"{seconds * 1e3:.{0 if seconds >= 0.01 else 2}f} ms"


def legend(table: Sequence[Column]) -> list[tuple[str, str]]:
    """(title on one line, meaning) of the columns that need one."""
    return [(" ".join(c.title.split()), c.meaning) for c in table if c.meaning]


def rich(table: Table, rows: Sequence[Any], spread: int = 1) -> Any:
    """A table of rich, the first column left, the others right, `spread` further apart.

    What agrees with the reference is green.
    """
    box, text = require("rich.box").SIMPLE_HEAD, require("rich.text").Text
    printed = require("rich.table").Table(box=box, padding=(0, spread, 0, 0))
    for index, column in enumerate(table):
        lines = [*column.title.split("\n"), *map(column.text, rows)]
        how = {"justify": "right", "min_width": max(map(len, lines))} if index else {}
        printed.add_column(column.title, overflow="fold", **how)
    for row in rows:
        style = "green" if getattr(row, "agrees", False) else ""
        printed.add_row(*(text(column.text(row)) for column in table), style=style)
    return printed


def plain(table: Table, rows: Sequence[Any]) -> str:
    """A table as lines of text, the first column left, the others right."""
    titles = [column.title.split("\n") for column in table]
    height = max(map(len, titles))
    heads = [[""] * (height - len(title)) + title for title in titles]
    lines = [*zip(*heads, strict=True), *([c.text(r) for c in table] for r in rows)]
    widths = [max(map(len, column)) for column in zip(*lines, strict=True)]
    lines.insert(height, ["─" * width for width in widths])
    justified = [
        [line[0].ljust(widths[0]), *map(str.rjust, line[1:], widths[1:])]
        for line in lines
    ]
    return "\n".join("  ".join(line).rstrip() for line in justified)


NOTES = (
    ("†", "made of the data's own labels: not the Fisher information, even if close"),
    ("‡", "made of labels drawn from the model: the figures are those of one draw"),
)


def marks(row: Any) -> str:
    """† for the data's own labels, ‡ for random ones; see `NOTES`."""
    return "†" * row.uses_targets + "‡" * row.uses_key


def _of_row(title: str, name: str, meaning: str = "") -> Column:
    """A figure of a row, with its standard error where it has one."""

    def text(row: Any) -> str:
        noise = {**row.whole.standard_errors, "invariance_defect": row.invariance_error}
        return estimate(getattr(row, name), noise.get(name, 0.0))

    return Column(title, text, meaning)


def _number(title: str, path: str, meaning: str = "", write: Any = figure) -> Column:
    """The number at a dotted path below the row, – where it or its owner is None."""

    def text(value: Any) -> str:
        for name in path.split("."):
            value = value and getattr(value, name)
        return MISSING if value is None else write(value)

    return Column(title, text, meaning)


_NAME = Column("approximation", lambda row: row.name + marks(row))

_STEP: Table = (
    _NAME,
    _of_row("rel.\nerror", "relative_error", "‖A − F‖ / ‖F‖, Frobenius; 0 is exact"),
    _of_row("step\ncosine", "step_cosine", "between (A + λI)⁻¹g and (F + λI)⁻¹g"),
    _of_row("step\nlength", "step_norm_ratio", "its length over the exact step's"),
    _of_row("loss ↓\nby F", "predicted_loss_decrease", "as F predicts (nats)"),
    _of_row("loss ↓\nby A", "own_predicted_loss_decrease", "as A believes (nats)"),
    _of_row("loss ↓\nactual", "actual_loss_decrease", "below 0 it overshoots (nats)"),
    _of_row("KL\nby F", "predicted_kl", "½⟨d, F d⟩ along A's step d (nats)"),
    _of_row("KL\nby A", "own_predicted_kl", "½⟨d, A d⟩ (nats)"),
    _of_row("KL\nactual", "actual_kl", "mean KL(p_θ ‖ p_{θ−d}) (nats)"),
)

_SHAPE: Table = (
    _NAME,
    _of_row("rel.\nspectral", "spectral_error", "‖A − F‖ / ‖F‖ in the spectral norm"),
    _of_row("trace\nratio", "trace_ratio", "tr A / tr F"),
    _of_row(
        "KL of\nlaws",
        "divergence",
        "of the posteriors that F and A mean, N(0, (· + λI)⁻¹) (nats)",
    ),
    _of_row(
        "ratio\nlow",
        "lowest_ratio",
        "smallest eigenvalue of (F + λI)⁻¹(A + λI): what A thinks too little of",
    ),
    _of_row("ratio\nmedian", "median_ratio", "the middle one"),
    _of_row("ratio\nhigh", "highest_ratio", "the largest"),
    _of_row("eff.\ndim.", "effective_dimension", "Σ a/(a + λ) over A's eigenvalues"),
    _of_row(
        "invar.\ndefect",
        "invariance_defect",
        "relative change of A when the inputs of every layer are recombined",
    ),
    _of_row(
        "step\ndefect",
        "step_invariance_defect",
        "of the damped step; damping by λI alone makes it more than 0",
    ),
)

_COST: Table = (
    _NAME,
    _number("run", "cost.run_seconds", "estimate A, solve for one step", duration),
    _number("compile", "cost.compile_seconds", "of the same, once", duration),
    _number("kept", "statistics_bytes", "what is carried from step to step", size),
    _number("temporary", "cost.temporary_bytes", "beside them during the step", size),
    Column(
        "residual",
        lambda row: figure(row.residual) + "!" * row.fallback,
        "|(A + λI)d − g| / |g|; ! where the solver fell back on its second choice",
    ),
)

FIGURES: tuple[Table, ...] = (_STEP, _SHAPE, _COST)


class BlockRow(NamedTuple):
    """The figures of one approximation on one block."""

    name: str
    figures: Figures


BLOCKS: Table = (
    Column("block", lambda row: row.figures.name),
    Column("approximation", lambda row: row.name),
    _number("rel.\nerror", "figures.relative_error", "on the block's own square"),
    _number("rel.\nspectral", "figures.spectral_error"),
    _number("KL of\nlaws", "figures.divergence"),
    _number("step\ncosine", "figures.step_cosine", "of the block's part of the step"),
    _number("step\nlength", "figures.step_norm_ratio"),
    _number("ratio\nlow", "figures.lowest_ratio"),
    _number("ratio\nhigh", "figures.highest_ratio"),
    _number("eff.\ndim.", "figures.effective_dimension"),
)

SOURCES: Table = (
    Column("where K-FAC's error comes from", lambda source: source.name),
    _number("of ‖F‖²", "square", "the block's share, in squared Frobenius norm"),
    _number("missed by\nK-FAC", "kfac", "of ‖F‖²; in all the square of its rel. error"),
    _number("by any\nA ⊗ G", "nearest", "of ‖F‖², by the nearest one at least (kfoc)"),
)


def _rate(entry: Any) -> str:
    if entry is None:
        return MISSING
    best = entry.best
    return f"{best.learning_rate:g}{'*' * entry.on_edge}" if best else "none"


RACE: Table = (
    Column("optimizer", lambda entry: entry.name),
    Column("best\nrate", _rate, "of the lowest train loss; * on the edge of its grid"),
    _number("train\nloss", "best.final_train_loss", "over all training data (nats)"),
    _number("test\nloss", "best.final_test_loss", "on held-out data (nats)"),
    _number("test\nscore", "best.final_score", "accuracy of classes, R² of numbers"),
    _number("time\na step", "seconds_a_step", "median, without compiling", duration),
    _number("compile", "compile_seconds", "once", duration),
    Column(
        "failed",
        lambda entry: f"{len(entry.failed)} of {len(entry.runs)}",
        "learning rates whose run was not finite or ended above its first loss",
    ),
)


class SummaryRow(NamedTuple):
    """A name with its row, if it was compared, and its entry, if it raced."""

    name: str
    row: Any
    entry: Any


SUMMARY: Table = (
    Column("", lambda line: line.name + (marks(line.row) if line.row else "")),
    _number("rel.\nerror", "row.relative_error"),
    _number("step\ncosine", "row.step_cosine"),
    _number("step\nlength", "row.step_norm_ratio"),
    Column("best\nrate", lambda line: _rate(line.entry)),
    _number("train\nloss", "entry.best.final_train_loss"),
    _number("test\nloss", "entry.best.final_test_loss"),
    _number("time\na step", "entry.seconds_a_step", write=duration),
    _number("compile", "entry.compile_seconds", write=duration),
)
