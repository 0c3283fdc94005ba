"""One approximation measured against the reference: its figures, path and cost.

The path is θ − h (A + λI)⁻¹ g: what quadratic models say along it, and what happens.
"""

from __future__ import annotations

import dataclasses
import operator
from typing import Any

from natgrad.compare.figures import Figures, Spectrum
from natgrad.compare.setup import Cost


@dataclasses.dataclass(frozen=True)
class Point:
    """One step size; nats an example, d = h (A + λI)⁻¹ g.

    Attributes:
        step_size: h.
        predicted_loss_decrease: ⟨g, d⟩ − ½⟨d, F d⟩.
        own_predicted_loss_decrease: the same with A in place of F.
        actual_loss_decrease: L(θ) − L(θ − d); negative where the step overshoots.
        predicted_kl: ½⟨d, F d⟩.
        own_predicted_kl: ½⟨d, A d⟩.
        actual_kl: mean KL(p_θ ‖ p_{θ−d}).
    """

    step_size: float
    predicted_loss_decrease: float
    own_predicted_loss_decrease: float
    actual_loss_decrease: float
    predicted_kl: float
    own_predicted_kl: float
    actual_kl: float


def _at(path: str) -> property:
    """A property that reads the attribute at a dotted path."""
    return property(operator.attrgetter(path))


@dataclasses.dataclass(frozen=True)
class Row:
    """One approximation A measured against the reference F.

    The figures of all parameters and those at the full step are also attributes of the
    row: `row.relative_error` is `row.whole.relative_error`, `row.actual_kl` is
    `row.full.actual_kl`. See `Figures` and `Point` for what they are.

    Attributes:
        name: as given, or in the registry.
        whole: figures of all parameters.
        blocks: figures of each block.
        full: predictions and what happens at step size η.
        path: the same at some multiples of η.
        spectrum: eigenvalues of A.
        invariance_defect: see `natgrad.compare.invariance`; NaN where no layer can be
            recombined, and so for the step.
        invariance_error: its standard error, 0 where it is exact.
        step_invariance_defect: of the damped step.
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
    whole: Figures
    blocks: tuple[Figures, ...]
    full: Point
    path: tuple[Point, ...]
    spectrum: Spectrum
    invariance_defect: float
    invariance_error: float
    step_invariance_defect: float
    residual: float
    fallback: bool
    statistics_bytes: int
    cost: Cost
    agrees: bool
    uses_targets: bool
    uses_key: bool

    relative_error = _at("whole.relative_error")
    spectral_error = _at("whole.spectral_error")
    trace_ratio = _at("whole.trace_ratio")
    divergence = _at("whole.divergence")
    step_cosine = _at("whole.step_cosine")
    step_norm_ratio = _at("whole.step_norm_ratio")
    lowest_ratio = _at("whole.lowest_ratio")
    median_ratio = _at("whole.median_ratio")
    highest_ratio = _at("whole.highest_ratio")
    effective_dimension = _at("whole.effective_dimension")
    exact_effective_dimension = _at("whole.exact_effective_dimension")
    predicted_loss_decrease = _at("full.predicted_loss_decrease")
    own_predicted_loss_decrease = _at("full.own_predicted_loss_decrease")
    actual_loss_decrease = _at("full.actual_loss_decrease")
    predicted_kl = _at("full.predicted_kl")
    own_predicted_kl = _at("full.own_predicted_kl")
    actual_kl = _at("full.actual_kl")

    def figures(self) -> dict[str, float]:
        """Every figure of all parameters and of the full step: name -> number."""
        of_step = {k: v for k, v in vars(self.full).items() if k != "step_size"}
        own = ("invariance_defect", "step_invariance_defect", "residual")
        return self.whole.figures() | of_step | {k: getattr(self, k) for k in own}

    def to_dict(self) -> dict[str, Any]:
        """Plain Python numbers, strings, lists and dicts."""
        record = dataclasses.asdict(self)
        errors = record.pop("whole")["standard_errors"]
        del record["full"]
        return {**record, **self.figures(), "standard_errors": errors}
