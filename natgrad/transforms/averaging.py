"""β of the moving average of statistics: a number, or by what the batch determines.

    β = min(max(1 − N K / (5 P), 0), 0.95)

for N examples of K score columns each and P parameters. F of one batch has the rank N K
at most. Where that is 5 P and more the batch determines F, and is taken alone; where it
is less, F is blind in some directions, which 1/λ stretches, and a trust region that is
measured on the same batch does not see it. An average with β weighs 1 / (1 − β) batches
as one, which have 5 P columns then, but for batches so small that it would be more than
20. More batches would know more, of parameters from longer ago.

Where 20 batches have fewer than P columns, their average is blind too, and knows the
batch itself twenty times less than it could: steps through what it does not know grow
without bound. Such a batch leaves β as it was. In a run of them that is 0, of each
batch alone; a short one at the end of an epoch is averaged as those before it.
"""

from __future__ import annotations

import dataclasses
from typing import final

from natgrad.arguments import check_in, known_value
from natgrad.curvature.base import Curvature
from natgrad.model.batch import Batch
from natgrad.transforms.state import ScaleByCurvatureState
from natgrad.transforms.validation import Step
from natgrad.tree import Layout
from natgrad.typing import ArrayLike


@final
@dataclasses.dataclass(frozen=True)
class ByBatch:
    """β by the rule above, for curvatures that keep all of F as a matrix.

    Others are taken of the current batch alone, β = 0; so is F until a batch is given
    or observed, whose examples can be counted. Without one β stays as it was.

    Attributes:
        columns: for each parameter. With 3 a logistic regression with momentum ended
            above twice tuned Adam's loss in 13 of 20 runs, with 5 in 7. But an equation
            that is solved to high accuracy, `pinn` of `benchmarks.drop_in`, stops at a
            rate of 1 at a fifth of Adam's loss with 5, at a thousandth with 3 (radius
            0.01): F of the steps before is not that of so long a step.
        longest: β at most.
    """

    columns: float = 5.0
    longest: float = 0.95

    def of(self, step: Step, state: ScaleByCurvatureState) -> ArrayLike:
        """β of a step.

        Args:
            step: the arguments of the update.
            state: as the step found it.
        """
        if not self.averages(step.curvature):
            return 0.0
        if not step.has_batch:
            return state.decay
        known = self._known(step.curvature, step.batch)
        batches = round(1 / (1 - self.longest))
        blind = batches * self.columns * known < 1
        return state.decay if blind else self._beta(known)

    def averages(self, curvature: Curvature) -> bool:
        """Does the curvature keep all of F as a matrix?"""
        return curvature.keeps_all_of_f and not curvature.requires_batch

    def of_batch(self, curvature: Curvature, given: Batch) -> float:
        """β of a batch.

        Args:
            curvature: for the shapes of the parameters.
            given: the batch.
        """
        if not self.averages(curvature):
            return 0.0
        return self._beta(self._known(curvature, given))

    def _beta(self, known: float) -> float:
        return min(max(1.0 - known, 0.0), self.longest)

    def _known(self, curvature: Curvature, given: Batch) -> float:
        """N K / (5 P)."""
        params, inputs, targets, _ = given
        columns, count = curvature.columns(params, inputs, targets)
        return columns * count / (self.columns * Layout.of(params).size)


BY_BATCH = ByBatch()


def check_decay(decay: ArrayLike | ByBatch, curvature: Curvature) -> None:
    """Raise a ValueError unless statistics can be averaged with this decay.

    Args:
        decay: β, or what decides it.
        curvature: whose statistics they are.
    """
    if isinstance(decay, ByBatch):
        return
    check_in("decay", decay, lambda beta: 0 <= beta < 1, "lie in [0, 1)")
    if curvature.requires_batch and known_value(decay) != 0:
        raise ValueError(
            f"{type(curvature).__name__} is the curvature of the current batch and "
            f"cannot be averaged: leave decay at 0, got {decay}, or name a curvature "
            "that keeps a matrix, such as natgrad.curvature.Dense or KFAC. Inside "
            "optax.inject_hyperparams keep decay static by static_args='decay'."
        )
