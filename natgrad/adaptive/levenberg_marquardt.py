"""Levenberg-Marquardt: damping from the reduction ratio, and bad steps undone.

    ρ = (loss(θ) − loss(θ + d)) / (M(0) − M(d)),   M(d) = ⟨g, d⟩ + ½ ⟨d, (F + η I) d⟩

λ is in the solve that gives d and not in M, so that ρ = 1 for a loss that is quadratic.
(Martens & Grosse leave it in M, which makes ρ larger.) Both losses are of one batch.

A step is rejected if it raises the loss, or if the loss before it or after it, the
gradient or the step is not finite, or if the transformation inside skipped it. Then the
update is −0, which leaves every parameter as it is bit for bit, the state inside is
what it was, its random key included, and λ is raised.

A transformation inside that keeps much can ask before it changes anything: it gets
`accept=`, a function (step, decrease=None) -> is the step taken?, to be called with
the step it is about to return, and with M(0) − M(d) if it knows it. Others are put back
as they were, which reads and writes their whole state in every step.

Source: Marquardt (1963), An algorithm for least-squares estimation of nonlinear
parameters; Martens (2010), Deep learning via Hessian-free optimization, section 4.1;
Martens & Grosse (2015), section 6.5.
"""

from __future__ import annotations

import inspect
import operator
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from natgrad import placeholders, tree
from natgrad.adaptive.forms import EXACT, check_batch, fisher_forms, part
from natgrad.adaptive.rules import LossFloor, Rule, Thresholds
from natgrad.arguments import MISSING, transformation
from natgrad.curvature.labels import Labels
from natgrad.damping import as_damping
from natgrad.health import Undone, first_failure
from natgrad.model import Model
from natgrad.solvers import any_member
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
    of them, and `grad=` besides. Cost: a forward pass and, unless `inner` knows
    the decrease its model predicts, every `rule.period` steps a forward derivative.

    Args:
        inner: the transformation whose steps these are.
        model: the statistical model, for the predicted decrease.
        damping: λ of the first step.
        rule: how ρ changes λ: `Thresholds()` or `Nielsen()`.
        floor: what λ does not fall below.
        weight_decay: η, if the loss has ½ η |θ|² beside the model's.
        labels: whose F, as for `fisher_forms`.

    Raises:
        ValueError: where `value=`, `value_fn=`, `inputs=` or `params` is missing.
    """
    start = as_damping(damping)
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
        dtype = state.damping.dtype
        before = jnp.asarray(value, dtype)
        strength = jnp.maximum(state.damping, floor.of(before).astype(dtype))
        # A floor that is not finite comes from a loss that is not: rejected below.
        strength = jnp.where(jnp.isfinite(strength), strength, state.damping)
        batch = extra_args | {"inputs": inputs, "model_params": model_params}
        handed = {"grad": updates} | batch | {"value": value, "damping": strength}
        asked: list[_Decision] = []

        def accept(step: Params, decrease: Array | None = None) -> Array:
            asked.append(decided(step, decrease))
            return asked[-1].taken

        def decided(step, decrease):
            ahead = optax.apply_updates(params, step)
            if model_params is not None:
                ahead = placeholders.fill_placeholders(ahead, model_params)
            after = jnp.asarray(_called(value_fn, ahead, batch), dtype)
            still = jnp.logical_not(_any_nonzero(step)) & _any_nonzero(updates)
            taken = tree.all_finite((updates, step, before, after))
            taken = taken & (after <= before) & ~still
            return _Decision(step, taken, after, decrease)

        handed["accept"] = accept
        handed["value_fn"] = _taking_all(value_fn, handed)
        step, inside = inner.update(updates, state.inner, params, **handed)
        if len(asked) == 1 and _same(asked[0].step, step):
            decision = asked[0]
        else:
            decision = decided(step, None)
            inside = tree.where(decision.taken, inside, state.inner)
        _, taken, after, decrease = decision
        reason = first_failure(
            tree.all_finite((updates, before)),
            True,
            True,
            tree.all_finite(step) & (_any_nonzero(step) | ~_any_nonzero(updates)),
        )
        undone = state.undone.times + (reason > 0)

        def predicted():
            if decrease is not None:
                return decrease
            forms = fisher_forms(part(model, model_params), params, inputs, labels)
            square = forms((step,))[0, 0] + weight_decay * tree.inner(step, step)
            return -tree.inner(updates, step) - square / 2

        def measured():
            fall = predicted().astype(dtype)
            large = fall > 8 * jnp.finfo(dtype).eps * jnp.abs(before)
            ratio = (before - after) / jnp.where(large, fall, 1)
            ratio = jnp.where(large, ratio, 0.5)  # rounding: no reason for a change
            return ratio, rule.accepted(strength, ratio)

        kept = lambda: (state.ratio, strength)
        count = tree.increment(state.count, taken, rule.period)
        due = taken & (count % rule.period == 0)
        ratio, eased = jax.lax.cond(any_member(due), measured, kept)
        ratio = jnp.where(due, ratio, state.ratio).astype(dtype)
        eased = jnp.where(due, eased, strength).astype(dtype)
        raised, growth = rule.rejected(strength, state.growth)
        raised = jnp.minimum(raised, jnp.sqrt(jnp.finfo(dtype).max))
        return jax.tree.map(lambda d: jnp.where(taken, d, -0.0), step), (
            LevenbergMarquardtState(
                count=count,
                damping=jnp.where(taken, eased, raised).astype(dtype),
                growth=jnp.where(taken, 2, growth).astype(dtype),
                ratio=ratio,
                rejected=~taken,
                rejections=tree.increment(state.rejections, ~taken),
                inner=inside,
                undone=Undone(reason, undone),
            )
        )

    return transformation(init, update)


class _Decision(NamedTuple):
    """A step, whether it is taken, the loss after it, and M(0) − M(step) if known."""

    step: Params
    taken: Array
    after: Array
    decrease: Array | None


def _same(step: Params, other: Params) -> bool:
    """Are they the very same arrays?"""
    leaves, others = jax.tree.leaves(step), jax.tree.leaves(other)
    return len(leaves) == len(others) and all(map(operator.is_, leaves, others))


def _called(value_fn: Callable, params: Any, known: dict[str, Any]) -> Array:
    """value_fn(params), with the extra arguments it has parameters for."""
    names = list(inspect.signature(value_fn).parameters)[1:]
    return value_fn(params, **{name: known[name] for name in names if name in known})


def _taking_all(value_fn: Callable, known: dict[str, Any]) -> Callable:
    """value_fn with all these as parameters; optax's line searches refuse others."""

    def of(params, **given):
        return _called(value_fn, params, given)

    kinds = inspect.Parameter
    of.__signature__ = inspect.Signature(
        [
            kinds("params", kinds.POSITIONAL_ONLY),
            *(kinds(name, kinds.KEYWORD_ONLY) for name in known),
        ]
    )
    return of


def _any_nonzero(values: Any) -> Array:
    """Is some entry not 0? NaN is not."""
    found = [jnp.any(leaf != 0) for leaf in jax.tree.leaves(values)]
    return jnp.any(jnp.stack(found))
