"""Expectations over the labels of one factor: sums, averages of draws, and roots.

What a `Family` falls back on where a quantity is not given.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from natgrad.families.numerics.remainders import expm1_remainder, root
from natgrad.typing import Array, Key

LogProb = Callable[[Array, Array], Array]

# Σ p of a law's labels may be off by this much, by rounding.
ROUNDING = 1e-4
# XLA unrolls the random generator over an axis that is shorter, and takes most of a
# second to compile it.
FEW_DRAWS = 16
# Loops that are short are unrolled: a few multiplications an example, in one program.
_SHORT = 4


def probabilities(log_prob: LogProb, z: Array, labels: Array) -> Array:
    """The probabilities p(y | z) of all labels of one factor.

    Args:
        log_prob: (z, y) -> log p(y | z) in nats, shape ().
        z: the parameters of ONE factor.
        labels: all labels, [K, ...].

    Returns:
        p [K]; NaN where their sum is not 1.
    """
    p = jnp.exp(jax.vmap(lambda y: log_prob(z, y))(labels))
    return jnp.where(jnp.abs(jnp.sum(p) - 1) <= ROUNDING, p, jnp.nan)


def enumerated_kl(log_prob: LogProb, z: Array, z2: Array, labels: Array) -> Array:
    """KL(p ‖ q) = Σ p (r − 1 − log r), r = q/p, over all labels of one factor.

    No term is negative, so near laws lose nothing to cancellation.

    Args:
        log_prob: (z, y) -> log p(y | z) in nats, shape ().
        z: the parameters of p.
        z2: those of q, shaped like z.
        labels: all labels, [K, ...].

    Returns:
        The divergence in nats, shape ().
    """
    log_p, log_q = (jax.vmap(lambda y, z=z: log_prob(z, y))(labels) for z in (z, z2))
    p, q = probabilities(log_prob, z, labels), probabilities(log_prob, z2, labels)
    possible = p != 0
    log_ratio = jnp.where(possible, log_q - log_p, 0)
    near = possible & (jnp.abs(log_ratio) < 1)
    close = p * expm1_remainder(jnp.where(near, log_ratio, 0))
    return jnp.sum(jnp.where(near, close, q - p - p * log_ratio))


def draws(family: Any, key: Key, z: Array) -> tuple[Array, Array]:
    """K labels drawn under this key, with weights whose value is 1/K.

    The weights p(y | z)/p(y | stop(z))/K make derivatives with respect to z those of
    the expectation rather than of the summand (Foerster et al. 2018, DiCE).

    Args:
        family: whose `sample` and `log_prob` are called.
        key: a random key.
        z: the parameters of ONE factor.

    Returns:
        Labels [K, ...] and weights [K], K = `family.monte_carlo_samples`.
    """
    keys = jax.random.split(key, family.monte_carlo_samples)
    fixed = jax.lax.stop_gradient(z)
    ys = jax.vmap(lambda key: family.sample(key, fixed))(keys)
    log_probs = jax.vmap(lambda y: family.log_prob(z, y))(ys)
    ones = jnp.exp(log_probs - jax.lax.stop_gradient(log_probs))
    return ys, ones / family.monte_carlo_samples


def drawn_kl(family: Any, key: Key, z: Array, z2: Array) -> Array:
    """KL(p ‖ q) in nats, shape (): the mean of r − 1 − log r, r = q/p, over `draws`."""
    ys, weights = draws(family, key, z)
    log_ratios = jax.vmap(lambda y: family.log_prob(z2, y) - family.log_prob(z, y))(ys)
    return jnp.sum(weights * expm1_remainder(log_ratios))


def divergence(family: Any, key: Key | None, z: Array, z2: Array) -> Array:
    """Σ over factors of KL(p ‖ q): a sum over the support, else by draws.

    Args:
        family: of both laws.
        key: a random key; None will do where `family.drawn(z)` is false.
        z: the parameters of p, all factors.
        z2: those of q, shaped like z.

    Returns:
        The divergence in nats, shape ().
    """

    def of_factor(key, z, z2):
        labels = family.support(z)
        if labels is None:
            return drawn_kl(family, key, z, z2)
        return enumerated_kl(family.log_prob, z, z2, labels)

    if family.parameter_ndim is None or z.ndim == family.parameter_ndim:
        return of_factor(key, z, z2)
    factor = (-1, *z.shape[z.ndim - family.parameter_ndim :])
    zs, z2s = z.reshape(factor), z2.reshape(factor)
    keys = None
    if key is not None and family.drawn(z):
        keys = jax.random.split(key, zs.shape[0])
    return jnp.sum(jax.vmap(of_factor)(keys, zs, z2s))


def root_columns(matrix: Array) -> tuple[Array, Array]:
    """Columns s_k [C, C], one a row, and weights w_k [C] with Σ_k w_k s_k s_kᵀ = F.

    The factors L and D of LDLᵀ, the pivots taken in descending order, each relative to
    its own diagonal entry so that units do not matter. A pivot at rounding is 0: what
    is left of F then is 0 too, and as a matrix that can't become indefinite it has no
    first derivative there. So derivatives are right for a singular F, of every order
    where its rank does not change.

    Args:
        matrix: F [C, C], symmetric and positive semidefinite, of any rank.

    Returns:
        The columns [C, C] and their weights [C], some of them 0.
    """
    size = matrix.shape[0]
    scale = jnp.diagonal(matrix)
    rounding = 4 * size * jnp.finfo(matrix.dtype).eps

    def eliminate(left, _):
        relative = jnp.diagonal(left) / jnp.where(scale == 0, 1, scale)
        k = jnp.argmax(relative)
        pivot = left[k, k]
        none = relative[k] <= rounding  # false for NaN, which must not be hidden
        # Division by a constant: the derivative of 1/pivot overflows for small ones.
        size_of = jax.lax.stop_gradient(jnp.where(none, 1, pivot))
        row = left[k] / size_of
        weight = jnp.where(none, 0, size_of / jnp.where(none, 1, pivot / size_of))
        return left - weight * row[:, None] * row[None, :], (row, weight)

    _, columns = jax.lax.scan(
        eliminate, matrix, None, length=size, unroll=size if size <= _SHORT else 1
    )
    return columns


def fewest_columns(scores: Array, weights: Array) -> tuple[Array, Array]:
    """No more columns than coordinates, with the same Σ_k w_k s_k s_kᵀ.

    Args:
        scores: s_k of one factor, [K, ...].
        weights: w_k >= 0, [K].

    Returns:
        The same, or as many columns as a score has coordinates, and their weights.
    """
    shape, size = scores.shape[1:], scores[0].size
    if weights.shape[0] <= size:
        return scores, weights
    flat = scores.reshape(-1, size)
    if size == 1:
        total = jnp.sum(weights[:, None] * flat**2, axis=0)
        return jnp.ones((1, *shape), scores.dtype), total
    weighted = weights[:, None] * flat
    rows, weights = root_columns(jnp.matmul(weighted.T, flat, precision="highest"))
    return rows.reshape(-1, *shape), weights


def root_product(scores: Array, weights: Array, v: Array) -> Array:
    """Σ_k v_k √w_k s_k over columns, shaped like v.

    Args:
        scores: s_k of one factor, [K, *v.shape].
        weights: w_k >= 0, [K].
        v: coefficients, shaped like a score; where there are fewer columns than
            coordinates, its first ones.
    """
    scores, weights = fewest_columns(scores, weights)
    coefficients = root(weights) * v.reshape(-1)[: weights.shape[0]]
    return jnp.tensordot(coefficients, scores, axes=1, precision="highest")
