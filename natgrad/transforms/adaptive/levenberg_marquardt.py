"""Levenberg-Marquardt: damping from the reduction ratio, and bad steps undone.

    ρ = (loss(θ) − loss(θ + d)) / (M(0) − M(d)),   M(d) = ⟨g, d⟩ + ½ ⟨d, (F + η I) d⟩

λ is in the solve that gives d and not in M, so that ρ = 1 for a loss that is quadratic.
(Martens & Grosse leave it in M, which makes ρ larger.) Both losses are of one batch.

A step is rejected if it raises the loss, or if the loss before it or after it, the
gradient or the step is not finite, or if the transformation inside skipped it. Then the
update is −0, which leaves every parameter as it is bit for bit, the state inside is
what it was, its random key included, and λ is raised.

λ is left alone where a step says nothing about it: where loss or gradient are not
finite, and where |M(0) − M(d)| is within r, the rounding of the loss. So λ outlives
convergence. And it has a limit: M(0) − M(d) is at most ⟨g, g⟩/(2 λ) for steps damped by
λI, so a λ above ⟨g, g⟩/(2 r) is not raised.

A step can fit what its batch has by chance, which the batch itself does not show. So
where the next batch is another one, the step is judged by that batch, too: one that
was too long there raises λ, and λ falls only while steps are of use there.

A transformation inside that keeps much can ask before it changes anything: it gets
`accept=`, a function (step, decrease=None) -> (the part of the step that is to be
returned, is it taken?), to be called with the step it is about to return, and with
M(0) − M(d) if it knows it. Others are put back as they were, which reads and writes
their whole state in every step.

Source: Marquardt (1963), An algorithm for least-squares estimation of nonlinear
parameters; Martens (2010), Deep learning via Hessian-free optimization, section 4.1;
Martens & Grosse (2015), section 6.5.
"""

from __future__ import annotations

import operator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from natgrad import tree
from natgrad.control_flow import any_over_vmap
from natgrad.curvature.labels import Labels
from natgrad.model import Model, placeholders
from natgrad.transforms.adaptive.comparison import called, compared, taking_all
from natgrad.transforms.adaptive.damping_rules import LossFloor, Rule, Thresholds
from natgrad.transforms.adaptive.decisions import (
    Decision,
    any_nonzero,
    decided,
    elsewhere,
)
from natgrad.transforms.adaptive.fisher_forms import (
    EXACT,
    check_batch,
    fisher_forms,
    part,
)
from natgrad.transforms.damping import as_damping
from natgrad.transforms.health import Undone, first_failure
from natgrad.transforms.validation import MISSING, transformation
from natgrad.typing import Array, ArrayLike, Params

THRESHOLDS = Thresholds()
NO_FLOOR = LossFloor(0.0)


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
        after: the loss of its batch after it; 0 before any.
        fall: by how much it had lowered that loss; 0 before any.
        inner: the state of the transformation inside.
        undone: the reason for `natgrad.check_health`, where the last step was rejected
            since something was not finite, and how many such steps there were.
    """

    count: Array
    damping: Array
    growth: Array
    ratio: Array
    rejected: Array
    rejections: Array
    update: Params
    after: Array
    fall: Array
    inner: Any
    undone: Undone


def levenberg_marquardt(
    inner: optax.GradientTransformation,
    model: Model,
    *,
    damping: ArrayLike = 1.0,
    rule: Rule = THRESHOLDS,
    floor: LossFloor = NO_FLOOR,
    weight_decay: ArrayLike = 0.0,
    labels: Labels = EXACT,
    halvings: int = 0,
) -> optax.GradientTransformationExtraArgs:
    """Adapt the damping of `inner`, and undo its steps that raise the loss.

    `inner` gives the whole update and takes `damping=`, as any chain does that has a
    `scale_by_curvature` in it:

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
        rule: how ρ changes λ: `Thresholds()` or `Nielsen()`.
        floor: what λ does not fall below.
        weight_decay: η, if the loss has ½ η |θ|² beside the model's.
        labels: whose F, as for `fisher_forms`.
        halvings: a step that raises the loss is halved so often before it is rejected;
            one that had to be halved raises λ as a rejected one does.

    Raises:
        ValueError: for impossible arguments, and where `value=`, `value_fn=`,
            `inputs=` or `params` is missing in `update`.
    """
    start = as_damping(damping)
    _check(damping, floor, halvings)
    inner = optax.with_extra_args_support(inner)

    def init(params):
        tree.check_params(params)
        dtype = tree.working_dtype(params)
        number = lambda value, dtype=dtype: jnp.full((), value, dtype)
        return LevenbergMarquardtState(
            count=number(0, jnp.int32),
            damping=number(start(0)),
            growth=number(2),
            ratio=number(1),
            rejected=number(False, bool),
            rejections=number(0, jnp.int32),
            update=jax.tree.map(jnp.zeros_like, params),
            after=number(0),
            fall=number(0),
            inner=inner.init(params),
            undone=Undone(number(0, jnp.int32), number(0, jnp.int32)),
        )

    def update(
        updates,
        state,
        params=None,
        *,
        inputs=MISSING,
        value=None,
        value_fn=None,
        model_params=None,
        **extra_args,
    ):
        check_batch("levenberg_marquardt", params, inputs)
        if value is None or value_fn is None:
            raise ValueError(
                "levenberg_marquardt compares the loss before and after the step: call "
                "update(gradient, state, params, inputs=x, value=loss, value_fn="
                "params -> loss of the same batch), or value_fn=model.loss and "
                "targets=y too."
            )
        tree.check_kept(state.update, params)
        dtype = state.damping.dtype
        before = jnp.asarray(value, dtype)
        sound = tree.all_finite((updates, before))
        batch = extra_args | {"inputs": inputs, "model_params": model_params}
        mine = part(model, model_params) if value_fn == model.loss else None

        def loss(params):
            if model_params is not None:
                params = placeholders.fill_placeholders(params, model_params)
            return jnp.asarray(called(value_fn, params, batch), dtype)

        harmed, useless = elsewhere(
            loss, params, updates, before, sound, state.update, state.after, state.fall
        )
        raised, growth = rule.rejected(state.damping, state.growth)
        strength = jnp.where(harmed, raised, state.damping)
        growth = jnp.where(harmed, growth, state.growth)
        lowest = floor.of(before).astype(dtype)
        # A floor that is not finite comes from a loss that is not: rejected below.
        strength = jnp.maximum(strength, jnp.where(jnp.isfinite(lowest), lowest, 0))
        handed = {"grad": updates} | batch | {"value": value, "damping": strength}
        asked: list[Decision] = []

        def accept(step: Params, decrease: Array | None = None) -> tuple[Params, Array]:
            asked.append(judged(step, decrease))
            return asked[-1].step, asked[-1].taken

        def judged(step, decrease):
            compare = lambda p: compared(mine, loss, before, params, p, batch)
            moves = any_nonzero(step) | ~any_nonzero(updates)
            return decided(compare, params, sound & moves, step, decrease, halvings)

        handed["accept"] = accept
        handed["value_fn"] = taking_all(value_fn, handed)
        step, inside = inner.update(updates, state.inner, params, **handed)
        if len(asked) == 1 and _same(asked[0].step, step):
            decision = asked[0]
        else:
            decision = judged(step, None)
            inside = tree.where(decision.taken, inside, state.inner)
        whole, length, step, taken, found, decrease = decision
        reason = first_failure(
            sound,
            True,
            True,
            tree.all_finite(whole) & (any_nonzero(whole) | ~any_nonzero(updates)),
        )
        undone = state.undone.times + (reason > 0)

        def promised():
            slope = -tree.inner(updates, whole)
            if decrease is not None:
                return slope.astype(dtype), decrease.astype(dtype)
            forms = fisher_forms(part(model, model_params), params, inputs, labels)
            square = forms((whole,))[0, 0] + weight_decay * tree.inner(whole, whole)
            return slope.astype(dtype), (slope - square / 2).astype(dtype)

        count = tree.increment(state.count, taken, rule.period)
        due = taken & (count % rule.period == 0)
        missed = sound & (~taken | (length < 1))
        nothing = lambda: (jnp.zeros((), dtype),) * 2
        slope, fall = jax.lax.cond(any_over_vmap(due | missed), promised, nothing)
        predicted = length * slope - length**2 * (slope - fall)
        due = due & (predicted > found.rounding)
        ratio = jnp.where(due, found.fall / jnp.where(due, predicted, 1), state.ratio)
        eased = rule.accepted(strength, ratio)
        eased = jnp.where(useless, jnp.maximum(eased, strength), eased)
        damping = jnp.where(due, eased, strength)
        # Not where nothing was to be gained, nor where no λ so large can be at fault.
        overflows = strength**2 < tree.inner(updates, updates) / jnp.finfo(dtype).max
        told = ~(jnp.abs(fall) <= found.rounding)  # NaN is no rounding
        blamed = missed & jnp.where(any_nonzero(whole), told, overflows)
        raised, grown = rule.rejected(strength, growth)
        damping = jnp.where(blamed, raised, damping)
        growth = jnp.where(blamed, grown, jnp.where(taken, 2, growth))
        return jax.tree.map(lambda d: jnp.where(taken, d, -0.0), step), (
            LevenbergMarquardtState(
                count=count,
                damping=damping.astype(dtype),
                growth=growth.astype(dtype),
                ratio=ratio.astype(dtype),
                rejected=~taken,
                rejections=tree.increment(state.rejections, ~taken),
                update=tree.where(taken, step, state.update),
                after=jnp.where(taken, found.after, state.after),
                fall=jnp.where(taken, found.fall, state.fall),
                inner=inside,
                undone=Undone(reason, undone),
            )
        )

    return transformation(init, update)


def _check(damping: ArrayLike, floor: LossFloor, halvings: int) -> None:
    known = not callable(damping) and not isinstance(damping, jax.core.Tracer)
    if known and float(damping) == 0 and floor.coefficient == 0:
        raise ValueError(
            "levenberg_marquardt multiplies λ, and 0 stays 0: give it damping > 0, or "
            f"a floor such as natgrad.adaptive.LossFloor(); got damping={damping}."
        )
    if not isinstance(halvings, int) or halvings < 0:
        raise ValueError(
            f"halvings must be an integer >= 0, got {halvings!r}. Under "
            "optax.inject_hyperparams name it in static_args."
        )


def _same(step: Params, other: Params) -> bool:
    """Are they the very same arrays?"""
    leaves, others = jax.tree.leaves(step), jax.tree.leaves(other)
    return len(leaves) == len(others) and all(map(operator.is_, leaves, others))
