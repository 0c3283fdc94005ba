"""The record of a comparison: rows of figures, and where they were taken.

What each figure is stands in `natgrad.compare.fidelity`, which measures them.
"""

from __future__ import annotations

import dataclasses
from typing import Any

from natgrad.compare import tables
from natgrad.compare.timing import Cost


@dataclasses.dataclass(frozen=True)
class Row:
    """One approximation A measured against the reference F.

    Attributes:
        name: in the registry.
        relative_error: ‖A − F‖_F / ‖F‖_F.
        step_cosine: between the damped steps of A and of F.
        step_norm_ratio: |d_A| / |d_F|.
        predicted_loss_decrease: ⟨g, d⟩ − ½⟨d, F d⟩, in nats.
        own_predicted_loss_decrease: the same with A in place of F.
        actual_loss_decrease: L(θ) − L(θ − d); negative where the step overshoots.
        predicted_kl: ½⟨d, F d⟩, in nats.
        own_predicted_kl: the same with A in place of F.
        actual_kl: mean KL(p_θ ‖ p_{θ−d}).
        residual: |(A + λI) d/η − g| / |g|, how well the solver solved.
        fallback: did the solver's first choice of algorithm fail?
        statistics_bytes: what a moving average keeps.
        cost: of estimating A and solving for the step.
        agrees: is A the reference to rounding, √ε of the dtype?
        uses_targets: is A made of the data's own labels? Then it is not a Fisher
            information, however small its error is here.
        uses_key: is A made of random labels? Then the figures are those of one draw.
    """

    name: str
    relative_error: float
    step_cosine: float
    step_norm_ratio: float
    predicted_loss_decrease: float
    own_predicted_loss_decrease: float
    actual_loss_decrease: float
    predicted_kl: float
    own_predicted_kl: float
    actual_kl: float
    residual: float
    fallback: bool
    statistics_bytes: int
    cost: Cost
    agrees: bool
    uses_targets: bool
    uses_key: bool


@dataclasses.dataclass(frozen=True)
class Comparison:
    """Rows of figures, and where they were taken.

    Attributes:
        rows: one an approximation.
        reference: the name of what they are measured against.
        damping: λ.
        step_size: η.
        loss: L(θ), nats an example.
        gradient_norm: |g|.
        reference_norm: ‖F‖_F.
        parameters: P.
        examples: N.
        dtype: of the figures.
    """

    rows: tuple[Row, ...]
    reference: str
    damping: float
    step_size: float
    loss: float
    gradient_norm: float
    reference_norm: float
    parameters: int
    examples: int
    dtype: str

    def __getitem__(self, name: str) -> Row:
        for row in self.rows:
            if row.name == name:
                return row
        raise KeyError(name)

    def __str__(self) -> str:
        return self.table()

    def table(self) -> str:
        """The figures as plain text."""
        parts = [tables.plain(columns, self.rows) for columns in tables.FIDELITY]
        return "\n\n".join(parts)

    def to_dict(self) -> dict[str, Any]:
        """Plain Python numbers, strings, lists and dicts."""
        record = dataclasses.asdict(self)
        record["rows"] = list(record["rows"])
        return record
