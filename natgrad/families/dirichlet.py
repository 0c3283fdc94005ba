"""Dirichlet law of a vector of K proportions, in its natural parameters η = a − 1.

    A(η) = Σ log Γ(a_i) − log Γ(a₀),   a₀ = Σ a_i,   T(y) = log y,
    mean μ = ψ(a_i) − ψ(a₀),   F_η = diag(ψ'(a_i)) − ψ'(a₀) 1 1ᵀ.

The density is with respect to y₁ … y_{K−1}.

KL. With φ(x) = log Γ(x) − x log x + x and π = a/a₀ the mean of y,

    KL(a ‖ c) = c₀ KL(π' ‖ π) + Σ D_φ(c_i, a_i) − D_φ(c₀, a₀):

the part that grows with a₀ is a divergence of proportions, and nothing large cancels.

Inverse of the mean. With L = log − ψ, one unknown a₀, a_i = ψ⁻¹(ψ(a₀) + μ_i) and
δ = −log Σ e^{μ_i} > 0, the equation Σ a_i = a₀ is

    log Σ_i e^{μ_i + δ} e^{L(a_i) − L(a₀)} = δ,

whose left side falls with a₀; its logarithm is nearly linear in log a₀.

Source: Minka, Estimating a Dirichlet distribution (2000), for the fixed point.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import ClassVar

import jax
import jax.numpy as jnp
from jax.scipy.special import digamma, gammaln, logsumexp, polygamma

from natgrad.families.base import ExponentialFamily
from natgrad.families.numerics.checks import inside, resolved
from natgrad.families.numerics.divergences import divergence
from natgrad.families.numerics.remainders import (
    entropy_remainder,
    log_quotient,
    quotient,
)
from natgrad.families.numerics.shares import mean_log, mean_log_complement
from natgrad.families.numerics.special import (
    inverse_digamma,
    log_gamma_excess,
    log_gamma_excess_gap,
    log_minus_digamma,
    trigamma_excess,
)
from natgrad.typing import Array, Key

_ITERATIONS = 100


@dataclasses.dataclass(frozen=True)
class Dirichlet(ExponentialFamily):
    """y ~ Dirichlet(a): the last axis of z holds a − 1, that of y the K proportions."""

    parameter_ndim: ClassVar[int] = 1
    label_ndim: ClassVar[int] = 1
    domain: ClassVar[str] = "every entry of z above -1, as softplus(output) - 1"

    def log_prob(self, z: Array, y: Array) -> Array:
        """log Γ(a₀) − Σ log Γ(a_i) + Σ (a_i − 1) log y_i, less what cancels."""
        a, y = _concentrations(z), jnp.asarray(y, z.dtype)
        total, rest = jnp.sum(a, axis=-1), 1 - jnp.sum(y, axis=-1)
        # What is left by rounding of proportions, times a₀, would be noise.
        rounding = 8 * y.shape[-1] * jnp.finfo(z.dtype).eps
        rest = jnp.where(jnp.abs(rest) <= rounding, 0.0, rest)
        expected = y * total[..., None]
        spread = entropy_remainder(expected, a, a - expected) + jnp.log(y)
        kernel = jnp.sum(spread + log_gamma_excess(a), axis=-1)
        return jnp.sum(log_gamma_excess(total) - kernel - total * rest)

    def log_normalizer(self, eta: Array) -> Array:
        """Σ log Γ(a_i) − log Γ(a₀)."""
        a = _concentrations(eta)
        a = inside(a >= 0, a)  # between negative integers Γ is finite
        return jnp.sum(gammaln(a)) - jnp.sum(gammaln(jnp.sum(a, axis=-1)))

    def sufficient_statistics(self, y: Array) -> Array:
        """T(y) = log y."""
        return jnp.log(y)

    def mean(self, eta: Array) -> Array:
        """The expectation of log y, ψ(a) − ψ(a₀)."""
        return mean_log(_concentrations(eta))

    def natural(self, mu: Array) -> Array:
        """a − 1; NaN unless Σ e^μ < 1 beyond rounding."""
        return self.natural_from_complement(mu, log_complement(mu))

    def mean_complement(self, eta: Array) -> Array:
        """−log Σ e^μ, of shape eta.shape[:-1], where that cancels."""
        return mean_log_complement(_concentrations(eta))

    def natural_from_complement(self, mu: Array, complement: Array) -> Array:
        """a − 1 of μ and −log Σ e^μ; NaN unless that is positive.

        Derivatives are those along μ, which determines the complement.
        """
        return concentrations_from_mean(mu, complement) - 1

    def entropy(self, eta: Array) -> Array:
        """log B(a) + (a₀ − K) ψ(a₀) − Σ (a_i − 1) ψ(a_i), less what cancels."""
        return jnp.sum(dirichlet_entropy(_concentrations(eta)))

    def kl(self, z: Array, z2: Array) -> Array:
        """c₀ KL(π2 ‖ π) + Σ D_φ(c_i, a_i) − D_φ(c₀, a₀)."""
        _concentrations(z)
        near = jnp.all(jnp.abs(z2 - z) < 0.5 * (z + 1), axis=-1)
        slope = functools.partial(dirichlet_slope, self)
        return jnp.sum(divergence(self, dirichlet_divergence, z, z2, near, slope))

    def score_nodes(self, z: Array) -> tuple[Array, Array]:
        """2K labels with equal weights, whose entries do not sum to 1.

        log y is μ ± √K times a column of a square root of F: it has the mean and the
        covariance of the law, and the score is affine in log y. For a concentration
        below 0.004 (float64) or 0.04 (float32) it underflows.
        """
        a = _concentrations(z)
        root = jnp.sqrt(jnp.asarray(a.size, z.dtype)) * _fisher_root(a).T
        log_ys = self.mean(z)[None] + jnp.concatenate([-root, root])
        return jnp.exp(log_ys), jnp.full(2 * a.size, 0.5 / a.size, z.dtype)

    def sample(self, key: Key, z: Array) -> Array:
        """Positive proportions for each factor, shaped like z."""
        logs = jax.random.loggamma(key, _concentrations(z), dtype=z.dtype)
        return jnp.maximum(jax.nn.softmax(logs, axis=-1), jnp.finfo(z.dtype).tiny)

    def in_support(self, z: Array, y: Array) -> Array:
        """Whether the entries of y are positive and sum to 1, to rounding."""
        y = jnp.asarray(y, z.dtype)
        error = jnp.abs(jnp.sum(y, axis=-1) - 1)
        close = error <= 8 * y.shape[-1] * jnp.finfo(z.dtype).eps
        return jnp.all(y > 0, axis=-1) & close

    def label_shape(self, z_shape: tuple[int, ...]) -> tuple[int, ...]:
        """z_shape."""
        return z_shape


def _concentrations(z: Array) -> Array:
    if z.ndim == 0 or z.shape[-1] < 2:
        raise ValueError(
            f"Dirichlet: z has shape {z.shape}; expected at least two concentrations "
            "minus 1 in the last axis. For one proportion use Beta()."
        )
    return z + 1


def log_complement(mu: Array) -> Array:
    """−log Σ e^μ over the last axis; NaN unless positive beyond rounding."""
    return resolved(-logsumexp(mu, axis=-1), jnp.ones_like(mu[..., 0]))


def dirichlet_entropy(a: Array) -> Array:
    """Entropy over the last axis.

    With ψ = log − L and φ it is Σ φ(a_i) + log a_i + (a_i − 1) L(a_i) less
    φ(a₀) + K log a₀ + (a₀ − K) L(a₀).
    """
    total, number = jnp.sum(a, axis=-1), a.shape[-1]
    whole = jnp.broadcast_to(total[..., None], a.shape)
    parts = log_gamma_excess(a) + log_quotient(whole, a)
    parts = parts + (a - 1) * log_minus_digamma(a)
    rest = log_gamma_excess(total) + (total - number) * log_minus_digamma(total)
    return jnp.sum(parts, axis=-1) - rest


def dirichlet_divergence(z: Array, z2: Array) -> Array:
    """KL of the law with concentrations z + 1 from that with z2 + 1, last axis."""
    a, c, step = z + 1, z2 + 1, z2 - z
    total, total2, change = (jnp.sum(x, axis=-1) for x in (a, c, step))
    # a c₀/a₀ and c, whose difference is relative to that of the totals.
    scaled = a * quotient(total2, total)[..., None]
    close = (jnp.abs(change) < 0.5 * total)[..., None]
    rise = jnp.where(close[..., 0], change, 0.0)
    excess = step - a * quotient(rise, total)[..., None]
    excess = jnp.where(close, excess, c - scaled)
    # They sum to 0: that of the largest entry, which cancels, from the others'.
    places = jax.lax.broadcasted_iota(int, a.shape, a.ndim - 1)
    largest = jnp.argmax(scaled, axis=-1, keepdims=True) == places
    others = jnp.where(largest, 0.0, excess)
    rest = -jnp.sum(others, axis=-1, keepdims=True)
    excess = jnp.where(largest, rest, others)
    proportions = jnp.sum(entropy_remainder(scaled, c, excess), axis=-1)
    # Of the totals too, by the same operations: they are most of what is compiled.
    with_total = lambda x, x0: jnp.concatenate([x, x0[..., None]], axis=-1)
    gaps = log_gamma_excess_gap(
        with_total(a, total), with_total(c, total2), with_total(step, change)
    )
    return proportions + jnp.sum(gaps[..., :-1], axis=-1) - gaps[..., -1]


def dirichlet_slope(family: ExponentialFamily, z: Array, z2: Array) -> Array:
    """F_z (a − c): F a has the entries (a_i ψ'(a_i) − 1) − (a₀ ψ'(a₀) − 1)."""
    a = z + 1
    total = jnp.sum(a, axis=-1, keepdims=True)
    return (
        trigamma_excess(a) - trigamma_excess(total) - family.fisher_product(z, z2 + 1)
    )


def _fisher_root(a: Array) -> Array:
    """R [K, K] with R Rᵀ = diag(ψ'(a)) − ψ'(a₀) 1 1ᵀ.

    R = diag(√ψ')(I − β u uᵀ) with u = 1/√ψ', β|u|² = 1 − √(1 − ψ'(a₀)|u|²).
    """
    trigamma = polygamma(1, a)
    u = 1 / jnp.sqrt(trigamma)
    square = jnp.sum(u**2)
    beta = (1 - jnp.sqrt(_determinant(a))) / square
    return jnp.diag(1 / u) - beta * jnp.broadcast_to(u[None], (a.size, a.size))


def _determinant(a: Array) -> Array:
    """1 − ψ'(a₀) Σ 1/ψ'(a_i), over the last axis, without cancellation.

    It is ψ'(a₀)(Σ e(a_i) − e(a₀)) with e(x) = x − 1/ψ'(x) < 1/2.
    """
    total = jnp.sum(a, axis=-1)
    deficit = lambda x: x * trigamma_excess(x) / (1 + trigamma_excess(x))
    rest = jnp.sum(deficit(a), axis=-1) - deficit(total)
    return polygamma(1, total) * rest


@jax.custom_jvp
def concentrations_from_mean(mu: Array, complement: Array) -> Array:
    """a with ψ(a) − ψ(a₀) = μ and −log Σ e^μ = complement; NaN if that is ≤ 0."""
    log_weights = jax.nn.log_softmax(mu, axis=-1)
    good = jnp.isfinite(complement) & (complement > 0)
    delta = jnp.where(good, complement, 1.0)
    tolerance = 16 * jnp.finfo(mu.dtype).eps

    def concentrations(log_total):
        return inverse_digamma(digamma(jnp.exp(log_total))[..., None] + mu)

    def residual(log_total):
        """log(left side/δ), and its derivative."""
        total, a = jnp.exp(log_total), concentrations(log_total)
        gaps = log_minus_digamma(a) - log_minus_digamma(total)[..., None]
        left, shares = _log_mean_exp(log_weights, gaps)
        excess, excess0 = trigamma_excess(a), trigamma_excess(total)[..., None]
        slope = jnp.sum(shares * (excess0 - excess) / (1 + excess), axis=-1)
        return jnp.log(left / delta), slope / left

    def unfinished(state):
        count, _, _, _, moved = state
        return (count < _ITERATIONS) & jnp.any(moved > tolerance)

    def iterate(state):
        count, x, low, high, _ = state
        value, slope = residual(x)
        low, high = jnp.where(value > 0, x, low), jnp.where(value > 0, high, x)
        newton = x - value / slope
        scale = 1 + jnp.abs(x)
        arrived = jnp.abs(newton - x) < tolerance * scale
        inner = arrived | ((newton > low) & (newton < high))
        new = jnp.where(inner, newton, 0.5 * (low + high))
        return count + 1, new, low, high, jnp.abs(new - x) / scale

    start = jnp.log((mu.shape[-1] - 1) / (2 * delta))
    limit = jnp.full_like(start, 60.0)
    first = (0, start, -limit, limit, jnp.full_like(start, jnp.inf))
    _, log_total, _, _, moved = jax.lax.while_loop(unfinished, iterate, first)
    found = good & (moved < jnp.sqrt(tolerance))
    return inside(found[..., None], concentrations(log_total))


def _log_mean_exp(log_weights: Array, x: Array) -> tuple[Array, Array]:
    """log Σ w e^x for Σ w = 1 and x ≥ 0, also where it is small; and its gradient."""
    exponents = log_weights + x
    terms = jnp.where(
        x < 1,
        jnp.exp(log_weights) * jnp.expm1(jnp.minimum(x, 1)),
        jnp.exp(jnp.minimum(exponents, 50)) - jnp.exp(log_weights),
    )
    near = jnp.max(exponents, axis=-1) < 50
    near_value = jnp.log1p(jnp.sum(terms, axis=-1))
    value = jnp.where(near, near_value, logsumexp(exponents, axis=-1))
    return value, jax.nn.softmax(exponents, axis=-1)


@concentrations_from_mean.defjvp
def _concentrations_from_mean_jvp(
    primals: tuple[Array, Array], tangents: tuple[Array, Array]
) -> tuple[Array, Array]:
    """F⁻¹ dμ by the formula of Sherman and Morrison."""
    a = concentrations_from_mean(*primals)
    inverse = 1 / polygamma(1, a)
    solved = inverse * tangents[0]
    total = polygamma(1, jnp.sum(a, axis=-1)) / _determinant(a)
    common = total * jnp.sum(solved, axis=-1)
    return a, solved + inverse * common[..., None]
