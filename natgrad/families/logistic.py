"""Logistic law with location m and log scale ρ.

    log p(y | m, ρ) = −c(ε) − ρ,   c(ε) = 2 log(2 cosh(ε/2)),   ε = (y − m) e^−ρ,
    score = (tanh(ε/2) e^−ρ, ε tanh(ε/2) − 1),   F = diag(e^−2ρ/3, (3 + π²)/9).

Nodes. Four points ±ε₁, ±ε₂, with the weights and places for which 1, tanh²(ε/2),
ε tanh(ε/2) and its square have the expectations 1, 1/3, 1 and 1 + (3 + π²)/9.

KL. With t = ρ − ρ' and ε' = ε e^t + δ, δ = (m − m') e^−ρ', it is E[c(ε')] − 2 − t, an
integral without a closed form. Near points: the trapezoidal rule for E[r − 1 − log r],
r the ratio of the densities, whose terms are all positive. Far points: that rule for
E[c(ε')] if t < 0; if t > 0, c(x) = |x| + 2 log(1 + e^−|x|), where E|ε'| is
e^t c(δ e^−t) and the rest is integrated over each half-line of x = ε'. Held to
1e-9 relative in double precision by the tests.
"""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np

from natgrad.families.location_scale import LocationScale
from natgrad.families.numerics.checks import aligned
from natgrad.families.numerics.remainders import expm1_remainder
from natgrad.typing import Array, Key

# Solutions of the four equations above, by Newton's method at 30 digits.
_NODES = (1.0355764435946256749, 3.9673716552932880308)
_WEIGHTS = (0.84759187818623966008, 0.15240812181376033992)
_TRAPEZOID = np.arange(-42.0, 42.1, 0.3)
# x = exp(u − e^−u), for the half-line.
_U = np.arange(-3.5, 3.8, 0.08)
_HALF_LINE = np.exp(_U - np.exp(-_U))
_HALF_LINE_WEIGHTS = 0.08 * _HALF_LINE * (1 + np.exp(-_U))


@dataclasses.dataclass(frozen=True)
class Logistic(LocationScale):
    """y = m + e^ρ ε, ε of the logistic law: the last axis of z holds (m, ρ)."""

    def standard_log_prob(self, residual: Array) -> Array:
        """−c(ε)."""
        return -_c(residual)

    def standard_slopes(self, residual: Array) -> tuple[Array, Array]:
        """tanh(ε/2) and ε tanh(ε/2)."""
        slope = jnp.tanh(residual / 2)
        return slope, residual * slope

    def standard_information(self, dtype: jnp.dtype) -> tuple[float, float]:
        """1/3 and (3 + π²)/9."""
        del dtype
        return 1 / 3, (3 + math.pi**2) / 9

    def standard_nodes(self, dtype: jnp.dtype) -> tuple[Array, Array]:
        """Four points ±ε₁, ±ε₂, see above."""
        residuals, weights = jnp.array(_NODES, dtype), jnp.array(_WEIGHTS, dtype) / 2
        both = jnp.concatenate([-residuals, residuals])
        return both, jnp.concatenate([weights, weights])

    def standard_sample(
        self, key: Key, shape: tuple[int, ...], dtype: jnp.dtype
    ) -> Array:
        """By `jax.random.logistic`."""
        return jax.random.logistic(key, shape, dtype)

    def divergence(self, gap: Array, log_scale: Array, log_scale2: Array) -> Array:
        """E[c(ε e^t + δ)] − 2 − t, by quadrature."""
        t = log_scale - log_scale2
        delta, shift = gap * jnp.exp(-log_scale2), gap * jnp.exp(-log_scale)
        near = (jnp.abs(t) < 0.5) & (jnp.abs(delta) < 1)
        close = _near(jnp.where(near, t, 0.0), jnp.where(near, delta, 0.0))
        wider = t < 0
        of_wider = _far_wider(jnp.where(wider, t, 0.0), jnp.where(wider, delta, 0.0))
        of_narrower = _far_narrower(
            jnp.where(wider, 0.0, t), jnp.where(wider, 0.0, shift)
        )
        far = jnp.where(wider, of_wider, of_narrower) - 2 - t
        return jnp.where(near, close, far)


@jax.custom_jvp
def _c(x: Array) -> Array:
    return 2 * jnp.logaddexp(x / 2, -x / 2)


_c.defjvps(lambda dx, _, x: jnp.tanh(x / 2) * dx)


def _density(x: Array) -> Array:
    return jax.nn.sigmoid(x) * jax.nn.sigmoid(-x)


def _near(t: Array, delta: Array) -> Array:
    """E[r − 1 − log r] with log r = t − (c(ε') − c(ε)), over a last axis of ε."""
    e = aligned(_TRAPEZOID, t[..., None])
    step = e * jnp.expm1(t)[..., None] + delta[..., None]
    small = jnp.abs(step) < 1
    near = jnp.where(small, step, 0.0)
    ratio = 2 * jnp.sinh(near / 4) ** 2 + jnp.tanh(e / 2) * jnp.sinh(near / 2)
    change = jnp.where(small, 2 * jnp.log1p(ratio), _c(e + step) - _c(e))
    terms = _density(e) * expm1_remainder(t[..., None] - change)
    return 0.3 * jnp.sum(terms, axis=-1)


def _far_wider(t: Array, delta: Array) -> Array:
    """E[c(ε')] where the second law is the wider one: c is smooth in ε."""
    e = aligned(_TRAPEZOID, t[..., None])
    slope = jnp.exp(t)[..., None]
    return 0.3 * jnp.sum(_density(e) * _c(e * slope + delta[..., None]), axis=-1)


def _far_narrower(t: Array, shift: Array) -> Array:
    """E[c(ε')] where the second law is the narrower one, in x = ε'; shift is δ e^−t."""
    x = aligned(_HALF_LINE, t[..., None])
    weights = aligned(_HALF_LINE_WEIGHTS, x)
    shrink = jnp.exp(-t)
    of = lambda x: _density(x * shrink[..., None] - shift[..., None])
    bump = 2 * jnp.log1p(jnp.exp(-x)) * (of(x) + of(-x))
    return _c(shift) * jnp.exp(t) + shrink * jnp.sum(weights * bump, axis=-1)
