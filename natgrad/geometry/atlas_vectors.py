"""Domains and charts of laws of vectors and of directions.

A symmetric matrix is positive definite if the pivots of its Cholesky factorisation are
positive. Each is a Schur complement, a concave function of the matrix: they are the
margins. That M − m mᵀ is positive definite is the same of [[1, mᵀ], [m, M]].
"""

from __future__ import annotations

import math

import jax.numpy as jnp
import numpy as np

from natgrad.families import (
    MultivariateNormal,
    MultivariateNormalDiag,
    Normal,
    VonMises,
)
from natgrad.geometry.atlas import above, first, flat, normal_atlas, pair, second
from natgrad.geometry.coordinates import Atlas, Chart, whole_space
from natgrad.typing import Array


def von_mises_atlas(family: VonMises) -> Atlas:
    """Polar coordinates do not reach κ = 0, the uniform law."""
    del family
    polar = Chart(
        "direction/concentration",
        lambda x: second(x)[..., None] * pair(jnp.cos(first(x)), jnp.sin(first(x))),
        lambda eta: pair(
            jnp.arctan2(second(eta), first(eta)), jnp.hypot(first(eta), second(eta))
        ),
        lambda x: flat(second(x)),
    )
    inside = lambda mu: flat(1 - above(2, mu) * jnp.sum(mu**2, axis=-1))
    return Atlas(whole_space, inside, (polar,))


def diagonal_normal_atlas(family: MultivariateNormalDiag) -> Atlas:
    """Normal laws side by side: each chart of `Normal`, by halves."""
    del family
    split = lambda x: jnp.stack(jnp.split(x, 2, axis=-1), axis=-1)
    join = lambda x: jnp.concatenate([first(x), second(x)], axis=-1)
    normal = normal_atlas(Normal())

    def halves(chart: Chart) -> Chart:
        to_mean = chart.to_mean or (lambda x: Normal().mean(chart.to_natural(x)))
        return Chart(
            chart.name,
            lambda x: join(chart.to_natural(split(x))),
            lambda eta: join(chart.from_natural(split(eta))),
            chart.margins
            if chart.margins is whole_space
            else lambda x: chart.margins(split(x)),
            lambda x: join(to_mean(split(x))),
        )

    return Atlas(
        lambda eta: normal.natural(split(eta)),
        lambda mu: normal.mean(split(mu)),
        tuple(halves(chart) for chart in normal.sources),
    )


def multivariate_normal_atlas(family: MultivariateNormal) -> Atlas:
    """Mean and covariance, or the covariance's Cholesky factor."""

    def natural(eta: Array) -> Array:
        _, free = _parts(eta)
        return _pivots(-_symmetric(free) * _halves_off(free))

    def mean(mu: Array) -> Array:
        m, free = _parts(mu)
        return _pivots(_symmetric(free) - above(2, mu) * _outer(m))

    def to_natural(x: Array) -> Array:
        m, free = _parts(x)
        return family.from_mean_and_covariance(m, _symmetric(free))

    def from_natural(eta: Array) -> Array:
        m, covariance = family.mean_and_covariance(eta)
        return _joined(m, covariance)

    def to_mean(x: Array) -> Array:
        m, free = _parts(x)
        return _joined(m, _symmetric(free) + _outer(m))

    mean_covariance = Chart(
        "mean/covariance",
        to_natural,
        from_natural,
        lambda x: _pivots(_symmetric(_parts(x)[1])),
        to_mean,
    )

    def from_factor(x: Array) -> Array:
        m, free = _parts(x)
        lower = _lower(free)
        covariance = jnp.einsum("...ik,...jk->...ij", lower, lower, precision="highest")
        return _joined(m, covariance)

    def to_factor(eta: Array) -> Array:
        m, covariance = family.mean_and_covariance(eta)
        lower = jnp.linalg.cholesky(covariance)
        log_diagonal = jnp.log(jnp.diagonal(lower, axis1=-2, axis2=-1))
        eye = jnp.broadcast_to(jnp.eye(lower.shape[-1], dtype=lower.dtype), lower.shape)
        logs = jnp.where(eye > 0, log_diagonal[..., None], lower)
        return _joined(m, jnp.swapaxes(logs, -1, -2))

    factor = Chart(
        "mean/log Cholesky factor",
        lambda x: to_natural(from_factor(x)),
        to_factor,
    )
    return Atlas(natural, mean, (mean_covariance, factor))


def _pivots(matrix: Array) -> Array:
    """The pivots of a symmetric matrix, less what rounding may have added."""
    d = matrix.shape[-1]
    spare = (above(d, matrix) - 1) * jnp.eye(d, dtype=matrix.dtype)
    factor = jnp.linalg.cholesky(matrix - spare * matrix)
    return flat(jnp.diagonal(factor, axis1=-2, axis2=-1) ** 2)


def _parts(x: Array) -> tuple[Array, Array]:
    d = (math.isqrt(9 + 8 * x.shape[-1]) - 3) // 2
    return x[..., :d], x[..., d:]


def _dimension(free: Array) -> int:
    return (math.isqrt(1 + 8 * free.shape[-1]) - 1) // 2


def _symmetric(free: Array) -> Array:
    """The symmetric matrix with these entries of its upper triangle, row by row."""
    d = _dimension(free)
    rows, columns = np.triu_indices(d)
    place = np.zeros((d, d), int)
    place[rows, columns] = place[columns, rows] = np.arange(rows.size)
    return free[..., place]


def _halves_off(free: Array) -> Array:
    """1 on the diagonal and 1/2 off it: an entry of η stands for two of −P/2."""
    d = _dimension(free)
    factors = jnp.asarray((np.eye(d) + 1) / 2, free.dtype)
    return jnp.broadcast_to(factors, (*free.shape[:-1], d, d))


def _lower(free: Array) -> Array:
    """The Cholesky factor with these entries, logarithms on the diagonal."""
    upper = _symmetric(free)
    d = upper.shape[-1]
    eye = jnp.broadcast_to(jnp.eye(d, dtype=free.dtype), upper.shape)
    return jnp.where(eye > 0, jnp.exp(jnp.where(eye > 0, upper, 0)), jnp.tril(upper))


def _outer(m: Array) -> Array:
    return m[..., :, None] * m[..., None, :]


def _joined(m: Array, matrix: Array) -> Array:
    rows, columns = np.triu_indices(m.shape[-1])
    return jnp.concatenate([m, matrix[..., rows, columns]], axis=-1)
