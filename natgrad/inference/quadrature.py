"""Expectations by deterministic nodes, E_q[f(w)] ≈ Σ_k weight_k f(w_k).

    Bernoulli, Categorical, Binomial      the labels themselves, exactly
    Normal, LogNormal                     129 trapezoidal points of the normal law
    Exponential, Gamma, InverseGamma      58 Gauss points in log w
    Beta                                  84 Gauss points in the logit
    MultivariateNormal(Diag)              points that are exact to degree 5 in w

`Family.score_nodes` are made for products of two scores, which most families get
exactly from a few points; here f is any smooth function that turns a few times in the
law's bulk.

The trapezoidal rule runs over [−9, 9] of the standard normal law. Its error falls like
exp(−2π a/h) for spacing h, where a is the distance of the nearest pole of f from the
real line in units of the standard deviation s. For a logistic likelihood a = π/s, and
129 points leave an error of rounding at s = 3 and of about 1e-6 at s = 10.

Source: Trefethen & Weideman (2014), The exponentially convergent trapezoidal rule.
"""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from natgrad import families
from natgrad.families.base import ExponentialFamily
from natgrad.inference.expectations import Expectation, LogDensity
from natgrad.typing import Array

_REACH = 9.0
_POINTS = 129


@dataclasses.dataclass(frozen=True)
class Quadrature(Expectation):
    """Σ_k weight_k f(w_k, data), by the nodes of the module; η is ONE factor.

    Attributes:
        log_density: f(w, data) -> nats, shape ().
    """

    log_density: LogDensity

    def value(self, family, eta, data, key):
        """Σ_k weight_k f(w_k, data)."""
        del key
        if eta.ndim != family.parameter_ndim:
            raise ValueError(
                f"Quadrature: natural parameters of shape {eta.shape} for {family!r}; "
                f"expected {family.parameter_ndim} axes, one factor. For more use "
                "Sampling."
            )
        ws, weights = smooth_nodes(family, eta)
        values = jax.vmap(lambda w: self.log_density(w, data))(ws)
        return jnp.vdot(weights, values, precision="highest")


@functools.cache
def standard_normal_rule(points: int) -> tuple[np.ndarray, np.ndarray]:
    """The trapezoidal rule for the standard normal law.

    Args:
        points: how many.

    Returns:
        (nodes [points], weights [points] whose sum is 1).
    """
    z = np.linspace(-_REACH, _REACH, points)
    weights = np.exp(-(z**2) / 2)
    return z, weights / weights.sum()


@functools.singledispatch
def smooth_nodes(family: ExponentialFamily, eta: Array) -> tuple[Array, Array]:
    """Nodes that integrate smooth functions of w.

    Args:
        family: of the law.
        eta: its natural parameters, of one factor.

    Returns:
        (w [K, ...], weights [K]).

    Raises:
        ValueError: for a family without such nodes.
    """
    del eta
    raise ValueError(
        f"Quadrature has no nodes for {family!r}: use Sampling, ScoreFunction or "
        "ClosedForm."
    )


@smooth_nodes.register(families.Bernoulli)
@smooth_nodes.register(families.Categorical)
@smooth_nodes.register(families.Gamma)
@smooth_nodes.register(families.InverseGamma)
@smooth_nodes.register(families.MultivariateNormal)
@smooth_nodes.register(families.MultivariateNormalDiag)
def _own(family, eta):
    return family.score_nodes(eta)


@smooth_nodes.register
def _exponential(family: families.Exponential, eta):
    """A gamma law of shape 1."""
    del family
    return families.Gamma().score_nodes(jnp.stack([jnp.zeros_like(eta), eta]))


@smooth_nodes.register
def _beta(family: families.Beta, eta):
    """Its nodes near 1 are −(1 − w)."""
    ws, weights = family.score_nodes(eta)
    return jnp.where(ws < 0, 1 + ws, ws), weights


@smooth_nodes.register
def _binomial(family: families.Binomial, eta):
    """0, …, n with their probabilities."""
    counts = jnp.arange(int(np.asarray(family.n)) + 1)
    log_probs = jax.vmap(lambda y: family.log_prob(eta, y))(counts)
    return counts, jnp.exp(log_probs)


@smooth_nodes.register
def _normal(family: families.Normal, eta):
    del family
    z, weights = (jnp.asarray(a, eta.dtype) for a in standard_normal_rule(_POINTS))
    v = -0.5 / eta[1]
    return eta[0] * v + jnp.sqrt(v) * z, weights


@smooth_nodes.register
def _log_normal(family: families.LogNormal, eta):
    del family
    logs, weights = _normal(families.Normal(), eta)
    return jnp.exp(logs), weights
