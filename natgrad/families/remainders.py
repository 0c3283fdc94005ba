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
    series = jnp.zeros_like(x)
    for n in range(20, 1, -1):
        series = series * x + 1 / math.factorial(n)
    return jnp.where(jnp.abs(x) < 1, x * x * series, jnp.expm1(x) - x)


expm1_remainder.defjvps(lambda dx, _, x: jnp.expm1(x) * dx)


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


def ratio_remainder(x: Array, y: Array, step: Array) -> Array:
    """The remainder u − log(1 + u) with 1 + u = y/x > 0, elementwise; step is y − x.

    For near points u is step/x, for y much smaller than x only y/x is accurate.
    """
    far = y / x < 0.5
    u = jnp.where(far, 0.0, step / x)
    return jnp.where(far, step / x - jnp.log(y / x), log1p_remainder(u))


def entropy_remainder(x: Array, y: Array, step: Array) -> Array:
    """The remainder y log(y/x) − (y − x), elementwise for x, y > 0; step is y − x."""
    far = y / x < 0.5
    u = jnp.where(far, 0.0, step / x)
    near = x * (u * jnp.log1p(u) - log1p_remainder(u))
    return jnp.where(far, y * jnp.log(y / x) - step, near)


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


def log_mean_exp(log_weights: Array, deviations: Array) -> Array:
    """The number log Σ_i w_i e^{c_i} over the last axis, for Σ w = 1 and Σ w c = 0.

    This is log(1 + Σ w (e^c − 1 − c)), a log of one plus nonnegative terms; where e^c
    would overflow it is the usual log-sum-exp.
    """
    near = jnp.all(deviations < 20, axis=-1, keepdims=True)
    weights = jnp.exp(log_weights)
    rest = expm1_remainder(jnp.where(near, deviations, 0.0))
    total = jnp.einsum("...i,...i->...", weights, rest, precision="highest")
    far = jax.nn.logsumexp(log_weights + jnp.where(near, 0.0, deviations), axis=-1)
    return jnp.where(near[..., 0], jnp.log1p(total), far)


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
