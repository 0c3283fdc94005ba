"""The log-gamma function: its Bregman divergences, and inverses of its derivatives.

    φ(x) = log Γ(x) − x log x + x = log(2π/x)/2 + J(x),

where J is Binet's function, 1/(12x) − 1/(360x³) + …  Both parts are convex. For large x
what is left of log Γ, ψ and ψ' after their leading terms is computed from the series of
J, so that it keeps its relative accuracy.

Source: NIST Digital Library of Mathematical Functions, 5.11(i).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import digamma, gammaln, polygamma

from natgrad.families.numerics.checks import aligned
from natgrad.families.numerics.remainders import (
    entropy_remainder,
    quotient,
    ratio_remainder,
)
from natgrad.typing import Array

# J(x) = Σ_i _BINET[i] x^−(2i + 1)
_BINET = (1 / 12, -1 / 360, 1 / 1260, -1 / 1680, 1 / 1188, -691 / 360360, 1 / 156)
_POWERS = np.arange(1, 2 * len(_BINET), 2)
# Coefficients of x^−k w^j in the divergence of J, see `_gap_by_series`.
_TABLE = np.array(_BINET)[:, None] * np.maximum(
    _POWERS[:, None] + 1 - np.arange(1, _POWERS[-1] + 1), 0
)
_SHIFT = 10


@jax.custom_jvp
def log_gamma_excess(x: Array) -> Array:
    """φ(x) = log Γ(x) − x log x + x, elementwise for x > 0."""
    small, inverse = _split(x)
    large = 0.5 * jnp.log(2 * jnp.pi * inverse) + _binet(inverse)
    return jnp.where(x < _SHIFT, gammaln(small) - small * jnp.log(small) + small, large)


log_gamma_excess.defjvps(lambda dx, _, x: -log_minus_digamma(x) * dx)


@jax.custom_jvp
def log_minus_digamma(x: Array) -> Array:
    """L(x) = log x − ψ(x) = −φ'(x), elementwise for x > 0; 1/(2x) for large x."""
    small, inverse = _split(x)
    series = _series(_POWERS * np.array(_BINET), inverse)
    large = inverse * (0.5 + inverse * series)
    return jnp.where(x < _SHIFT, jnp.log(small) - digamma(small), large)


log_minus_digamma.defjvps(lambda dx, _, x: -trigamma_excess(x) * quotient(dx, x))


def trigamma_excess(x: Array) -> Array:
    """x ψ'(x) − 1 = −x L'(x), elementwise for x > 0; 1/(2x) for large x."""
    small, inverse = _split(x)
    series = _series(_POWERS * (_POWERS + 1) * np.array(_BINET), inverse)
    large = inverse * (0.5 + inverse * series)
    return jnp.where(x < _SHIFT, small * polygamma(1, small) - 1, large)


@jax.custom_jvp
def log_factorial_excess(y: Array) -> Array:
    """log y! − y log y + y, elementwise for y ≥ 0; log(2πy)/2 for large y.

    Infinite for negative y, where there is no count.
    """
    positive = jnp.maximum(y, jnp.finfo(y.dtype).tiny)
    small, inverse = _split(positive)
    direct = gammaln(small + 1) - small * jnp.log(small) + small
    large = 0.5 * jnp.log(2 * jnp.pi / inverse) + _binet(inverse)
    return jnp.where(y < 0, jnp.inf, jnp.where(positive < _SHIFT, direct, large))


log_factorial_excess.defjvps(
    lambda dy, _, y: (1 / jnp.maximum(y, 1e-30) - log_minus_digamma(y)) * dy
)


def log_gamma_excess_gap(x: Array, y: Array, step: Array) -> Array:
    """D_φ(y, x) = φ(y) − φ(x) − φ'(x) step with step = y − x; elementwise, nonnegative.

    For near points the divergence of J is a series; where they are small they are moved
    up first by Γ(x + 1) = x Γ(x), one factor at a time.
    """
    near, large = jnp.abs(step) < 0.5 * x, jnp.minimum(x, y) >= _SHIFT
    # A point beside x stands in for y where that is far, and 10 for what is small.
    close, move = jnp.where(near, y, x), jnp.where(near, step, 0.0)
    shift = jnp.where(large, 0, _SHIFT).astype(x.dtype)
    by_series = _gap_by_series(x + shift, close + shift, move)
    ks = jnp.arange(_SHIFT, dtype=x.dtype).reshape((1,) * x.ndim + (-1,))
    factors, factors2 = x[..., None] + ks, close[..., None] + ks
    moved = jnp.sum(ratio_remainder(factors, factors2, move[..., None]), axis=-1)
    entropies = entropy_remainder(x + _SHIFT, close + _SHIFT, move)
    entropies = entropies - entropy_remainder(x, close, move)
    of_near = by_series + jnp.where(large, 0.0, moved + entropies)
    of_small = log_gamma_excess(y) - log_gamma_excess(x) + log_minus_digamma(x) * step
    inverse, inverse2 = _split(x)[1], _split(y)[1]
    slope = inverse * _series(_POWERS * np.array(_BINET), inverse)
    binets = _binet(inverse2) - _binet(inverse) + slope * (inverse * step)
    of_large = 0.5 * ratio_remainder(x, y, step) + binets
    return jnp.where(near, of_near, jnp.where(large, of_large, of_small))


def _split(x: Array) -> tuple[Array, Array]:
    """x up to `_SHIFT`, and 1/x from there on; elsewhere their values at `_SHIFT`."""
    return jnp.minimum(x, _SHIFT), 1 / jnp.maximum(x, _SHIFT)


def _series(coefficients: np.ndarray, inverse: Array) -> Array:
    """Σ_i c_i x^−2i of 1/x."""
    return jnp.polyval(jnp.asarray(coefficients[::-1], inverse.dtype), inverse**2)


def _binet(inverse: Array) -> Array:
    """J(x) of 1/x."""
    return inverse * _series(np.array(_BINET), inverse)


def _gap_by_series(x: Array, y: Array, step: Array) -> Array:
    """D_φ by the asymptotic series, for near x and y of at least 10.

    With w = x/y that of x^−k is (step/x)² x^−k Σ_{j=1}^k (k + 1 − j) w^j.
    """
    w, u = (x / y)[..., None], quotient(step, x)
    powers_of_w = w ** aligned(np.arange(1.0, _POWERS[-1] + 1), w)
    powers_of_x = (1 / x)[..., None] ** aligned(_POWERS.astype(float), w)
    table = jnp.asarray(_TABLE, x.dtype)
    total = jnp.einsum(
        "...k,kj,...j->...",
        powers_of_x,
        table,
        powers_of_w,
        precision="highest",
    )
    return 0.5 * ratio_remainder(x, y, step) + u * u * total


@jax.custom_jvp
def inverse_log_minus_digamma(s: Array) -> Array:
    """The x > 0 with log x − ψ(x) = s, elementwise for s > 0; NaN elsewhere.

    Newton's method for log x in the equation log(log x − ψ(x)) = log s, which is nearly
    linear: −1 and slightly less are its slopes.
    """
    s = jnp.where(s > 0, s, jnp.nan)
    # (3 − s + h)/(12 s) = 2/(s − 3 + h), each where it does not cancel.
    h = jnp.hypot(s - 3, jnp.sqrt(24 * s))
    large = s > 3
    x = jnp.where(large, 2 / jnp.where(large, s - 3 + h, 1), (3 - s + h) / (12 * s))

    def newton(_, x):
        value = log_minus_digamma(x)
        return x * jnp.exp(jnp.log(value / s) * value / trigamma_excess(x))

    return jax.lax.fori_loop(0, 6, newton, x)


@inverse_log_minus_digamma.defjvp
def _inverse_log_minus_digamma_jvp(
    primals: tuple[Array], tangents: tuple[Array]
) -> tuple[Array, Array]:
    x = inverse_log_minus_digamma(*primals)
    return x, -tangents[0] * x / trigamma_excess(x)


def inverse_digamma(y: Array) -> Array:
    """The x > 0 with ψ(x) = y, elementwise, by Newton's method.

    Source of the start: Minka, Estimating a Dirichlet distribution (2000), appendix C.
    """
    x = jnp.where(y >= -2.22, jnp.exp(y) + 0.5, -1 / (y - digamma(jnp.ones_like(y))))
    newton = lambda _, x: x - (digamma(x) - y) / polygamma(1, x)
    return jax.lax.fori_loop(0, 5, newton, x)
