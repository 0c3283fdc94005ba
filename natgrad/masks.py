"""Factors of weight 0 never count, whatever their outputs and labels hold: 0 · ∞ is 0.

A padded row may have logits of −∞, a label of NaN or an output outside of the family's
domain. What is computed from such a factor is 0, and so are its derivatives, that with
respect to its weight among them. Factors of weight 0 whose value is finite have their
ordinary derivatives, which data reweighting needs (Ren et al. 2018).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from natgrad.typing import Array


def at_each_factor(
    function: Callable[..., Any], weights: Array, *arrays: Any, masked: bool
) -> Any:
    """function(*arrays) of each factor, a tree of [factors..., ...].

    Args:
        function: of one factor's arrays.
        weights: [factors...].
        arrays: [factors..., ...], or None.
        masked: whether weights can be 0; then what is not finite there becomes 0.
    """
    for _ in range(weights.ndim):
        function = jax.vmap(function)
    if not masked:
        return function(*arrays)
    # With identical branches XLA drops the selections, and so the second evaluation.
    constants = jax.lax.stop_gradient(arrays)
    finite = [
        jnp.all(jnp.isfinite(leaf.reshape((*weights.shape, -1))), axis=-1)
        for leaf in jax.tree.leaves(function(*constants))
    ]
    lost = (weights == 0) & ~jnp.all(jnp.stack(finite), axis=0)
    held = jax.tree.map(
        lambda array, constant: jnp.where(trailing(lost, array), constant, array),
        arrays,
        constants,
    )
    return jax.tree.map(
        lambda leaf: jnp.where(trailing(lost, leaf), 0, leaf), function(*held)
    )


def zero_where_lost(
    function: Callable[[Array], Array], weights: Array, array: Array
) -> Array:
    """The array [factors, ...], 0 at factors of weight 0 whose value is not finite.

    Args:
        function: of one factor's part of the array.
        weights: [factors].
        array: [factors, ...].
    """
    values = jax.vmap(function)(jax.lax.stop_gradient(array))
    finite = jnp.all(jnp.isfinite(values.reshape((weights.size, -1))), axis=-1)
    return jnp.where(trailing((weights == 0) & ~finite, array), 0, array)


def trailing(condition: Array, like: Array) -> Array:
    """The condition with axes of size 1 behind, until it has as many as `like`."""
    return condition.reshape(condition.shape + (1,) * (like.ndim - condition.ndim))
