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

from natgrad.families.checks import aligned
from natgrad.families.remainders import entropy_remainder, ratio_remainder
from natgrad.typing import Array

# J(x) = Σ_i _BINET[i] x^−(2i + 1)
_BINET = (1 / 12, -1 / 360, 1 / 1260, -1 / 1680, 1 / 1188, -691 / 360360, 1 / 156)
_POWERS = np.arange(1, 2 * len(_BINET), 2)
# Coefficients of x^−k w^j in the divergence of J, see `_gap_by_series`.
_TABLE = np.array(_BINET)[:, None] * np.maximum(
    _POWERS[:, None] + 1 - np.arange(1, _POWERS[-1] + 1), 0
)
_SHIFT = 10


def log_gamma_excess(x: Array) -> Array:
    """φ(x) = log Γ(x) − x log x + x, elementwise for x > 0."""
    binet = _series(np.array(_BINET), x) / x
    large = 0.5 * jnp.log(2 * jnp.pi / x) + binet
    return jnp.where(x >= _SHIFT, large, gammaln(x) - x * jnp.log(x) + x)


def log_minus_digamma(x: Array) -> Array:
    """L(x) = log x − ψ(x) = −φ'(x), elementwise for x > 0; 1/(2x) for large x."""
    large = 0.5 / x + _series(_POWERS * np.array(_BINET), x) / x**2
    return jnp.where(x >= _SHIFT, large, jnp.log(x) - digamma(x))


def trigamma_excess(x: Array) -> Array:
    """x ψ'(x) − 1 = −x L'(x), elementwise for x > 0; 1/(2x) for large x."""
    large = 0.5 / x + _series(_POWERS * (_POWERS + 1) * np.array(_BINET), x) / x**2
    return jnp.where(x >= _SHIFT, large, x * polygamma(1, x) - 1)


def log_gamma_excess_gap(x: Array, y: Array, step: Array) -> Array:
    """D_φ(y, x) = φ(y) − φ(x) − φ'(x) step with step = y − x; elementwise, nonnegative.

    Small x are moved up by Γ(x + 1) = x Γ(x), one factor at a time.
    """
    large = jnp.minimum(x, y) >= _SHIFT
    shift = jnp.where(large, 0, _SHIFT).astype(x.dtype)
    by_series = _gap_by_series(x + shift, y + shift, step)
    ks = jnp.arange(_SHIFT, dtype=x.dtype).reshape((1,) * x.ndim + (-1,))
    factors, factors2 = x[..., None] + ks, y[..., None] + ks
    moved = jnp.sum(ratio_remainder(factors, factors2, step[..., None]), axis=-1)
    entropies = entropy_remainder(x + _SHIFT, y + _SHIFT, step) - entropy_remainder(
        x, y, step
    )
    return by_series + jnp.where(large, 0.0, moved + entropies)


def log_gamma_gap(x: Array, y: Array, step: Array) -> Array:
    """log Γ(y) − log Γ(x) − ψ(x) step with step = y − x; elementwise, nonnegative."""
    return log_gamma_excess_gap(x, y, step) + entropy_remainder(x, y, step)


def _series(coefficients: np.ndarray, x: Array) -> Array:
    """Σ_i c_i x^−2i for x of at least `_SHIFT`, and for smaller x its value there."""
    square = 1 / jnp.maximum(x, _SHIFT) ** 2
    return jnp.polyval(jnp.asarray(coefficients[::-1], x.dtype), square)


def _gap_by_series(x: Array, y: Array, step: Array) -> Array:
    """D_φ by the asymptotic series, for x and y at least 10.

    With w = x/y that of x^−k is (step/x)² x^−k Σ_{j=1}^k (k + 1 − j) w^j.
    """
    w, u = (x / y)[..., None], step / x
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
    x = (3 - s + jnp.sqrt((s - 3) ** 2 + 24 * s)) / (12 * s)

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
