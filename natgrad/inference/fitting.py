"""Fits: many steps of the learning rule in one `lax.scan`, on all data or batches."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from natgrad.arguments import check_count
from natgrad.inference.evidence import LearningRule
from natgrad.inference.learning_rule import InferenceState, init, step
from natgrad.typing import Array, ArrayLike, Key


class Fit(NamedTuple):
    """What a fit returns.

    Attributes:
        state: after the last step.
        elbo: [steps] in nats, after each step; on batches an estimate of it.
        rate: [steps], the step size that was taken.
        change: [steps] in nats, KL both ways over each step.
    """

    state: InferenceState
    elbo: Array
    rate: Array
    change: Array


def fit(
    rule: LearningRule,
    start: Array,
    prior: Any,
    data: Any,
    steps: int,
    rho: ArrayLike = 1.0,
    key: Key | None = None,
) -> Fit:
    """`steps` steps on all data, differentiable in everything but `steps` and `key`.

    Under `jax.jit` a start whose ELBO is not finite cannot raise: every step then has
    `rate` 0 and q stays as it was.

    Args:
        rule: the specification.
        start: η of the first law, such as the prior's.
        prior: natural parameters of the prior, or the data of `rule.log_prior`.
        data: of `rule.log_likelihood`.
        steps: how many.
        rho: the step size before halvings: one, or [steps].
        key: for rules that draw; each step has its own.

    Returns:
        The law after the last step, and how the steps went.

    Raises:
        ValueError: the ELBO at the start, or its gradient, is not finite; or `steps` or
            `rho` cannot be.
    """

    def advance(state, inputs):
        rho, key = inputs
        return step(rule, state, prior, data, rho, 1.0, key)

    fitted = _scan(rule, start, steps, rho, key, advance)
    _check_start(rule, fitted)
    return fitted


def fit_batches(
    rule: LearningRule,
    start: Array,
    prior: Any,
    data: Any,
    steps: int,
    rho: ArrayLike,
    key: Key,
    batch_size: int,
) -> Fit:
    """`steps` steps, each on a batch drawn anew without replacement.

    Noise of the batches stays in q unless ρ falls: give [steps] of them.

    Args:
        rule: the specification.
        start: η of the first law, such as the prior's.
        prior: natural parameters of the prior, or the data of `rule.log_prior`.
        data: of `rule.log_likelihood`; every leaf has its N examples in the first axis.
        steps: how many.
        rho: the step size before halvings: one, or [steps].
        key: for the batches, and for rules that draw.
        batch_size: B, examples in a batch.

    Returns:
        The law after the last step, and how the steps went.

    Raises:
        ValueError: `batch_size` or `data` do not fit, or as for `fit`.
    """
    sizes = {leaf.shape[:1] for leaf in jax.tree.leaves(data)}
    if len(sizes) != 1 or () in sizes:
        names = sorted(str(size[0]) if size else "None" for size in sizes)
        raise ValueError(
            f"fit_batches: the leaves of data have the first axes {names}; expected "
            "arrays with one number of examples N."
        )
    ((size,),) = sizes
    if not isinstance(batch_size, int) or not 0 < batch_size <= size:
        raise ValueError(
            f"fit_batches: batch_size is {batch_size!r}; expected an integer from 1 to "
            f"N = {size}."
        )

    def advance(state, inputs):
        rho, key = inputs
        which, key = jax.random.split(key)
        rows = jax.random.choice(which, size, (batch_size,), replace=False)
        batch = jax.tree.map(lambda leaf: leaf[rows], data)
        return step(rule, state, prior, batch, rho, size / batch_size, key)

    fitted = _scan(rule, start, steps, rho, key, advance)
    _check_start(rule, fitted)
    return fitted


def _check_start(rule: LearningRule, fitted: Fit) -> None:
    """Raise where no step could be taken; where values are known, so not under jit."""
    if isinstance(fitted.rate, Tracer) or fitted.rate.size == 0:
        return
    if not jnp.any(fitted.rate > 0):
        raise ValueError(
            "No step could be taken: rho, the ELBO at the start or its gradient is not "
            f"finite. That ELBO is {fitted.elbo[0]}; E_q[log p(D | w)] overflows where "
            f"q is wide. Start from a narrower law of {rule.family!r} (`start` need "
            "not be the prior; a hundredth of its covariance, say), scale the inputs, "
            "or use x64."
        )


def _scan(rule, start, steps, rho, key, advance) -> Fit:
    check_count("steps", steps, least=0)
    state = init(rule, start)
    known = np.ones(()) if isinstance(rho, Tracer) else np.asarray(rho)
    if jnp.shape(rho) not in ((), (steps,)) or not np.all(known > 0):
        raise ValueError(f"rho must be positive, one or [steps], got {rho}.")
    rates = jnp.broadcast_to(jnp.asarray(rho, state.natural.dtype), (steps,))
    keys = None if key is None else jax.random.split(key, steps)

    def body(state, inputs):
        state = advance(state, inputs)
        return state, (state.elbo, state.rate, state.change)

    state, trace = jax.lax.scan(body, state, (rates, keys))
    return Fit(state, *trace)
