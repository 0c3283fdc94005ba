"""Checks of constants and values, and a Fisher information that is diagonal."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from natgrad.typing import Array


def check_positive(name: str, value: object, cure: str, *, integer: bool = False):
    """Check a constant of a law.

    Args:
        name: of the law and the constant, for the error.
        value: what was given; a traced value is let through.
        cure: what to do instead, for the error.
        integer: whether it must be an integer.

    Raises:
        ValueError: unless `value` is one finite positive number.
    """
    if isinstance(value, Tracer):
        return
    number = np.asarray(value)
    real = number.dtype.kind in "iuf" and number.ndim == 0
    good = real and np.isfinite(number) and number > 0
    if not good or (integer and number != np.floor(number)):
        kind = "integer" if integer else "finite number"
        raise ValueError(f"{name} is {value!r}; expected one positive {kind}: {cure}.")


def inside(domain: Array, value: Array) -> Array:
    """The value where it is inside of its domain, NaN elsewhere."""
    return jnp.where(domain, value, jnp.nan)


def resolved(difference: Array, scale: Array) -> Array:
    """A difference of numbers of this size; NaN unless it is positive beyond rounding.

    It is a distance from the boundary of a domain: where it is rounding alone, what is
    computed from it would look like an answer.
    """
    return inside(difference > 8 * jnp.finfo(difference.dtype).eps * scale, difference)


def aligned(array: np.ndarray | Array, like: Array) -> Array:
    """The constant in the precision of `like`, as its trailing axes."""
    shape = (1,) * (like.ndim - array.ndim) + array.shape
    return jnp.asarray(array, like.dtype).reshape(shape)


def diagonal(entries: Array) -> Array:
    """The matrix with these diagonal entries, of shape entries.shape * 2."""
    return jnp.diag(entries.ravel()).reshape(entries.shape + entries.shape)


def split_pair(family: str, expected: str, z: Array) -> tuple[Array, Array]:
    """The two coordinates of each factor.

    Args:
        family: the law's name, for the error.
        expected: what the coordinates are, for the error.
        z: parameters [..., 2].

    Returns:
        The first and the second coordinates, each [...].

    Raises:
        ValueError: unless the last axis of z has length 2.
    """
    if z.ndim == 0 or z.shape[-1] != 2:
        raise ValueError(
            f"{family}: z has shape {z.shape}; expected {expected} in a last axis of "
            "length 2. Give the model two outputs for each label."
        )
    return z[..., 0], z[..., 1]


def positive_and_finite(draw: Array) -> Array:
    """The draw, at least the smallest normal number and at most the largest one."""
    limits = jnp.finfo(draw.dtype)
    return jnp.clip(draw, limits.tiny, limits.max)


def without_lost(values: Array, factors: Array) -> Array:
    """`values`, but 0 where they are infinite and their factor is 0: 0 · ∞ is 0."""
    return jnp.where(jnp.isinf(values) & (factors == 0), 0, values)
