"""Damping rules: step count -> λ, the multiple of the identity added to F.

A trust region bounds the step instead (or as well), by its length in the metric F.

F is a mean over the batch in nats, so λ has the units of F, nats per squared unit of
the parameters, whatever the batch size.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import final

import jax
import jax.numpy as jnp
import numpy as np

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
    check_scalar("damping", damping)
    if not isinstance(damping, jax.core.Tracer) and not 0 <= float(damping) < jnp.inf:
        raise ValueError(
            f"damping must be finite and at least 0, got {damping}: it is added to the "
            "eigenvalues of a positive semi-definite matrix."
        )
    return lambda _count: damping


def check_scalar(name: str, value: ArrayLike | Damping) -> None:
    """Raise a ValueError for what is neither a real scalar nor a schedule."""
    if not callable(value):
        check_number(name, value, "a scalar or a schedule")


def check_number(name: str, value: ArrayLike, expected: str = "a scalar") -> None:
    """Raise a ValueError for what is no real scalar."""
    number = value if isinstance(value, jax.Array) else np.asarray(value)
    real = jnp.issubdtype(number.dtype, jnp.number) and not jnp.iscomplexobj(number)
    if not real:
        raise ValueError(
            f"{name} must be {expected}, got {value!r}. Optimizers take the learning "
            "rate first and the model second: natural_gradient(0.1, model, "
            "damping=1e-3)."
        )
    if number.ndim != 0:
        raise ValueError(f"{name} must be {expected}, got shape {number.shape}.")


@final
@dataclasses.dataclass(frozen=True)
class TrustRegion:
    """Shrinks steps −η d whose KL divergence ½ η² ⟨d, F d⟩ exceeds δ, to δ.

        α = min(1, √(2δ / (η² ⟨d, F d⟩)))

    Attributes:
        radius: δ, in nats an example, or a schedule.
        learning_rate: η, the same as that of the transformation that follows.

    Source: Ba, Grosse & Martens (2017), Distributed second-order optimization using
    Kronecker-factored approximations, section 5.
    """

    radius: ArrayLike | Damping
    learning_rate: ArrayLike | Damping

    def shrinkage(self, count: Array, square: Array) -> Array:
        """α for the step d of this count with ⟨d, F d⟩ = `square`; shape ()."""
        at = lambda value: value(count) if callable(value) else value
        whole = at(self.learning_rate) ** 2 * square
        outside = whole > 2 * at(self.radius)
        return jnp.where(
            outside, jnp.sqrt(2 * at(self.radius) / jnp.where(outside, whole, 1)), 1
        )
