"""Gradients in the expectation parameters, ∇_μ = F_η⁻¹ ∇_η.

For a family in general by a solve with F. For Gaussians by the chain rule through the
mean m and the covariance S = E[y yᵀ] − m mᵀ, which needs no Fisher information: with
g_m and G_S the gradients in m and S (Bonnet 1964; Price 1958 where the function is an
expectation, G_S = E[∇²f]/2),

    ∇_{E[y]} = g_m − 2 G_S m,     ∇_{E[y yᵀ]} = G_S.

Source: Khan & Rue (2023), The Bayesian learning rule, section 1.3 and appendix.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from natgrad.families import (
    LogNormal,
    MultivariateNormal,
    MultivariateNormalDiag,
    Normal,
)
from natgrad.families.base import ExponentialFamily
from natgrad.geometry.atlases import charts
from natgrad.geometry.information import raise_index
from natgrad.geometry.points import Point
from natgrad.typing import Array

Function = Callable[[Array], Array]


@functools.singledispatch
def value_and_dual_gradient(
    family: ExponentialFamily, function: Function, eta: Array
) -> tuple[Array, Array]:
    """A function of a law's natural parameters, and its gradient in μ.

    Args:
        family: whose natural parameters η are.
        function: η -> scalar.
        eta: η, the point.

    Returns:
        (f(η), shape (), and ∇_μ f, shaped like η).
    """
    value, gradient = jax.value_and_grad(function)(eta)
    return value, raise_index(Point(family, charts(family)["natural"], eta), gradient)


@value_and_dual_gradient.register
def _full(family: MultivariateNormal, function, eta):
    m, covariance = family.mean_and_covariance(eta)

    def of_moments(m, s):
        return function(family.from_mean_and_covariance(m, s))

    value, gradients = jax.value_and_grad(of_moments, (0, 1))(m, covariance)
    return value, from_covariance_gradient(m, *gradients)


@value_and_dual_gradient.register
def _diagonal(family: MultivariateNormalDiag, function, eta):
    m, v = diagonal_moments(family, eta)

    def of_moments(m, v):
        return function(jnp.concatenate([m / v, -0.5 / v], -1))

    value, gradients = jax.value_and_grad(of_moments, (0, 1))(m, v)
    return value, from_variance_gradient(m, *gradients)


@value_and_dual_gradient.register(Normal)
@value_and_dual_gradient.register(LogNormal)
def _scalar(family, function, eta):
    del family
    v = -0.5 / eta[..., 1]

    def of_moments(m, v):
        return function(jnp.stack([m / v, -0.5 / v], -1))

    moments = eta[..., 0] * v, v
    value, (g_m, g_v) = jax.value_and_grad(of_moments, (0, 1))(*moments)
    return value, jnp.stack([g_m - 2 * g_v * moments[0], g_v], -1)


def diagonal_moments(family: MultivariateNormalDiag, eta: Array) -> tuple[Array, Array]:
    """Means and variances, both [..., d], of natural parameters η [..., 2 d]."""
    d = family.label_shape(eta.shape)[-1]
    v = -0.5 / eta[..., d:]
    return eta[..., :d] * v, v


def from_covariance_gradient(m: Array, g_m: Array, g_s: Array) -> Array:
    """∇_μ of a `MultivariateNormal` from the gradients in m [..., d] and S [..., d, d].

    An entry off the diagonal of μ stands for two of S.
    """
    both = g_s + jnp.swapaxes(g_s, -1, -2)
    first = g_m - jnp.einsum("...ij,...j->...i", both, m, precision="highest")
    rows, columns = np.triu_indices(m.shape[-1])
    free = both[..., rows, columns]
    halves = jnp.asarray(np.where(rows == columns, 0.5, 1.0), free.dtype)
    return jnp.concatenate([first, jnp.broadcast_to(halves, free.shape) * free], -1)


def from_variance_gradient(m: Array, g_m: Array, g_v: Array) -> Array:
    """∇_μ of a `MultivariateNormalDiag` from the gradients in m and v [..., d]."""
    return jnp.concatenate([g_m - 2 * g_v * m, g_v], -1)
