"""Damping rules: step count -> λ, the multiple of the identity added to F.

F is a mean over the batch in nats, so λ has the units of F, nats per squared unit of
the parameters, whatever the batch size.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from natgrad.typing import Array, ArrayLike

Damping = Callable[[Array], ArrayLike]


def as_damping(damping: ArrayLike | Damping) -> Damping:
    """A rule from a constant, or from a rule such as an optax schedule.

    Raises:
        ValueError: for a constant that is negative, not finite, or not a scalar. A
            traced or scheduled value cannot raise: a step with a negative or
            non-finite λ is skipped, and the state's health says so.
    """
    if callable(damping):
        return damping
    if jnp.ndim(damping) != 0:
        raise ValueError(
            f"damping must be a scalar or a schedule, got shape {jnp.shape(damping)}."
        )
    if not isinstance(damping, jax.core.Tracer) and not 0 <= float(damping) < jnp.inf:
        raise ValueError(
            f"damping must be finite and at least 0, got {damping}: it is added to the "
            "eigenvalues of a positive semi-definite matrix."
        )
    return lambda _count: damping
