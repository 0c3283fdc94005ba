"""How λ is adapted to the reduction ratio ρ of a step, and to the next batch.

    ρ = (loss(θ) − loss(θ + d)) / (M(0) − M(d)),   M(d) = ⟨g, d⟩ + ½ ⟨d, (F + η I) d⟩

λ is in the solve that gives d and not in M, so that ρ = 1 for a loss that is quadratic.
(Martens & Grosse leave it in M, which makes ρ larger.) Both losses are of one batch.

λ is left alone where a step says nothing about it: where loss or gradient are not
finite, and where |M(0) − M(d)| is within r, the rounding of the loss. So λ outlives
convergence. And it has a limit: M(0) − M(d) is at most ⟨g, g⟩/(2 λ) for steps damped by
λI, so a λ above ⟨g, g⟩/(2 r) is not raised.

A step can fit what its batch has by chance, which the batch itself does not show. So
where the next batch is another one, the step is judged by that batch, too: one that
was too long there raises λ, and λ falls only while steps are of use there.

Source: as for `natgrad.transforms.adaptive.marquardt`.
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float, Int

from natgrad import tree
from natgrad.control_flow import any_over_vmap
from natgrad.curvature.labels import Labels
from natgrad.transforms.adaptive.acceptance import (
    Decision,
    judge_last_step,
)
from natgrad.transforms.adaptive.batch_loss import BatchLoss
from natgrad.transforms.adaptive.damping_rules import LossFloor, Rule
from natgrad.transforms.adaptive.quadratic_forms import fisher_forms
from natgrad.transforms.health import Undone
from natgrad.typing import Array, ArrayLike, Params


class LevenbergMarquardtState(NamedTuple):
    """State of `levenberg_marquardt`.

    Attributes:
        count: steps taken; a rejected one does not count.
        damping: λ of the next step.
        growth: of the next rejection in a row, for rules that have one.
        ratio: ρ, when it was measured last; 1 before.
        rejected: was the last step rejected?
        rejections: how many were so far.
        update: the last step that was taken, like the parameters.
        after: the loss of its batch after it, in nats; 0 before any.
        fall: by how much it had lowered that loss, in nats; 0 before any.
        inner: the state of the transformation inside.
        undone: the reason for `natgrad.check_health`, where the last step was rejected
            since something was not finite, and how many such steps there were.
    """

    count: Int[Array, ""]
    damping: Float[Array, ""]
    growth: Float[Array, ""]
    ratio: Float[Array, ""]
    rejected: Bool[Array, ""]
    rejections: Int[Array, ""]
    update: Params
    after: Float[Array, ""]
    fall: Float[Array, ""]
    inner: Any
    undone: Undone


class StepDamping(NamedTuple):
    """λ of a step.

    Attributes:
        strength: λ.
        growth: of the next rejection in a row, for rules that have one.
        may_fall: may λ fall after the step? Not where the last one was of little use.
    """

    strength: Float[Array, ""]
    growth: Float[Array, ""]
    may_fall: Bool[Array, ""]


class Ratio(NamedTuple):
    """The reduction ratio of a step.

    Attributes:
        value: ρ, when it was measured last.
        measured: was it measured in this step?
        decrease: M(0) − M(d) of the full step in nats; 0 where it was not asked for.
    """

    value: Float[Array, ""]
    measured: Bool[Array, ""]
    decrease: Float[Array, ""]


@dataclasses.dataclass(frozen=True)
class DampingByRatio:
    """λ before a step, ρ of the step, and λ after it.

    Attributes:
        rule: how ρ changes λ.
        floor: what λ does not fall below.
        weight_decay: η.
        labels: whose F M has.
    """

    rule: Rule
    floor: LossFloor
    weight_decay: ArrayLike
    labels: Labels

    def before_step(
        self, batch: BatchLoss, state: LevenbergMarquardtState
    ) -> StepDamping:
        """λ of this step: raised where the last one was too long, and above the floor.

        Args:
            batch: of this step; the floor follows its loss.
            state: after the last step.

        Returns:
            The damping of this step.
        """
        too_long, little_use = judge_last_step(
            batch, state.update, state.after, state.fall
        )
        raised, growth = self.rule.rejected(state.damping, state.growth)
        growth = jnp.where(too_long, growth, state.growth)
        strength = jnp.where(too_long, raised, state.damping)
        lowest = self.floor.of(batch.value).astype(strength.dtype)
        # A floor that is not finite comes from a loss that is not: rejected below.
        strength = jnp.maximum(strength, jnp.where(jnp.isfinite(lowest), lowest, 0))
        return StepDamping(strength, growth, ~little_use)

    def ratio(
        self, batch: BatchLoss, decision: Decision, state: LevenbergMarquardtState
    ) -> Ratio:
        """ρ every `rule.period` steps; M(0) − M(d) also where the step fell short.

        Args:
            batch: of the step.
            decision: on the step.
            state: after the last step.

        Returns:
            ρ of this step, or the last one.
        """
        dtype, rounding = batch.value.dtype, decision.comparison.rounding
        count = self.count_after(decision, state)
        due = decision.accepted & (count % self.rule.period == 0)

        def predict():
            slope = -tree.inner(batch.gradient, decision.modelled)
            decrease = self._predicted_decrease(batch, decision, slope)
            return slope.astype(dtype), decrease.astype(dtype)

        slope, decrease = jax.lax.cond(
            any_over_vmap(due | (batch.finite & decision.fell_short)),
            predict,
            lambda: (jnp.zeros((), dtype),) * 2,
        )
        length = decision.length
        predicted = length * slope - length**2 * (slope - decrease)
        due = due & (predicted > rounding)
        ratio = decision.comparison.fall / jnp.where(due, predicted, 1)
        return Ratio(jnp.where(due, ratio, state.ratio), due, decrease)

    def count_after(self, decision: Decision, state: LevenbergMarquardtState) -> Array:
        """Steps taken, this one included if it is."""
        return tree.increment(state.count, decision.accepted, self.rule.period)

    def _predicted_decrease(
        self, batch: BatchLoss, decision: Decision, slope: Array
    ) -> Array:
        """M(0) − M(d) of the full step, in nats; `slope` is −⟨g, d⟩."""
        if decision.decrease is not None:
            return decision.decrease
        step = decision.modelled
        forms = fisher_forms(
            batch.model, batch.params, batch.arguments["inputs"], self.labels
        )
        square = forms((step,))[0, 0] + self.weight_decay * tree.inner(step, step)
        return slope - square / 2

    def after_step(
        self,
        batch: BatchLoss,
        decision: Decision,
        ratio: Ratio,
        damping: StepDamping,
    ) -> StepDamping:
        """λ of the next step: by ρ where it was measured, raised where d fell short.

        Args:
            batch: of this step.
            decision: on this step.
            ratio: its ρ.
            damping: of this step.

        Returns:
            The damping after the step.
        """
        strength, gradient = damping.strength, batch.gradient
        eased = self.rule.accepted(strength, ratio.value)
        eased = jnp.where(damping.may_fall, eased, jnp.maximum(eased, strength))
        unblamed = jnp.where(ratio.measured, eased, strength)
        # Not where nothing was to be gained, nor where no λ so large can be at fault.
        largest = jnp.finfo(batch.value.dtype).max
        overflows = strength**2 < tree.inner(gradient, gradient) / largest
        rounding = decision.comparison.rounding
        gains = ~(jnp.abs(ratio.decrease) <= rounding)  # NaN is no rounding
        at_fault = jnp.where(tree.any_nonzero(decision.full_step), gains, overflows)
        blamed = batch.finite & decision.fell_short & at_fault
        raised, growth = self.rule.rejected(strength, damping.growth)
        unblamed_growth = jnp.where(decision.accepted, 2, damping.growth)
        return StepDamping(
            jnp.where(blamed, raised, unblamed),
            jnp.where(blamed, growth, unblamed_growth),
            damping.may_fall,
        )
