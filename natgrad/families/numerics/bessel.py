"""The modified Bessel functions of orders 0 and 1, as von Mises' law needs them.

With q = κ² and R(κ) = I₁(κ)/I₀(κ), for small q log I₀ and R/κ are smooth functions of
q, the logarithm and the ratio of the power series J_ν = I_ν/κ^ν. For large q

    log I₀(κ) = κ − log(2πκ)/2 + log S(1/κ),   S(x) = Σ_k x^k ∏_{j≤k} (2j − 1)²/(8j),

and what is left of R after its leading terms, 1 − R = x/2 + … and R' = x²/2 + … with
x = 1/κ, comes from S too and keeps its relative accuracy. At the border, κ = 16, the
series S is accurate to 1e-14.

Source: NIST Digital Library of Mathematical Functions, 10.25.2 and 10.40.1.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from natgrad.families.numerics.checks import aligned, inside
from natgrad.typing import Array

_BORDER = 256.0


@functools.cache
def _series(coefficients: tuple[float, ...]) -> Callable[[Array], Array]:
    """Σ_k c_k x^k for 0 ≤ x ≤ 1, elementwise, whose derivatives are such sums too."""
    orders = np.arange(len(coefficients))
    slopes = tuple((orders * np.array(coefficients))[1:])

    @jax.custom_jvp
    def evaluate(x: Array) -> Array:
        x = x[..., None]
        return jnp.sum(aligned(np.array(coefficients), x) * x ** aligned(orders, x), -1)

    evaluate.defjvps(lambda dx, _, x: _series(slopes)(x) * dx)
    # Traced and differentiated once, not at each of its many uses.
    return jax.jit(evaluate)


def _power_series(nu: int) -> Callable[[Array], Array]:
    """J_ν(x) = 2^−ν Σ_k (x q/4)^k/(k! (k + ν)!) with q at the border."""
    terms = [
        0.5**nu * (_BORDER / 4) ** k / (math.factorial(k) * math.factorial(k + nu))
        for k in range(40)
    ]
    return _series(tuple(terms))


def _asymptotic_series() -> Callable[[Array], Array]:
    """S at x/16."""
    k = np.arange(1, 31)
    terms = np.cumprod((2 * k - 1.0) ** 2 / (8 * k) / math.sqrt(_BORDER))
    return _series((1.0, *terms))


_J0, _J1, _J2, _S = *map(_power_series, range(3)), _asymptotic_series()


class Concentration(NamedTuple):
    """κ as the functions below read it: smooth at 0, and at large κ without its square.

    Attributes:
        square: κ² where κ < 16, elsewhere 256.
        inverse: 1/κ where κ ≥ 16, elsewhere 1/16.
    """

    square: Array
    inverse: Array


def of_kappa(kappa: Array) -> Concentration:
    """That of κ ≥ 0."""
    border = math.sqrt(_BORDER)
    return Concentration(
        jnp.minimum(kappa, border) ** 2, 1 / jnp.maximum(kappa, border)
    )


def _choose(k: Concentration, small: Array, large: Array) -> Array:
    return jnp.where(k.square < _BORDER, small, large)


def log_bessel0(k: Concentration, kappa: Array) -> Array:
    """log I₀(κ), elementwise."""
    series = jnp.log(_J0(k.square / _BORDER))
    return _choose(k, series, kappa + _log_scaled(k, kappa))


def log_scaled_bessel0(k: Concentration, kappa: Array) -> Array:
    """log(I₀(κ) e^−κ), elementwise."""
    series = jnp.log(_J0(k.square / _BORDER)) - root(k.square)
    return _choose(k, series, _log_scaled(k, kappa))


def bessel_ratio(k: Concentration) -> Array:
    """R(κ)/κ, elementwise; 1/2 at 0."""
    series = _J1(k.square / _BORDER) / _J0(k.square / _BORDER)
    return _choose(k, series, k.inverse * (1 - _complement(k.inverse)))


def bessel_complement(k: Concentration) -> Array:
    """1 − R(κ), elementwise; 1/(2κ) for large κ."""
    ratio = _J1(k.square / _BORDER) / _J0(k.square / _BORDER)
    return _choose(k, 1 - root(k.square) * ratio, _complement(k.inverse))


def bessel_slope(k: Concentration) -> Array:
    """R'(κ) = 1 − R/κ − R², elementwise; 1/(2κ²) for large κ."""
    ratio = _J1(k.square / _BORDER) / _J0(k.square / _BORDER)
    return _choose(k, 1 - ratio - k.square * ratio**2, _slope(k.inverse))


def bessel_log_slope(k: Concentration) -> Array:
    """κ² R'(κ), elementwise; 1/2 for large κ."""
    return _choose(k, k.square * bessel_slope(k), _slope_factor(k.inverse))


def bessel_curvature(q: Array) -> Array:
    """2 d/dq of R(√q)/√q, which is (R' − R/√q)/q; elementwise for q = κ² < 256 only."""
    x = q / _BORDER
    first = _J1(x)
    ratio = first / _J0(x)
    return ratio * (_J2(x) / first - ratio)


def inverse_bessel_ratio(length: Array, complement: Array) -> Array:
    """κ with R(κ) = length = 1 − complement, elementwise; NaN outside of [0, 1).

    Newton's method for R(κ), or where that is near 1 for log(1 − R) in log κ. The start
    (Banerjee et al. 2005) is within 10 %.
    """
    good = (complement > 0) & (complement <= 1) & (length <= 1)
    rest = jnp.where(good, complement, 0.5)
    length = jnp.where(good, length, 0.5)
    kappa = length * (2 - length**2) / (rest * (1 + length))

    def newton(_, kappa):
        point = of_kappa(kappa)
        slope, value = bessel_slope(point), bessel_complement(point)
        linear = kappa - (kappa * bessel_ratio(point) - length) / slope
        growth = jnp.log(value / rest) * value / (slope * jnp.maximum(kappa, 0.1))
        return jnp.where(length < 0.5, linear, kappa * jnp.exp(growth))

    return inside(good, jax.lax.fori_loop(0, 6, newton, kappa))


def root(q: Array) -> Array:
    """√q for q ≥ 0, with the derivative 0 at 0."""
    positive = q > 0
    return jnp.where(positive, jnp.sqrt(jnp.where(positive, q, 1.0)), 0.0)


def _log_scaled(k: Concentration, kappa: Array) -> Array:
    safe = jnp.maximum(kappa, math.sqrt(_BORDER))
    return jnp.log(_S(16 * k.inverse)) - 0.5 * jnp.log(2 * math.pi * safe)


def _log_slopes(x: Array) -> tuple[Array, Array, Array]:
    """S, S'/S and S''/S at x."""
    first = lambda y: jax.jvp(_S, (y,), (jnp.full_like(y, 16.0),))
    (s, slope), (_, curve) = jax.jvp(first, (16 * x,), (jnp.full_like(x, 16.0),))
    return s, slope / s, curve / s


def _complement(x: Array) -> Array:
    """x/2 + x² S'/S."""
    return x * (0.5 + x * _log_slopes(x)[1])


def _slope(x: Array) -> Array:
    """x² times the derivative of `_complement`."""
    return x**2 * _slope_factor(x)


def _slope_factor(x: Array) -> Array:
    """The derivative of `_complement`."""
    _, first, second = _log_slopes(x)
    return 0.5 + x * (2 * first + x * (second - first**2))
