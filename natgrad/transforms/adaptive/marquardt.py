"""Levenberg-Marquardt: damping from the reduction ratio, and bad steps undone.

    ρ = (loss(θ) − loss(θ + d)) / (M(0) − M(d)),   M(d) = ⟨g, d⟩ + ½ ⟨d, (F + η I) d⟩

`natgrad.transforms.adaptive.damping_by_ratio` says how λ follows from ρ.

A step is rejected if it raises the loss, or if the loss before it or after it, the
gradient or the step is not finite, or if the transformation inside skipped it. Then the
update is −0, which leaves every parameter as it is bit for bit, the state inside is
what it was, its random key included, and λ is raised.

A transformation inside that keeps much can ask before it changes anything: it gets
`accept=`, a function (step, decrease=None) -> (the part of the step that is to be
returned, is it taken?), to be called with the step it is about to return, and with
M(0) − M(d) if it knows it. Others are put back as they were, which reads and writes
their whole state in every step. One that corrects a step v beyond the quadratic model
calls `judge_by=` with v: ρ is then the decrease by v + correction over what M predicts
for v, which M may think better than the corrected step.

Source: Marquardt (1963), An algorithm for least-squares estimation of nonlinear
parameters; Martens (2010), Deep learning via Hessian-free optimization, section 4.1;
Martens & Grosse (2015), section 6.5.
"""

from __future__ import annotations

import dataclasses
import operator
from collections.abc import Callable
from typing import Any, cast

import jax
import jax.numpy as jnp
import optax

from natgrad import tree
from natgrad.arguments import check_weight_decay, known_value
from natgrad.curvature.labels import Labels
from natgrad.eager import call
from natgrad.model import Model
from natgrad.solvers.damping import DampingLike, is_by_layer, resolve_damping
from natgrad.transforms.adaptive.acceptance import Decision, decide, moves
from natgrad.transforms.adaptive.batch_loss import BatchLoss, with_signature_of
from natgrad.transforms.adaptive.damping_by_ratio import (
    DampingByRatio,
    LevenbergMarquardtState,
    Ratio,
    StepDamping,
)
from natgrad.transforms.adaptive.damping_rules import LossFloor, Rule, Thresholds
from natgrad.transforms.adaptive.quadratic_forms import EXACT, check_batch, part
from natgrad.transforms.damping import Damping, as_damping, first_damping
from natgrad.transforms.health import Undone, first_failure
from natgrad.transforms.validation import MISSING, check_state, transformation
from natgrad.tree import Layout, of_pairs
from natgrad.typing import Array, ArrayLike, Params

THRESHOLDS = Thresholds()
NO_FLOOR = LossFloor(0.0)


def levenberg_marquardt(
    inner: optax.GradientTransformation,
    model: Model,
    *,
    damping: DampingLike | Damping = 1.0,
    rule: Rule = THRESHOLDS,
    floor: LossFloor = NO_FLOOR,
    weight_decay: ArrayLike = 0.0,
    labels: Labels = EXACT,
    halvings: int = 0,
) -> optax.GradientTransformationExtraArgs:
    """Adapt the damping of `inner`, and undo its steps that raise the loss.

    `inner` gives the whole update and takes `damping=`, as any chain does that has a
    `scale_by_curvature` in it, of which damping by layer is multiplied by λ:

        inner = optax.chain(scale_by_curvature(curvature), optax.scale(-1.0))
        tx = levenberg_marquardt(inner, model)
        tx.update(
            grads, state, params, inputs=x, targets=y, value=loss, value_fn=model.loss
        )

    `value_fn(params, ...)` is the loss of the same batch, and gets those extra
    arguments that it has parameters for, as in optax's line searches. `inner` gets all
    of them, and `grad=` besides. Cost: a forward pass, where the batch is another one
    than before a second, and, unless `inner` knows the decrease its model predicts,
    every `rule.period` steps and in rejected ones a forward derivative.

    Losses that differ by their rounding are compared by the scores of the model, if
    `value_fn` is `model.loss`; by their difference, if it is anything else.

    Args:
        inner: the transformation whose steps these are.
        model: the statistical model, for the predicted decrease.
        damping: λ > 0 of the first step; 0 only with a floor, since it is multiplied.
            By layer it is Λ, or a schedule of it, and steps are damped by λ Λ, with
            λ = 1 in the first; `inner` then needs none of its own.
        rule: how ρ changes λ: `Thresholds()` or `Nielsen()`.
        floor: what λ does not fall below.
        weight_decay: η, if the loss has ½ η |θ|² beside the model's.
        labels: whose F, as for `fisher_forms`.
        halvings: a step that raises the loss is halved so often before it is rejected;
            one that had to be halved raises λ as a rejected one does.

    Returns:
        The transformation; its update is to be added to the parameters as it is.

    Raises:
        ValueError: for impossible arguments, and in `update` where `value=`,
            `value_fn=`, `inputs=` or `params` is missing or the damping does not fit
            the parameters.
    """
    own_damping = as_damping(damping)
    check_weight_decay(weight_decay)
    _check(damping, floor, halvings)
    method = _Method(
        optax.with_extra_args_support(inner),
        model,
        own_damping,
        is_by_layer(first_damping(own_damping)),
        DampingByRatio(rule, floor, weight_decay, labels),
        halvings,
    )
    return transformation(*of_pairs(method.init, method.update))


@dataclasses.dataclass(frozen=True)
class _Method:
    """The arguments of `levenberg_marquardt`, and an update as a path of steps."""

    inner: optax.GradientTransformationExtraArgs
    model: Model
    own_damping: Damping
    by_layer: bool
    adaptation: DampingByRatio
    halvings: int

    def init(self, params: Params) -> LevenbergMarquardtState:
        tree.check_params(params)
        dtype = tree.working_dtype(params)

        def number(value, dtype: Any = dtype):
            return jnp.full((), value, dtype)

        return LevenbergMarquardtState(
            count=number(0, jnp.int32),
            damping=number(1 if self.by_layer else first_damping(self.own_damping)),
            growth=number(2),
            ratio=number(1),
            rejected=number(False, bool),
            rejections=number(0, jnp.int32),
            update=jax.tree.map(jnp.zeros_like, params),
            after=number(0),
            fall=number(0),
            inner=self.inner.init(params),
            undone=Undone(number(0, jnp.int32), number(0, jnp.int32)),
        )

    def update(
        self,
        updates: Params,
        state: LevenbergMarquardtState,
        params: Params | None = None,
        *,
        value: ArrayLike | None = None,
        value_fn: Callable[..., Array] | None = None,
        **arguments: Any,
    ) -> tuple[Params, LevenbergMarquardtState]:
        check_batch("levenberg_marquardt", params, arguments.get("inputs", MISSING))
        if value is None or value_fn is None:
            raise ValueError(
                "levenberg_marquardt compares the loss before and after the step: call "
                "update(gradient, state, params, inputs=x, value=loss, value_fn="
                "params -> loss of the same batch), or value_fn=model.loss and "
                "targets=y too."
            )
        check_state(state, LevenbergMarquardtState)
        tree.check_kept(state.update, params)
        arguments = {"model_params": None} | arguments
        number = jnp.asarray(value, state.damping.dtype)
        batch = BatchLoss(
            model=part(self.model, arguments["model_params"]),
            params=params,
            gradient=updates,
            value=number,
            finite=tree.all_finite((updates, number)),
            value_fn=value_fn,
            arguments=arguments,
            is_models_own=value_fn == self.model.loss,
        )
        return self.step(batch, state, value)

    def step(
        self, batch: BatchLoss, state: LevenbergMarquardtState, value: ArrayLike
    ) -> tuple[Params, LevenbergMarquardtState]:
        """The update and the next state; `value` is the loss as `update` got it."""
        damping = self.adaptation.before_step(batch, state)
        decision, inner = self.inner_step(batch, state, damping.strength, value)
        ratio = self.adaptation.ratio(batch, decision, state)
        damping = self.adaptation.after_step(batch, decision, ratio, damping)
        update = jax.tree.map(
            lambda d: jnp.where(decision.accepted, d, -0.0), decision.step
        )
        state = self.next_state(batch, decision, state, damping, ratio)
        return update, state._replace(inner=inner)

    def inner_step(
        self,
        batch: BatchLoss,
        state: LevenbergMarquardtState,
        strength: Array,
        value: ArrayLike,
    ) -> tuple[Decision, Any]:
        """The decision on the step of the transformation inside, and its state then."""
        decisions: list[Decision] = []
        modelled: list[Params] = []

        def accept(step: Params, decrease: Array | None = None) -> tuple[Params, Array]:
            decisions.append(decide(batch, step, decrease, self.halvings))
            return decisions[-1].step, decisions[-1].accepted

        arguments = {"grad": batch.gradient} | dict(batch.arguments)
        arguments |= {"value": value, "accept": accept}
        arguments["damping"] = self.damping_of_step(batch, state, strength)
        arguments["judge_by"] = modelled.append
        arguments["value_fn"] = with_signature_of(batch.value_fn, arguments)
        step, inner = self.inner.update(
            batch.gradient, state.inner, batch.params, **arguments
        )
        if len(decisions) == 1 and _same_arrays(decisions[0].step, step):
            return decisions[0], inner
        decision = decide(batch, step, None, self.halvings)
        if modelled:
            decision = decision._replace(modelled=modelled[-1])
        return decision, tree.where(decision.accepted, inner, state.inner)

    def damping_of_step(
        self, batch: BatchLoss, state: LevenbergMarquardtState, strength: Array
    ) -> DampingLike:
        """λ, or λ Λ."""
        if not self.by_layer:
            return strength
        own = call(self.own_damping, state.count)
        own = resolve_damping(own, Layout.of(batch.params))
        return jax.tree.map(lambda number: strength * number, own)

    def next_state(
        self,
        batch: BatchLoss,
        decision: Decision,
        state: LevenbergMarquardtState,
        damping: StepDamping,
        ratio: Ratio,
    ) -> LevenbergMarquardtState:
        """The state after the step, but for the `inner` one."""
        accepted, dtype = decision.accepted, state.damping.dtype
        sound = tree.all_finite(decision.full_step) & moves(batch, decision.full_step)
        reason = first_failure(batch.finite, True, True, sound)
        comparison = decision.comparison
        return state._replace(
            count=self.adaptation.count_after(decision, state),
            damping=damping.strength.astype(dtype),
            growth=damping.growth.astype(dtype),
            ratio=ratio.value.astype(dtype),
            rejected=~accepted,
            rejections=tree.increment(state.rejections, ~accepted),
            update=tree.where(accepted, decision.step, state.update),
            after=jnp.where(accepted, comparison.after, state.after),
            fall=jnp.where(accepted, comparison.fall, state.fall),
            undone=Undone(reason, state.undone.times + (reason > 0)),
        )


def _check(damping: DampingLike, floor: LossFloor, halvings: int) -> None:
    known = not (callable(damping) or is_by_layer(damping))
    value = known_value(cast(ArrayLike, damping)) if known else None
    if value == 0 and floor.coefficient == 0:
        raise ValueError(
            "levenberg_marquardt multiplies λ, and 0 stays 0: give it damping > 0, or "
            f"a floor such as natgrad.adaptive.LossFloor(); got damping={damping}."
        )
    if not isinstance(halvings, int) or halvings < 0:
        raise ValueError(
            f"halvings must be an integer >= 0, got {halvings!r}. Under "
            "optax.inject_hyperparams name it in static_args."
        )


def _same_arrays(step: Params, other: Params) -> bool:
    """Are they the very same arrays?"""
    leaves, others = jax.tree.leaves(step), jax.tree.leaves(other)
    return len(leaves) == len(others) and all(map(operator.is_, leaves, others))
