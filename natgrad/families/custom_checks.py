"""Checks of what a user gives for a law of their own, where values can be known."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.core import Tracer

from natgrad.families.expectations import ROUNDING, LogProb
from natgrad.typing import Array


def check_sum(who: str, log_prob: LogProb, z: Array, labels: Array) -> None:
    """Check that `labels` are all labels of a law, where that can be known.

    Under a transformation z is not known, and the law at z = 0 stands for it.

    Args:
        who: the function that was given the labels, for the error.
        log_prob: (z, y) -> log p(y | z) in nats, shape ().
        z: the parameters of one factor.
        labels: [K, ...].

    Raises:
        ValueError: where the labels' probabilities are known not to sum to 1.
    """
    known = not isinstance(z, Tracer)
    with jax.ensure_compile_time_eval():
        z = z if known else jnp.zeros(z.shape, z.dtype)
        sum_of = lambda z: jnp.sum(jnp.exp(jax.vmap(lambda y: log_prob(z, y))(labels)))
        total = jax.jit(sum_of)(z)
        # Where z = 0 has no law, nothing is known.
        if isinstance(total, Tracer) or not (known or 0 < total < jnp.inf):
            return
        good = bool(jnp.abs(total - 1) <= ROUNDING)
    if not good:
        raise ValueError(
            f"{who}: the probabilities of the {labels.shape[0]} labels in support= sum "
            f"to {float(total):.6g} at z = {z}; expected 1. Give every label of the "
            "law once, an array [K, ...], or leave support out."
        )


def has_kink(
    kl: Callable[[Array, Array], Array], z: Array | jax.ShapeDtypeStruct
) -> bool:
    """Is the Hessian of kl(z, z2) at z2 = z not the curvature of its values there?

    As where an absolute value of the difference is in it.

    Args:
        kl: (z, z2) -> the divergence of one factor, shape ().
        z: its parameters, or their shape and dtype, for which any point will do.

    Returns:
        Whether there is a kink; False where that cannot be known.
    """
    with jax.ensure_compile_time_eval():
        if not isinstance(z, jax.Array) or isinstance(z, Tracer):
            z = 0.5 + 0.1 * jnp.cos(jnp.arange(z.size, dtype=z.dtype)).reshape(z.shape)
        eps = jnp.finfo(z.dtype).eps
        step = eps**0.25

        @jax.jit
        @jax.vmap
        def along(direction):
            d = direction.reshape(z.shape)
            of = lambda t: kl(z, z + t * d)
            second = jax.jacfwd(jax.jacfwd(of))(jnp.zeros((), z.dtype))
            both = jnp.asarray(step, z.dtype), jnp.asarray(-step, z.dtype)
            return sum(map(of, both)) / 2, 0.5 * step**2 * second

        value, quadratic = along(jnp.eye(z.size, dtype=z.dtype))
        if isinstance(value, Tracer):
            return False
        largest = jnp.maximum(jnp.abs(value), jnp.abs(quadratic))
        return bool(jnp.any(jnp.abs(value - quadratic) > 0.5 * largest + 50 * eps))
