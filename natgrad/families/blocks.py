"""The factors of one block of a `Product`: their labels, columns and values."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from natgrad.families.family import Family
from natgrad.typing import Array, Key


def present_labels(family: Family, z: Array, y: Array) -> tuple[Array, Array]:
    """Which factors of a block have a label.

    Args:
        family: of the block.
        z: its parameters.
        y: its labels, NaN where one is missing.

    Returns:
        A boolean for each factor, and the labels, with a node of the law in the place
        of a missing one.
    """
    axes = tuple(range(y.ndim - family.label_ndim, y.ndim))
    present = ~jnp.any(jnp.isnan(y), axis=axes)
    stand_in = each_factor(family, lambda z: family.score_nodes(z)[0][-1], z)
    mask = present.reshape(present.shape + (1,) * family.label_ndim)
    return present, jnp.where(mask, y, stand_in.astype(y.dtype))


def columns_of_scalars(columns: Callable) -> Callable:
    """The columns of every entry of z [n], 0 in the others: [n·K, n]."""

    def of_all(key: Key | None, z: Array) -> tuple[Array, Array]:
        keys = None if key is None else jax.random.split(key, z.size)
        scores, weights = jax.vmap(columns)(keys, z)  # [n, K]
        apart = jnp.eye(z.size, dtype=z.dtype)[:, None, :] * scores[:, :, None]
        return apart.reshape(-1, z.size), weights.reshape(-1)

    return of_all


def widened(present: Array, z: Array) -> Array:
    """One entry a factor, with axes of length 1 for the parameters in z."""
    return present.reshape(present.shape + (1,) * (z.ndim - present.ndim))


def each_factor(family: Family, function: Callable, z: Array, *others: Array) -> Array:
    """`function` of one factor's parameters (and others), at each factor of z."""
    own = 1 if family.parameter_ndim is None else family.parameter_ndim
    for _ in range(z.ndim - own):
        function = jax.vmap(function)
    return function(z, *others)
