"""Von Mises law of an angle, with mean direction m and concentration κ.

It is parametrised by η = κ (cos m, sin m), any vector of two numbers. With R = I₁/I₀

    A(η) = log 2πI₀(κ),   T(y) = (cos y, sin y),   mean μ = R(κ) (cos m, sin m),
    F_η = R'(κ) u uᵀ + R(κ)/κ (I − u uᵀ),   u = (cos m, sin m),
    KL = log I₀(κ') − log I₀(κ) − R(κ)(κ' − κ) + R(κ) κ' (1 − cos(m' − m)).

At κ = 0, the uniform law, all of these are smooth in η. For near points the divergence
is the integral of F along the segment between them, radially and in angle.

Nodes. The score products are quadratic in (cos, sin): the mean direction and one angle
to each of its sides are exact (Gauss-Radau in the cosine).

Source: Mardia & Jupp, Directional Statistics (2000), section 3.5.4; Best & Fisher,
Efficient simulation of the von Mises distribution (1979).
"""

from __future__ import annotations

import dataclasses
import math
from typing import ClassVar

import jax
import jax.numpy as jnp
import numpy as np

from natgrad.families.base import ExponentialFamily
from natgrad.families.numerics.angles import centred_angles
from natgrad.families.numerics.bessel import (
    Concentration,
    bessel_complement,
    bessel_curvature,
    bessel_log_slope,
    bessel_ratio,
    bessel_slope,
    inverse_bessel_ratio,
    log_bessel0,
    log_scaled_bessel0,
    of_kappa,
)
from natgrad.families.numerics.checks import aligned, resolved, split_pair
from natgrad.families.numerics.divergences import divergence
from natgrad.families.numerics.remainders import quotient, taylor_remainder
from natgrad.typing import Array, Key

_LOG_2PI = math.log(2 * math.pi)


@dataclasses.dataclass(frozen=True)
class VonMises(ExponentialFamily):
    """p(y) ∝ e^{κ cos(y − m)} of an angle y: the last axis of z is κ (cos m, sin m)."""

    parameter_ndim: ClassVar[int] = 1

    def log_prob(self, z: Array, y: Array) -> Array:
        """−Σ 2κ sin²((y − m)/2) + log 2πI₀(κ)e^−κ."""
        y, kappa, point = jnp.asarray(y, z.dtype), _norm(z), _concentrated(z)
        half = jnp.sin(0.5 * (y - _direction(z)))
        large = -2 * kappa * half**2 - log_scaled_bessel0(point, kappa)
        small = _dot(z, self.sufficient_statistics(y)) - log_bessel0(point, kappa)
        return jnp.sum(jnp.where(kappa < 1, small, large) - _LOG_2PI)

    def log_normalizer(self, eta: Array) -> Array:
        """Σ log 2πI₀(κ)."""
        return jnp.sum(log_bessel0(_concentrated(eta), _norm(eta)) + _LOG_2PI)

    def sufficient_statistics(self, y: Array) -> Array:
        """T(y) = (cos y, sin y)."""
        y = jnp.asarray(y)
        return jnp.stack([jnp.cos(y), jnp.sin(y)], axis=-1)

    def mean(self, eta: Array) -> Array:
        """R(κ) (cos m, sin m)."""
        return _mean(eta)

    def natural(self, mu: Array) -> Array:
        """κ (cos m, sin m), by Newton's method; NaN unless |μ| < 1 beyond rounding."""
        length = _norm(mu)
        return _natural(mu, resolved(1 - length, length))

    def mean_complement(self, eta: Array) -> Array:
        """1 − |μ|, of shape eta.shape[:-1], where that cancels."""
        return bessel_complement(_concentrated(eta))

    def natural_from_complement(self, mu: Array, complement: Array) -> Array:
        """κ (cos m, sin m) of μ and 1 − |μ|; NaN unless that is in (0, 1].

        Derivatives are those along μ, which determines the complement.
        """
        return _natural(mu, complement)

    def entropy(self, eta: Array) -> Array:
        """Σ log 2πI₀(κ)e^−κ + κ (1 − R(κ))."""
        kappa, point = _norm(eta), _concentrated(eta)
        rest = kappa * bessel_complement(point)
        return jnp.sum(_LOG_2PI + log_scaled_bessel0(point, kappa) + rest)

    def kl(self, z: Array, z2: Array) -> Array:
        """Σ of the radial and the angular divergence, see above."""
        kappa, step = _norm(z), _norm(z2 - z)
        near = jnp.where(kappa < 2, step < 1, step < 0.5 * kappa)
        return jnp.sum(divergence(self, _divergence, z, z2, near, _slope))

    def score(self, z: Array, y: Array) -> Array:
        """(cos y, sin y) − μ, by differences of angles where κ is large."""
        y = jnp.asarray(y, z.dtype)
        concentration, direction = _concentrated(z), _direction(z)
        middle, half = 0.5 * (y + direction), jnp.sin(0.5 * (y - direction))
        chord = jnp.stack([-jnp.sin(middle), jnp.cos(middle)], axis=-1)
        away = 2 * half[..., None] * chord
        unit = jnp.stack([jnp.cos(direction), jnp.sin(direction)], axis=-1)
        large = away + bessel_complement(concentration)[..., None] * unit
        small = self.sufficient_statistics(y) - self.mean(z)
        return jnp.where(_norm(z)[..., None] < 1, small, large)

    def score_nodes(self, z: Array) -> tuple[Array, Array]:
        """Three angles: m, and one on each side of it."""
        concentration = _concentrated(z)
        complement = bessel_complement(concentration)
        other = bessel_slope(concentration) / complement
        angle = 2 * jnp.arcsin(jnp.sqrt(0.5 * (complement + other)))
        ys = _direction(z) + jnp.stack([jnp.zeros_like(angle), angle, -angle])
        side = 0.5 * complement / (complement + other)
        return ys, jnp.stack([other / (complement + other), side, side])

    def sample(self, key: Key, z: Array) -> Array:
        """An angle in [−π, π] for each factor."""
        angle = _direction(z) + centred_angles(key, _norm(z))
        return angle - 2 * math.pi * jnp.round(angle / (2 * math.pi))

    def in_support(self, z: Array, y: Array) -> Array:
        """Whether y is finite: angles are read modulo 2π."""
        del z
        return jnp.isfinite(y)


@jax.custom_jvp
def _length(z: Array) -> Array:
    """κ, with the derivative 0 at 0."""
    return jnp.hypot(*split_pair("VonMises", "κ (cos m, sin m)", z))


@_length.defjvp
def _length_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    (z,), (dz,) = primals, tangents
    kappa = _norm(z)
    return kappa, jnp.where(kappa > 0, _dot(_unit(z), dz), 0.0)


# Traced and differentiated once, not at each of its many uses.
_norm = jax.jit(_length)


def _concentrated(z: Array) -> Concentration:
    kappa = _norm(z)
    below = kappa < 16
    small = jnp.where(below[..., None], z, aligned(np.array([16.0, 0.0]), z))
    return Concentration(jnp.sum(small**2, axis=-1), of_kappa(kappa).inverse)


def _unit(z: Array) -> Array:
    """(cos m, sin m); m is 0 for κ = 0."""
    kappa = _norm(z)[..., None]
    safe = jnp.where(kappa > 0, z, aligned(np.array([1.0, 0.0]), z))
    return quotient(safe, jnp.where(kappa > 0, kappa, 1.0))


def _direction(z: Array) -> Array:
    """m; 0 for κ = 0."""
    unit = _unit(z)
    return jnp.arctan2(unit[..., 1], unit[..., 0])


def _dot(a: Array, b: Array) -> Array:
    return jnp.sum(a * b, axis=-1)


def _combined(eta: Array, v: Array, along: Array, across: Array) -> Array:
    """The part of v along η times `along`, and the rest times `across`."""
    unit = _unit(eta)
    part = _dot(unit, v)[..., None] * unit
    return across[..., None] * (v - part) + along[..., None] * part


@jax.custom_jvp
def _mean(eta: Array) -> Array:
    return bessel_ratio(_concentrated(eta))[..., None] * eta


@_mean.defjvp
def _mean_jvp(primals: tuple[Array], tangents: tuple[Array]) -> tuple[Array, Array]:
    """F dη, of the two eigenvectors for κ ≥ 1."""
    (eta,), (v,) = primals, tangents
    concentration, below1 = _concentrated(eta), _norm(eta) < 1
    ratio = bessel_ratio(concentration)
    small = jnp.where(below1, concentration.square, 0.0)
    inner = (bessel_curvature(small) * _dot(eta, v))[..., None]
    below = ratio[..., None] * v + inner * eta
    above = _combined(eta, v, bessel_slope(concentration), ratio)
    return _mean(eta), jnp.where(below1[..., None], below, above)


@jax.custom_jvp
def _natural(mu: Array, complement: Array) -> Array:
    kappa = of_kappa(inverse_bessel_ratio(_norm(mu), complement))
    return mu / bessel_ratio(kappa)[..., None]


@_natural.defjvp
def _natural_jvp(
    primals: tuple[Array, Array], tangents: tuple[Array, Array]
) -> tuple[Array, Array]:
    """F⁻¹ dμ."""
    eta, v = _natural(*primals), tangents[0]
    concentration, below1 = _concentrated(eta), _norm(eta) < 1
    ratio, slope = bessel_ratio(concentration), bessel_slope(concentration)
    small = jnp.where(below1, concentration.square, 0.0)
    inner = bessel_curvature(small) * _dot(eta, v) / slope
    below = (v - inner[..., None] * eta) / ratio[..., None]
    above = _combined(eta, v, 1 / slope, 1 / ratio)
    return eta, jnp.where(below1[..., None], below, above)


def _near_small(point: Concentration, change: Array, step: Array) -> Array:
    """f(q + c) − f(q) − f'(q)(c − |d|²) with f(q) = log I₀(√q), whose f' is R/(2κ)."""

    def second(t):
        return 0.25 * bessel_curvature(point.square + t * change) * change**2

    rest = taylor_remainder(second, change.dtype)
    return 0.5 * bessel_ratio(point) * step + rest


def _divergence(z: Array, z2: Array) -> Array:
    """KL of each factor: in κ² for small κ, else radially and in angle."""
    d, kappa, kappa2 = z2 - z, _norm(z), _norm(z2)
    below = kappa < 2
    small = jnp.where(below[..., None], z, 0.0)
    near = below & (_norm(d) < 1)
    square, step = jnp.sum(small**2, axis=-1), jnp.where(near[..., None], d, 0.0)
    length = jnp.sum(step**2, axis=-1)
    point = Concentration(square, jnp.full_like(square, 1 / 16))
    of_small = jnp.where(
        near,
        _near_small(point, 2 * _dot(small, step) + length, length),
        log_bessel0(_concentrated(z2), kappa2)
        - log_bessel0(point, _norm(small))
        - bessel_ratio(point) * _dot(small, d),
    )
    large = jnp.where(below[..., None], aligned(np.array([2.0, 0.0]), z), z)
    angle = (1 - bessel_complement(_concentrated(large))) * _angular(large, z2)
    return jnp.where(below, of_small, _radial(_norm(large), kappa2, large, z2) + angle)


def _slope(z: Array, z2: Array) -> Array:
    """F_z (z − z2), where F_z z is κ R'(κ) u."""
    kappa, product = _norm(z), VonMises().fisher_product
    some = jnp.where(kappa < 1, 1.0, kappa)
    radial = quotient(bessel_log_slope(_concentrated(z)), some)[..., None] * _unit(z)
    large = radial - product(z, z2)
    return jnp.where((kappa < 1)[..., None], product(z, z - z2), large)


def _radial(kappa: Array, kappa2: Array, z: Array, z2: Array) -> Array:
    """log I₀(κ') − log I₀(κ) − R(κ)(κ' − κ), for κ ≥ 2."""
    d = z2 - z
    near = _norm(d) < 0.5 * kappa
    # κ' − κ, from the difference of the vectors where these are near.
    whole = kappa + kappa2
    short = _dot(_unit(z), d) * (kappa / whole) + _dot(z2 / whole[..., None], d)
    step = jnp.where(near, short, 0.0)

    def second(t):
        moved = kappa + t * step
        return bessel_log_slope(of_kappa(moved)) * quotient(step, moved) ** 2

    point, point2 = of_kappa(kappa), _concentrated(z2)
    far = log_scaled_bessel0(point2, kappa2) - log_scaled_bessel0(point, kappa)
    far = far + bessel_complement(point) * (kappa2 - kappa)
    return jnp.where(near, taylor_remainder(second, step.dtype), far)


def _angular(z: Array, z2: Array) -> Array:
    """κ' (1 − cos(m' − m)), from the sine where the angle is acute."""
    unit, length, d = _unit(z), _norm(z2), z2 - z
    dot = _dot(unit, z2)
    near = _norm(d) < 0.5 * _norm(z)
    move = jnp.where(near[..., None], d, z2)
    cross = unit[..., 0] * move[..., 1] - unit[..., 1] * move[..., 0]
    acute = dot > 0
    both = jnp.where(acute, length + dot, 1.0)
    return jnp.where(acute, cross * quotient(cross, both), length - dot)
