"""Which figure stands in which column, and what it means."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

from natgrad.compare.figures import Figures
from natgrad.compare.tables import Column, Table, duration, estimate, figure, size


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


def _estimate(name: str) -> Callable[[Any], str]:
    """A figure, and its standard error where it has one."""

    def text(row):
        return estimate(getattr(row, name), row.whole.standard_errors.get(name, 0))

    return text


_NAME = Column("approximation", lambda row: row.name + marks(row))

_STEP: Table = (
    _NAME,
    Column(
        "rel.\nerror",
        _estimate("relative_error"),
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

_SHAPE: Table = (
    _NAME,
    Column(
        "rel.\nspectral",
        _estimate("spectral_error"),
        "‖A − F‖ / ‖F‖ in the spectral norm",
    ),
    Column("trace\nratio", _estimate("trace_ratio"), "tr A / tr F"),
    Column(
        "KL of\nlaws",
        _estimate("divergence"),
        "KL(N(0, (F + λI)⁻¹) ‖ N(0, (A + λI)⁻¹)), of the posteriors they mean (nats)",
    ),
    Column(
        "ratio\nlow",
        _estimate("lowest_ratio"),
        "smallest eigenvalue of (F + λI)⁻¹(A + λI): directions A thinks too little of",
    ),
    Column("ratio\nmedian", _estimate("median_ratio"), "the middle one"),
    Column("ratio\nhigh", _estimate("highest_ratio"), "the largest"),
    Column(
        "eff.\ndim.",
        _estimate("effective_dimension"),
        "Σ a/(a + λ) over A's eigenvalues: directions that outweigh the damping",
    ),
    Column(
        "invar.\ndefect",
        lambda row: estimate(row.invariance_defect, row.invariance_error),
        "change of A, in its own units, when the inputs of every layer are recombined",
    ),
    Column(
        "of the\nstep",
        _estimate("step_invariance_defect"),
        "change of the damped step; damping by λI alone makes it more than 0",
    ),
)

FIGURES: tuple[Table, ...] = (_STEP, _SHAPE, _COST)


@dataclasses.dataclass(frozen=True)
class BlockRow:
    """An approximation on one block.

    Attributes:
        name: of the approximation.
        figures: on the block.
    """

    name: str
    figures: Figures


def _of_block(name: str) -> Callable[[BlockRow], str]:
    return lambda row: figure(getattr(row.figures, name))


BLOCKS: Table = (
    Column("block", lambda row: row.figures.name),
    Column("approximation", lambda row: row.name),
    Column("rel.\nerror", _of_block("relative_error"), "on the block's own square"),
    Column("rel.\nspectral", _of_block("spectral_error")),
    Column("KL of\nlaws", _of_block("divergence")),
    Column("step\ncosine", _of_block("step_cosine"), "of the block's part of the step"),
    Column("step\nlength", _of_block("step_norm_ratio")),
    Column("ratio\nlow", _of_block("lowest_ratio")),
    Column("ratio\nhigh", _of_block("highest_ratio")),
    Column("eff.\ndim.", _of_block("effective_dimension")),
)

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
