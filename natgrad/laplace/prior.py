"""Precisions of the prior that maximise the evidence.

Source: MacKay (1992), Bayesian interpolation; Immer et al. (2021).
"""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Float

from natgrad.laplace.posterior import Posterior
from natgrad.typing import Array, ArrayLike


def fit_prior(
    posterior: Posterior,
    loss: ArrayLike,
    optimizer: optax.GradientTransformation | None = None,
    num_steps: int = 100,
) -> tuple[Posterior, Float[Array, " steps"]]:
    """The posterior with the prior precisions that maximise its evidence, θ fixed.

    By steps in log δ, so that each precision stays positive; one number for all, or as
    many as `posterior.prior_precision` has.

    Args:
        posterior: where to start, with a precision > 0 for each part.
        loss: `model.loss` at θ over all training data, in nats an example.
        optimizer: of optax, on log δ; None for `optax.adam(0.1)`.
        num_steps: how many.

    Returns:
        The posterior, and the log evidence before each step.
    """
    optimizer = optimizer or optax.adam(0.1)

    def with_logs(logs):
        precision = jax.tree.map(jnp.exp, logs)
        return dataclasses.replace(posterior, prior_precision=precision)

    def negative(logs):
        return -with_logs(logs).log_evidence(loss)

    def step(carry, _):
        logs, state = carry
        value, gradient = jax.value_and_grad(negative)(logs)
        updates, state = optimizer.update(gradient, state, logs)
        return (optax.apply_updates(logs, updates), state), -value

    dtype = posterior.metric.layout.dtype
    logs = jax.tree.map(
        lambda own: jnp.log(jnp.asarray(own, dtype)), posterior.prior_precision
    )
    start = logs, optimizer.init(logs)
    (logs, _), evidence = jax.lax.scan(step, start, length=num_steps)
    return with_logs(logs), evidence
