"""Divergences of exponential families with gradients that hold far apart.

Near to each other, KL(z ‖ z2) and its gradients are those of a formula in which nothing
cancels. Far from each other that formula's pieces overflow where the gradients do not:
they are

    ∂/∂z = ∇²A(z) (z − z2),      ∂/∂z2 = ∇A(z2) − ∇A(z).
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp

from natgrad.families.base import ExponentialFamily
from natgrad.typing import Array


def divergence(
    family: ExponentialFamily,
    value: Callable[[Array, Array], Array],
    z: Array,
    z2: Array,
    near: Array,
    slope: Callable[[Array, Array], Array] | None = None,
) -> Array:
    """KL of each factor, by `value`; gradients by autodiff where `near`, else as above.

    Args:
        family: its `mean` gives the gradients; it must hold no traced numbers.
        value: (z, z2) -> the divergence of each factor.
        z: parameters of the first law.
        z2: parameters of the second law.
        near: boolean, one entry a factor.
        slope: (z, z2) -> ∇²A(z) (z − z2) where that cancels if computed so.
    """
    if slope is None:
        slope = lambda z, z2: family.fisher_product(z, z - z2)
    mask = near.reshape(near.shape + (1,) * (z.ndim - near.ndim))
    beside = value(z, jnp.where(mask, z2, z))
    return jnp.where(near, beside, _far(family, value, slope, z, z2))


@functools.partial(jax.custom_jvp, nondiff_argnums=(0, 1, 2))
def _far(
    family: ExponentialFamily, value: Callable, slope: Callable, z: Array, z2: Array
) -> Array:
    del family, slope
    return value(z, z2)


@_far.defjvp
def _far_jvp(
    family: ExponentialFamily,
    value: Callable,
    slope: Callable,
    primals: tuple[Array, Array],
    tangents: tuple[Array, Array],
) -> tuple[Array, Array]:
    (z, z2), (dz, dz2) = primals, tangents
    out = _far(family, value, slope, z, z2)
    rise = slope(z, z2) * dz + (family.mean(z2) - family.mean(z)) * dz2
    return out, jnp.sum(rise, axis=tuple(range(out.ndim, z.ndim)))
