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
import jax.core
import jax.numpy as jnp
from jaxtyping import Bool, Float, Shaped

from natgrad.eager import note_impossible
from natgrad.typing import Array, ArrayLike


def factor_weights(
    weights: ArrayLike, shape: tuple[int, ...], z: Any
) -> Float[Array, " N *factors"]:
    """The weights that `Model.weights` gave, one a factor.

    Args:
        weights: [N], or [N, factors...].
        shape: [N, factors...].
        z: outputs [N, ...], or their `jax.ShapeDtypeStruct`, for their dtype.

    Returns:
        [N, factors...]; NaN for a negative weight under jit, where it cannot raise.

    Raises:
        ValueError: the shape is another, or a weight is negative.
    """
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
        note_impossible(jnp.any(weights < 0))
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


def check_some_count(weights: Float[Array, " N *factors"]) -> None:
    """Raise where all weights are 0, if their values are known: not under jit.

    Args:
        weights: one a factor.

    Raises:
        ValueError: all are 0.
    """
    if isinstance(weights, jax.core.Tracer):
        note_impossible(jnp.all(weights == 0))
        return
    with jax.ensure_compile_time_eval():
        some = bool(jnp.any(weights != 0))
    if not some:
        raise ValueError(
            "weights(inputs) are all 0: a mean over 0 examples does not exist. Leave "
            "such a batch out."
        )


def nan_unless(
    good: Bool[Array, "..."], weights: Float[Array, "..."]
) -> Float[Array, "..."]:
    """The weights, NaN where they are not good: under jit nothing can raise.

    Args:
        good: shaped like the weights.
        weights: of examples or of factors.
    """
    return jnp.where(good, weights, jnp.asarray(jnp.nan, weights.dtype))


def normaliser(weights: Float[Array, " N *factors"]) -> Float[Array, ""]:
    """Σ_n max_t w_nt, or 1 where that is 0.

    Args:
        weights: one a factor.
    """
    total = total_weight(weights)
    return jnp.where(total == 0, 1, total)


def total_weight(weights: Float[Array, " N *factors"]) -> Float[Array, ""]:
    """Σ_n max_t w_nt: the number of examples that count, where weights are 0 and 1.

    Args:
        weights: one a factor.
    """
    return jnp.sum(jnp.max(weights.reshape(weights.shape[0], -1), axis=1))


def at_each_factor(
    function: Callable[..., Any],
    weights: Float[Array, "*factors"],
    *arrays: Any,
) -> Any:
    """function(*arrays) of each factor of one example; 0 where it is lost.

    Args:
        function: of one factor's arrays; gives a tree of arrays.
        weights: one a factor; at weight 0 what is not finite becomes 0.
        arrays: [factors..., ...], or None.

    Returns:
        A tree of arrays [factors..., ...].
    """
    for _ in range(weights.ndim):
        function = jax.vmap(function)
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
    function: Callable[[Array], Array],
    weights: Float[Array, " T"],
    array: Shaped[Array, "T ..."],
) -> Shaped[Array, "T ..."]:
    """The array, 0 at factors of weight 0 whose value is not finite.

    Args:
        function: the value of one factor's part of the array.
        weights: one a factor.
        array: [T, ...].
    """
    values = jax.vmap(function)(jax.lax.stop_gradient(array))
    finite = jnp.all(jnp.isfinite(values.reshape((weights.size, -1))), axis=-1)
    return jnp.where(trailing((weights == 0) & ~finite, array), 0, array)


def trailing(condition: Shaped[Array, "..."], like: Array) -> Shaped[Array, "..."]:
    """The condition with axes of size 1 behind, until it has as many as `like`.

    Args:
        condition: [lead...].
        like: [lead..., ...].
    """
    return condition.reshape(condition.shape + (1,) * (like.ndim - condition.ndim))
