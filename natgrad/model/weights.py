"""Weights of examples and of factors: what they may be, and what they do.

Factors of weight 0 never count, whatever their outputs and labels hold: 0 · ∞ is 0. A
padded row may have logits of −∞, a label of NaN or an output outside of the family's
domain. What is computed from such a factor is 0, and so are its derivatives, that with
respect to its weight among them. Factors of weight 0 whose value is finite have their
ordinary derivatives, which data reweighting needs (Ren et al. 2018).
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from natgrad import tree
from natgrad.typing import Array, ArrayLike


def factor_weights(weights: ArrayLike, shape: tuple[int, ...], z: Any) -> Array:
    """Weights [N] or [N, factors...] as an array [N, factors...] for outputs z."""
    tree.check_sharding("The outputs are", z)
    weights = jnp.asarray(weights, z.dtype)
    if weights.shape not in (shape, shape[:1]):
        raise ValueError(
            f"weights(inputs) must have shape {shape[:1]} (one weight an example) or "
            f"{shape} (one a factor), got {weights.shape}."
        )
    _check_weights(weights)
    missing = len(shape) - weights.ndim
    weights = nan_unless(~(weights < 0), weights)
    return jnp.broadcast_to(weights.reshape(weights.shape + (1,) * missing), shape)


def _check_weights(weights: Array) -> None:
    """Raise for negative weights where their values are known: not under jit."""
    if isinstance(weights, jax.core.Tracer):
        return
    with jax.ensure_compile_time_eval():
        lowest = float(jnp.min(weights))
    if lowest < 0:
        raise ValueError(
            "weights(inputs) must be at least 0: they say how much an example counts "
            f"in the loss and in the Fisher information; got {lowest}. A factor with a "
            "sign, such as an advantage, belongs to a loss of your own, "
            "-jnp.mean(advantages * model.log_prob(params, x, y)), whose gradient you "
            "give to update; leave it out of the model's weights."
        )


def check_some_count(weights: Array) -> None:
    """Raise where all weights are 0 and known: not under jit."""
    if isinstance(weights, jax.core.Tracer):
        return
    with jax.ensure_compile_time_eval():
        some = bool(jnp.any(weights != 0))
    if not some:
        raise ValueError(
            "weights(inputs) are all 0: a mean over 0 examples does not exist. Leave "
            "such a batch out."
        )


def nan_unless(good: Array, weights: Array) -> Array:
    """The weights, NaN where they are not good: what cannot raise under jit."""
    return jnp.where(good, weights, jnp.asarray(jnp.nan, weights.dtype))


def normaliser(weights: Array) -> Array:
    """Σ_n max_t w_nt for weights [N, factors...], or 1 where that is 0."""
    total = total_weight(weights)
    return jnp.where(total == 0, 1, total)


def total_weight(weights: Array) -> Array:
    """Σ_n max_t w_nt for weights [N, factors...]."""
    return jnp.sum(jnp.max(weights.reshape(weights.shape[0], -1), axis=1))


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
