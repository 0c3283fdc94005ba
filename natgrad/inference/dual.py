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
from jaxtyping import Float

from natgrad.families import (
    LogNormal,
    MultivariateNormal,
    MultivariateNormalDiag,
    Normal,
)
from natgrad.families.base import ExponentialFamily
from natgrad.geometry.information import raise_index
from natgrad.geometry.points import Point
from natgrad.typing import Array

Function = Callable[[Array], Array]


@functools.singledispatch
def value_and_dual_gradient(
    family: ExponentialFamily, function: Function, eta: Float[Array, "*eta"]
) -> tuple[Float[Array, ""], Float[Array, "*eta"]]:
    """The value of a function of natural parameters, and its gradient in μ.

    Args:
        family: whose natural parameters η are.
        function: η -> scalar.
        eta: where, natural parameters of the family.

    Returns:
        f(η), shape (), and ∇_μ f, shaped like η.
    """
    value, gradient = jax.value_and_grad(function)(eta)
    return value, raise_index(Point(family, "natural", eta), gradient)


@value_and_dual_gradient.register
def _full(family: MultivariateNormal, function, eta):
    m, covariance = family.mean_and_covariance(eta)
    of_moments = lambda m, s: function(family.from_mean_and_covariance(m, s))
    value, gradients = jax.value_and_grad(of_moments, (0, 1))(m, covariance)
    return value, from_covariance_gradient(m, *gradients)


@value_and_dual_gradient.register
def _diagonal(family: MultivariateNormalDiag, function, eta):
    m, v = diagonal_moments(family, eta)
    of_moments = lambda m, v: function(jnp.concatenate([m / v, -0.5 / v], -1))
    value, gradients = jax.value_and_grad(of_moments, (0, 1))(m, v)
    return value, from_variance_gradient(m, *gradients)


@value_and_dual_gradient.register(Normal)
@value_and_dual_gradient.register(LogNormal)
def _scalar(family, function, eta):
    del family
    v = -0.5 / eta[..., 1]
    of_moments = lambda m, v: function(jnp.stack([m / v, -0.5 / v], -1))
    moments = eta[..., 0] * v, v
    value, (g_m, g_v) = jax.value_and_grad(of_moments, (0, 1))(*moments)
    return value, jnp.stack([g_m - 2 * g_v * moments[0], g_v], -1)


def diagonal_moments(
    family: MultivariateNormalDiag, eta: Float[Array, "*factors 2d"]
) -> tuple[Float[Array, "*factors d"], Float[Array, "*factors d"]]:
    """The means and variances of a normal law of independent coordinates.

    Args:
        family: the family.
        eta: natural parameters [..., 2d].

    Returns:
        Means and variances, both [..., d].
    """
    d = family.label_shape(eta.shape)[-1]
    v = -0.5 / eta[..., d:]
    return eta[..., :d] * v, v


def from_covariance_gradient(
    m: Float[Array, "*factors d"],
    g_m: Float[Array, "*factors d"],
    g_s: Float[Array, "*factors d d"],
) -> Float[Array, "*factors P"]:
    """∇_μ of a `MultivariateNormal` from the gradients in its mean and covariance.

    An entry off the diagonal of μ stands for two of S.

    Args:
        m: the mean [..., d].
        g_m: the gradient in m [..., d].
        g_s: the gradient in the covariance S [..., d, d].

    Returns:
        The gradient in μ, [..., d + d (d + 1)/2].
    """
    both = g_s + jnp.swapaxes(g_s, -1, -2)
    first = g_m - jnp.einsum("...ij,...j->...i", both, m, precision="highest")
    rows, columns = np.triu_indices(m.shape[-1])
    free = both[..., rows, columns]
    halves = jnp.asarray(np.where(rows == columns, 0.5, 1.0), free.dtype)
    return jnp.concatenate([first, jnp.broadcast_to(halves, free.shape) * free], -1)


def from_variance_gradient(
    m: Float[Array, "*factors d"],
    g_m: Float[Array, "*factors d"],
    g_v: Float[Array, "*factors d"],
) -> Float[Array, "*factors P"]:
    """∇_μ of a `MultivariateNormalDiag` from the gradients in its means and variances.

    Args:
        m: the means [..., d].
        g_m: the gradient in m [..., d].
        g_v: the gradient in the variances [..., d].

    Returns:
        The gradient in μ, [..., 2d].
    """
    return jnp.concatenate([g_m - 2 * g_v * m, g_v], -1)
