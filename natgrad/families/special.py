"""The log-gamma function: its Bregman divergences, and an inverse.

    φ(x) = log Γ(x) − x log x + x = log(2π/x)/2 + J(x),

where J is Binet's function, 1/(12x) − 1/(360x³) + …  Both parts are convex.

Source: NIST Digital Library of Mathematical Functions, 5.11(i).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from jax.scipy.special import digamma, polygamma

from natgrad.families.remainders import log1p_remainder
from natgrad.typing import Array

# J(x) = Σ_i _BINET[i] x^−(2i + 1)
_BINET = (1 / 12, -1 / 360, 1 / 1260, -1 / 1680, 1 / 1188, -691 / 360360, 1 / 156)
_POWERS = np.arange(1, 2 * len(_BINET), 2)
# Coefficients of x^−k w^j in the divergence of J, see `_gap_by_series`.
_TABLE = np.array(_BINET)[:, None] * np.maximum(
    _POWERS[:, None] + 1 - np.arange(1, _POWERS[-1] + 1), 0
)
_SHIFT = 10


def log_gamma_excess_gap(x: Array, step: Array) -> Array:
    """D_φ(x + step, x) = φ(x + step) − φ(x) − φ'(x) step, elementwise; nonnegative.

    Small x are moved up by Γ(x + 1) = x Γ(x), one factor at a time.
    """
    large = jnp.minimum(x, x + step) >= _SHIFT
    by_series = _gap_by_series(jnp.where(large, x, x + _SHIFT), step)
    factors = x[..., None] + jnp.arange(_SHIFT, dtype=x.dtype).reshape(
        (1,) * x.ndim + (-1,)
    )
    moved = jnp.sum(log1p_remainder(step[..., None] / factors), axis=-1)
    entropies = _entropy_gap(x + _SHIFT, step) - _entropy_gap(x, step)
    return by_series + jnp.where(large, 0.0, moved + entropies)


def log_gamma_gap(x: Array, step: Array) -> Array:
    """log Γ(x + step) − log Γ(x) − ψ(x) step, elementwise; nonnegative."""
    return log_gamma_excess_gap(x, step) + _entropy_gap(x, step)


def _gap_by_series(x: Array, step: Array) -> Array:
    """D_φ by the asymptotic series, for x and x + step at least 10.

    With w = x/(x + step) that of x^−k is (step/x)² x^−k Σ_{j=1}^k (k + 1 − j) w^j.
    """
    w, u = (x / (x + step))[..., None], step / x
    powers_of_w = jnp.cumprod(jnp.repeat(w, _POWERS[-1], axis=-1), axis=-1)
    powers_of_x = jnp.cumprod(
        jnp.repeat(1 / x[..., None], _POWERS[-1], axis=-1), axis=-1
    )
    table = jnp.asarray(_TABLE, x.dtype)
    total = jnp.einsum("...k,kj,...j->...", powers_of_x[..., ::2], table, powers_of_w)
    return 0.5 * log1p_remainder(u) + u * u * total


def _entropy_gap(x: Array, step: Array) -> Array:
    """The divergence of x log x: (x + step) log(1 + step/x) − step."""
    u = step / x
    return x * (u * jnp.log1p(u) - log1p_remainder(u))


@jax.custom_jvp
def inverse_log_minus_digamma(s: Array) -> Array:
    """The x > 0 with log x − ψ(x) = s, elementwise for s > 0.

    Newton's method for log x in the equation log(log x − ψ(x)) = log s, which is nearly
    linear: −1 and slightly less are its slopes.
    """
    x = (3 - s + jnp.sqrt((s - 3) ** 2 + 24 * s)) / (12 * s)
    for _ in range(6):
        value = jnp.log(x) - digamma(x)
        slope = (1 - x * polygamma(1, x)) / value
        x = x * jnp.exp(-jnp.log(value / s) / slope)
    return x


inverse_log_minus_digamma.defjvps(lambda ds, x, _: ds / (1 / x - polygamma(1, x)))
