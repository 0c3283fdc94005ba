"""Definitions that must agree: of F, of a divergence, of a law in several charts."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from natgrad.families.base import Family
from natgrad.geometry.charts import Chart, charts
from natgrad.geometry.check.measures import bound_of, place, relative_error, slope
from natgrad.geometry.check.report import Check, Report
from natgrad.geometry.connections import amari_chentsov
from natgrad.geometry.information import fisher_matrix, flat
from natgrad.geometry.points import Point
from natgrad.typing import Array, Key

_DEVIATIONS = 5.0  # standard errors that a Monte-Carlo mean may be off


def fisher_agreement(
    point: Point,
    *,
    key: Key | None = None,
    samples: int = 20_000,
    tolerance: float | None = None,
) -> Report:
    """Hessians of KL in both arguments, E[s sᵀ] and −E[∇² log p], against the metric.

    Expectations are sums over `family.nodes` where the family has nodes of its own, and
    else means over samples, judged by their standard errors.

    Args:
        point: one factor, in any chart.
        key: of the samples; needed where the family has no nodes.
        samples: how many.
        tolerance: of the relative error; None for 1e-9 in float64, 1e-3 in float32.
    """
    x, n = point.coordinates, point.coordinates.size
    bound = bound_of(x, tolerance)
    reference = fisher_matrix(point)
    log_prob = lambda x, y: point.at(x).log_prob(y)
    hessian = lambda f: jax.jit(jax.hessian(f))(x).reshape(n, n)
    checks = [
        _matrix_check("Hessian of KL(p ‖ ·)", hessian(_kl_to(point)), reference, bound),
        _matrix_check(
            "Hessian of KL(· ‖ p)", hessian(_kl_from(point)), reference, bound
        ),
    ]

    @jax.jit
    @jax.vmap
    def terms(y):
        s = jax.grad(log_prob)(x, y).ravel()
        return jnp.outer(s, s), -jax.hessian(log_prob)(x, y).reshape(n, n)

    names = "E[s sᵀ]", "−E[∇² log p]"
    if type(point.family).nodes is not Family.nodes:
        ys, weights = point.family.nodes(point.natural)
        for name, values in zip(names, terms(ys), strict=True):
            mean = jnp.tensordot(weights, values, axes=1)
            checks.append(_matrix_check(name, mean, reference, bound))
    elif key is None:
        raise ValueError(
            f"fisher_agreement: no key was given, and {point.family!r} has no nodes; "
            "expected key=jax.random.key(0) for the samples."
        )
    else:
        ys = jax.vmap(point.sample)(jax.random.split(key, samples))
        for name, values in zip(names, terms(ys), strict=True):
            checks.append(_sampled_check(name, values, reference))
    return Report(f"Fisher information at {place(point)}", tuple(checks))


def duality(point: Point, other: Point, *, tolerance: float | None = None) -> Report:
    """The Legendre pair, both orientations of the divergence, and its third order.

    Args:
        point: p.
        other: q, another law of the family.
        tolerance: of relative errors.
    """
    family, bound = point.family, bound_of(point.coordinates, tolerance)
    eta, eta2, mu = point.natural, other.natural, point.mean
    kl = point.kl(other)
    potential = family.log_normalizer
    conjugate = lambda mu: (
        jnp.sum(family.natural(mu) * mu) - potential(family.natural(mu))
    )
    other_mu = other.mean
    gap = conjugate(mu) - conjugate(other_mu)
    dual = gap - jnp.sum((mu - other_mu) * jax.grad(conjugate)(other_mu))
    return_trip = family.mean(jax.grad(conjugate)(mu))
    scale = float(jnp.abs(potential(eta)) + jnp.abs(potential(eta2)) + jnp.abs(kl))
    order = kl_order(point)
    checks = (
        Check("∇A = μ", relative_error(jax.grad(potential)(eta), mu), 0, bound),
        Check("∇A ∘ ∇A* = identity", relative_error(return_trip, mu), 0, bound),
        Check(
            "KL = D_A", float(jnp.abs(family.bregman(eta2, eta) - kl)) / scale, 0, bound
        ),
        Check("KL = D_A*", float(jnp.abs(dual - kl)) / scale, 0, bound),
        Check("order of KL − ½ dᵀFd", order, 2.9, 3.1),
    )
    return Report(f"Duality at {place(point)}", checks)


def kl_order(point: Point) -> float:
    """The order in |d| with which KL(x ‖ x + d) − ½ dᵀFd falls; 3 by theory.

    Along a direction in which the cubic term does not vanish, from |d| of a hundredth.
    """
    x, matrix = point.coordinates, fisher_matrix(point)
    cubic = amari_chentsov(point).reshape((x.size,) * 3)
    directions = jnp.concatenate([jnp.eye(x.size), jnp.ones((1, x.size))])
    scaled = directions.astype(x.dtype) / jnp.sqrt(jnp.diagonal(matrix))[None]
    strength = jnp.abs(jnp.einsum("ijk,ai,aj,ak->a", cubic, scaled, scaled, scaled))
    d = scaled[jnp.argmax(strength)]

    @jax.jit
    @jax.vmap
    def excess(t):
        kl = point.kl(point.at(x + (t * d).reshape(x.shape)))
        return jnp.abs(kl - t**2 * d @ matrix @ d / 2)

    lengths = 0.01 / 2.0 ** np.arange(4)
    return slope(lengths, excess(jnp.asarray(lengths, x.dtype)))


def charts_agree(
    point: Point,
    others: Sequence[Chart] | None = None,
    *,
    tolerance: float | None = None,
) -> Report:
    """Round trips, F_μ = F_η⁻¹, and pairings that do not depend on the chart.

    Args:
        point: the law.
        others: charts to go to and return from; None for all that are known.
        tolerance: of relative errors.
    """
    bound = bound_of(point.coordinates, tolerance)
    others = list(charts(point.family).values()) if others is None else others
    v = point.tangent(
        jnp.cos(jnp.arange(1.0, point.coordinates.size + 1))
        .reshape(point.coordinates.shape)
        .astype(point.coordinates.dtype)
    )
    pairing = float(flat(v)(v))
    checks = []
    for chart in others:
        back = point.to(chart).to(point.chart)
        w = v.to(chart)
        there = float(flat(w)(w)), float(flat(v).to(chart)(w))
        worst = max(abs(value / pairing - 1) for value in there)
        trip = relative_error(back.coordinates, point.coordinates)
        checks.append(Check(f"round trip by {chart.name}", trip, 0, bound))
        checks.append(Check(f"⟨v, v⟩ in {chart.name}", worst, 0, bound))
    natural, mean = (point.to(name) for name in ("natural", "expectation"))
    if natural.chart.gauge is None:
        product = fisher_matrix(mean) @ fisher_matrix(natural)
        error = float(jnp.max(jnp.abs(product - jnp.eye(len(product)))))
        condition = float(jnp.linalg.cond(fisher_matrix(natural)))
        checks.append(Check("F_μ F_η − I", error / condition, 0, bound))
    return Report(f"Charts at {place(point)}", tuple(checks))


def _kl_to(point: Point) -> Callable[[Array], Array]:
    return lambda x: point.kl(point.at(x))


def _kl_from(point: Point) -> Callable[[Array], Array]:
    return lambda x: point.at(x).kl(point)


def _matrix_check(name, matrix, reference, bound) -> Check:
    scale = jnp.sqrt(jnp.diagonal(reference))
    error = jnp.max(jnp.abs(matrix - reference) / jnp.outer(scale, scale))
    return Check(name, float(error), 0, bound)


def _sampled_check(name, values, reference) -> Check:
    deviation = jnp.std(values, axis=0) / np.sqrt(len(values))
    scale = jnp.sqrt(jnp.diagonal(reference))
    rounding = jnp.sqrt(jnp.finfo(values.dtype).eps) * jnp.outer(scale, scale)
    z = jnp.abs(jnp.mean(values, axis=0) - reference) / (deviation + rounding)
    return Check(f"{name}, standard errors off", float(jnp.max(z)), 0, _DEVIATIONS)
