"""What is left of a function after its tangent: the pieces of a divergence.

Every Bregman divergence is a remainder f(x) − f(0) − f'(0) x. Written as a difference
it cancels for near points; the functions here keep their relative accuracy, and so do
their derivatives of every order, which are given in closed form.
"""

from __future__ import annotations

import math
from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from natgrad.typing import Array


@jax.custom_jvp
def expm1_remainder(x: Array) -> Array:
    """The remainder e^x − 1 − x, elementwise; x²/2 near zero."""
    return jnp.where(jnp.abs(x) < 1, expm1_series(x), jnp.expm1(x) - x)


expm1_remainder.defjvps(lambda dx, _, x: jnp.expm1(x) * dx)


def expm1_series(x: Array) -> Array:
    """The same for |x| <= 1 by its Taylor series, to rounding of the dtype."""
    last = 20 if jnp.finfo(x.dtype).bits > 32 else 11
    series = jnp.zeros_like(x)
    for n in range(last, 1, -1):
        series = series * x + 1 / math.factorial(n)
    return x * x * series


def bounded_expm1(x: Array) -> Array:
    """(e^x − 1)/max(1, e^x), elementwise: between −1 and 1, with the slope 1 at 0."""
    positive = x > 0
    rise = -jnp.expm1(-jnp.where(positive, x, 0.0))
    return jnp.where(positive, rise, jnp.expm1(jnp.where(positive, 0.0, x)))


@jax.custom_jvp
def log1p_remainder(x: Array) -> Array:
    """The remainder x − log(1 + x), elementwise for x > −1; x²/2 near zero.

    With s = x/(2 + x), log(1 + x) = 2 artanh(s) and the remainder is x s − 2(s³/3 + …).
    """
    s = x / (2 + x)
    series = jnp.zeros_like(x)
    for n in range(27, 1, -2):
        series = series * s * s + 1 / n
    near = (x > -1 / 3) & (x < 1 / 2)
    return jnp.where(near, s * (x - 2 * s * s * series), x - jnp.log1p(x))


log1p_remainder.defjvps(lambda dx, _, x: x / (1 + x) * dx)


@jax.custom_jvp
def quotient(x: Array, y: Array) -> Array:
    """x/y, elementwise, with a derivative that never squares y.

    By the inverse of y: compilers write x/(y/w) as (x w)/y, whose product overflows.
    """
    return x * (1 / y)


@quotient.defjvp
def _quotient_jvp(
    primals: tuple[Array, Array], tangents: tuple[Array, Array]
) -> tuple[Array, Array]:
    (x, y), (dx, dy) = primals, tangents
    ratio, inverse = quotient(x, y), quotient(jnp.ones_like(y), y)
    return ratio, dx * inverse - ratio * (dy * inverse)


@jax.custom_jvp
def scaled(x: Array, log_scale: Array) -> Array:
    """x e^−log_scale, elementwise, whose derivative in log_scale is minus itself."""
    return x * jnp.exp(-log_scale)


@scaled.defjvp
def _scaled_jvp(
    primals: tuple[Array, Array], tangents: tuple[Array, Array]
) -> tuple[Array, Array]:
    (x, log_scale), (dx, d_log) = primals, tangents
    value = scaled(x, log_scale)
    return value, scaled(dx, log_scale) - value * d_log


@jax.custom_jvp
def log_quotient(x: Array, y: Array) -> Array:
    """log(y/x), elementwise, also where y/x overflows or underflows; NaN below 0."""
    ratio, limits = y / x, jnp.finfo(x.dtype)
    inside = (ratio > limits.tiny) & (ratio < limits.max)
    apart = jnp.log(jnp.abs(y)) - jnp.log(jnp.abs(x))
    apart = jnp.where(ratio < 0, jnp.nan, apart)
    return jnp.where(inside, jnp.log(jnp.where(inside, ratio, 1.0)), apart)


@log_quotient.defjvp
def _log_quotient_jvp(
    primals: tuple[Array, Array], tangents: tuple[Array, Array]
) -> tuple[Array, Array]:
    (x, y), (dx, dy) = primals, tangents
    return log_quotient(x, y), quotient(dy, y) - quotient(dx, x)


@jax.custom_jvp
def ratio_remainder(x: Array, y: Array, step: Array) -> Array:
    """The remainder u − log(1 + u) with 1 + u = y/x > 0, elementwise; step is y − x.

    For near points u is step/x, for far ones only y/x is accurate. The derivatives are
    those along y and x, which determine the step.
    """
    u = quotient(step, x)
    near = jnp.abs(u) < 0.5
    close = log1p_remainder(jnp.where(near, u, 0.0))
    return jnp.where(near, close, u - log_quotient(x, y))


@ratio_remainder.defjvp
def _ratio_remainder_jvp(
    primals: tuple[Array, Array, Array], tangents: tuple[Array, Array, Array]
) -> tuple[Array, Array]:
    """u (dy/y − dx/x)."""
    (x, y, step), (dx, dy, _) = primals, tangents
    slope = quotient(dy, y) - quotient(dx, x)
    return ratio_remainder(x, y, step), quotient(step, x) * slope


@jax.custom_jvp
def entropy_remainder(x: Array, y: Array, step: Array) -> Array:
    """The remainder y log(y/x) − (y − x), elementwise for x, y > 0; step is y − x.

    The derivatives are those along y and x, which determine the step.
    """
    near = jnp.abs(step) < 0.5 * x
    u = jnp.where(near, step / x, 0.0)
    close = x * (u * jnp.log1p(u) - log1p_remainder(u))
    return jnp.where(near, close, y * log_quotient(x, y) - step)


@entropy_remainder.defjvp
def _entropy_remainder_jvp(
    primals: tuple[Array, Array, Array], tangents: tuple[Array, Array, Array]
) -> tuple[Array, Array]:
    """log(y/x) dy − u dx."""
    (x, y, step), (dx, dy, _) = primals, tangents
    near = jnp.abs(step) < 0.5 * x
    u = quotient(step, x)
    logarithm = jnp.where(near, jnp.log1p(jnp.where(near, u, 0.0)), log_quotient(x, y))
    return entropy_remainder(x, y, step), logarithm * dy - u * dx


@jax.custom_jvp
def poisson_deviance(y: Array, log_mean: Array) -> Array:
    """The remainder y log(y/λ) − (y − λ) with λ = e^log_mean; elementwise for y ≥ 0."""
    mean = jnp.exp(log_mean)
    safe, step = jnp.maximum(y, jnp.finfo(y.dtype).tiny), y - mean
    near = jnp.abs(step) < 0.5 * mean
    u = jnp.where(near, step / mean, 0.0)
    close = mean * (u * jnp.log1p(u) - log1p_remainder(u))
    return jnp.where(near, close, y * (jnp.log(safe) - log_mean) - step)


@poisson_deviance.defjvp
def _poisson_deviance_jvp(
    primals: tuple[Array, Array], tangents: tuple[Array, Array]
) -> tuple[Array, Array]:
    """log(y/λ) dy + (λ − y) dlog λ."""
    (y, log_mean), (dy, d_log) = primals, tangents
    safe = jnp.maximum(y, jnp.finfo(y.dtype).tiny)
    rise = (jnp.log(safe) - log_mean) * dy + (jnp.exp(log_mean) - y) * d_log
    return poisson_deviance(y, log_mean), rise


def taylor_remainder(second: Callable[[Array], Array], dtype: jnp.dtype) -> Array:
    """f(1) − f(0) − f'(0) = ∫₀¹ (1 − t) f''(t) dt by 12 Gauss-Legendre points.

    `second` is f'' at a t of shape (); the result has the shape of its values. It is
    positive where they are, and accurate where f'' is smooth on a scale of 1.
    """
    points, weights = np.polynomial.legendre.leggauss(12)
    ts = jnp.asarray((points + 1) / 2, dtype)
    values = jax.vmap(second)(ts)
    return jnp.tensordot(
        jnp.asarray(weights / 2, dtype) * (1 - ts), values, axes=1, precision="highest"
    )


def root(x: Array) -> Array:
    """√x, elementwise, with the derivative 0 at 0."""
    return jnp.where(x == 0, 0, jnp.sqrt(jnp.where(x == 0, 1, x)))


@jax.custom_jvp
def logistic(x: Array) -> Array:
    """1/(1 + e^−x), with the derivative σ(x) σ(−x), accurate where σ rounds to 1."""
    return jax.nn.sigmoid(x)


logistic.defjvps(lambda dx, p, x: p * logistic(-x) * dx)


@jax.custom_jvp
def softmax(x: Array) -> Array:
    """The softmax over the last axis, with a derivative accurate where it rounds to 1.

    dp_i = p_i (dx_i − Σ_j p_j dx_j) does not change with a constant added to dx; the
    constant here is minus the dx of the largest p.
    """
    return jax.nn.softmax(x, axis=-1)


@softmax.defjvp
def _softmax_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    (x,), (dx,) = primals, tangents
    p = softmax(x)
    largest = jnp.argmax(x, axis=-1, keepdims=True)
    dx = dx - jnp.take_along_axis(dx, largest, axis=-1)
    mean = jnp.einsum("...c,...c->...", p, dx, precision="highest")
    return p, p * (dx - mean[..., None])


def log_mean_exp(
    log_weights: Array, deviations: Array, exponents: Array | None = None
) -> Array:
    """The number log Σ_i w_i e^{c_i} over the last axis, for Σ w = 1 and Σ w c = 0.

    This is log(1 + Σ w (e^c − 1 − c)), a log of one plus nonnegative terms; where e^c
    would overflow it is the usual log-sum-exp. `exponents` are log w + c, where those
    of infinite log w are known.
    """
    if exponents is None:
        exponents = log_weights + deviations
    weights = jnp.exp(log_weights)
    near = (deviations < 1) & (log_weights > -jnp.inf)
    top = jax.lax.stop_gradient(jnp.max(exponents, axis=-1, keepdims=True))
    finite = top < 30
    close = weights * expm1_remainder(jnp.where(near, deviations, 0.0))
    far = jnp.where(finite & ~near, exponents, 0.0)
    apart = jnp.exp(far) - weights * (1 + jnp.where(near, 0.0, deviations))
    total = jnp.sum(jnp.where(near, close, apart), axis=-1)
    top = jnp.where(~finite & jnp.isfinite(top), top, 0.0)
    total_far = jnp.sum(jnp.exp(jnp.where(finite, 0.0, exponents) - top), axis=-1)
    largest = jnp.log(total_far) + top[..., 0]
    finite = finite[..., 0]
    return jnp.where(finite, jnp.log1p(jnp.where(finite, total, 0.0)), largest)


@jax.custom_jvp
def tanh_remainder(x: Array) -> Array:
    """The remainder x − 2 tanh(x/2), elementwise; x³/12 near zero.

    By the continued fraction tanh t = t/(1 + t²/(3 + t²/(5 + …))).
    """
    square = jnp.where(jnp.abs(x) < 2, x * x / 4, 0.0)
    fraction = jnp.full_like(x, 25)
    for n in range(23, 1, -2):
        fraction = n + square / fraction
    return jnp.where(
        jnp.abs(x) < 2, x * square / (fraction + square), x - 2 * jnp.tanh(x / 2)
    )


tanh_remainder.defjvps(lambda dx, _, x: jnp.tanh(x / 2) ** 2 * dx)
