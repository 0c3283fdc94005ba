"""Fisher-Rao distances of multivariate normal laws with a known mean or covariance.

    known mean        √(½ Σ_i log² λ_i),  λ_i the eigenvalues of S⁻¹S'
    known covariance  √((m − m')ᵀ S⁻¹ (m − m')), Mahalanobis' distance

Laws with one mean are totally geodesic among all normal laws: the first is also the
distance in the whole family, of laws with equal means. Those with one covariance are
not: the whole family has shorter ways, through wider laws. No closed form is known for
two laws that differ in both; there `shooting_distance` finds it.

Source: Atkinson & Mitchell (1981), Rao's distance measure; Skovgaard (1984), A
Riemannian geometry of the multivariate normal model.
"""

from __future__ import annotations

import jax.numpy as jnp
from jax.scipy.linalg import solve_triangular
from jaxtyping import Float

from natgrad.families import MultivariateNormal
from natgrad.geometry.distance_closed_forms import root
from natgrad.geometry.points import Point
from natgrad.geometry.validation import expected, same_family
from natgrad.typing import Array


def known_mean_distance(start: Point, end: Point) -> Float[Array, ""]:
    """The distance of two normal laws with one mean, of which only covariances are
    read.

    Where two λ_i are equal it has a first derivative, not a second.

    Args:
        start: one law of `MultivariateNormal`.
        end: another of the same dimension.

    Returns:
        √(½ Σ_i log² λ_i), shape ().

    Raises:
        ValueError: the points are not single laws of `MultivariateNormal`.
    """
    _, s, _, s2 = _moments(start, end, "known_mean_distance")
    factor = jnp.linalg.cholesky(s)
    half = solve_triangular(factor, s2 - s, lower=True)
    relative = solve_triangular(factor, half.T, lower=True)
    logs = jnp.log1p(jnp.linalg.eigvalsh((relative + relative.T) / 2))
    return root(jnp.sum(logs**2) / 2)


def known_covariance_distance(start: Point, end: Point) -> Float[Array, ""]:
    """The distance of two normal laws with the covariance of `start`, and different
    means.

    Args:
        start: one law of `MultivariateNormal`.
        end: another of the same dimension, of which only the mean is read.

    Returns:
        Mahalanobis' distance √((m − m')ᵀ S⁻¹ (m − m')), shape ().

    Raises:
        ValueError: the points are not single laws of `MultivariateNormal`.
    """
    m, s, m2, _ = _moments(start, end, "known_covariance_distance")
    whitened = solve_triangular(jnp.linalg.cholesky(s), m2 - m, lower=True)
    return root(jnp.sum(whitened**2))


def _moments(start: Point, end: Point, name: str) -> tuple[Array, Array, Array, Array]:
    expected(Point, start, name)
    same_family(start, end)
    family = start.family
    if not isinstance(family, MultivariateNormal) or start.natural.ndim != 1:
        raise ValueError(
            f"{name}: points of {family!r} with natural parameters of shape "
            f"{start.natural.shape}; expected one law of MultivariateNormal. Use "
            "vmap for more, and `distance` for other families."
        )
    m, s = family.mean_and_covariance(start.natural)
    return m, s, *family.mean_and_covariance(end.natural)
