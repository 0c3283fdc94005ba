"""Definitions that must agree: of F, of a divergence, of a law in several charts."""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np

from natgrad import tree
from natgrad.families.base import Family
from natgrad.geometry.atlases import Chart, charts
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
    """Compares five definitions of the Fisher information in the point's chart.

    The metric is compared with the Hessians of KL in both arguments, with E[s sᵀ] and
    with −E[∇² log p]. Expectations are sums over `family.score_nodes` where the family
    has nodes of its own, and else means over samples, judged by their standard errors.

    Args:
        point: one factor, in any chart.
        key: of the samples; needed where the family has no nodes.
        samples: how many.
        tolerance: of the relative error; None for 1e-9 in float64, 1e-3 in float32.

    Returns:
        One check for each definition.

    Raises:
        ValueError: the family has no nodes and no key was given.
    """
    x, n = point.coordinates, point.coordinates.size
    bound = bound_of(x, tolerance)
    names = "Hessian of KL(p ‖ ·)", "Hessian of KL(· ‖ p)"
    reference, *hessians = jax.jit(_metric_and_hessians)(point)
    checks = [
        _matrix_check(name, hessian, reference, bound)
        for name, hessian in zip(names, hessians, strict=True)
    ]

    @jax.jit
    @jax.vmap
    def terms(y):
        log_prob = lambda x: point.at(x).log_prob(y)
        s = jax.grad(log_prob)(x).ravel()
        return jnp.outer(s, s), -jax.hessian(log_prob)(x).reshape(n, n)

    names = "E[s sᵀ]", "−E[∇² log p]"
    if type(point.family).score_nodes is not Family.score_nodes:
        ys, weights = point.family.score_nodes(point.natural)
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
    """Checks the Legendre pair, both orientations of the divergence, and its order.

    Args:
        point: p.
        other: q, another law of the family.
        tolerance: of relative errors; None as for `fisher_agreement`.

    Returns:
        One check for each identity.
    """
    bound = bound_of(point.coordinates, tolerance)
    measured = jax.jit(_duality)(point, other)
    checks = [Check(name, float(value), 0, bound) for name, value in measured.items()]
    checks.append(Check("order of KL − ½ dᵀFd", kl_order(point), 2.9, 3.1))
    return Report(f"Duality at {place(point)}", tuple(checks))


def _duality(p: Point, q: Point) -> dict[str, Array]:
    """Relative errors of the identities, by name."""
    family, potential = p.family, p.family.log_normalizer
    eta, eta2, mu, mu2 = p.natural, q.natural, p.mean, q.mean

    def conjugate(mu):
        eta = family.natural(mu)
        return jnp.sum(eta * mu) - potential(eta)

    def bregman(f, x, y):
        return f(x) - f(y) - jnp.sum((x - y) * jax.grad(f)(y))

    kl = p.kl(q)
    scale = jnp.abs(potential(eta)) + jnp.abs(potential(eta2)) + jnp.abs(kl)
    there_and_back = family.mean(jax.grad(conjugate)(mu))
    return {
        "∇A = μ": relative_error(jax.grad(potential)(eta), mu),
        "∇A ∘ ∇A* = identity": relative_error(there_and_back, mu),
        "KL = D_A": jnp.abs(bregman(potential, eta2, eta) - kl) / scale,
        "KL = D_A*": jnp.abs(bregman(conjugate, mu, mu2) - kl) / scale,
    }


def kl_order(point: Point) -> float:
    """The order in |d| with which KL(x ‖ x + d) − ½ dᵀFd falls; 3 by theory.

    It is measured along a direction in which the cubic term does not vanish, from |d|
    of a hundredth.

    Args:
        point: x, in any chart.

    Returns:
        The order.
    """
    x = point.coordinates
    matrix, cubic = jax.jit(lambda p: (fisher_matrix(p), amari_chentsov(p)))(point)
    cubic = cubic.reshape((x.size,) * 3)
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
    """Checks round trips, F_μ = F_η⁻¹, and pairings that do not depend on the chart.

    Args:
        point: the law.
        others: charts to go to and return from; None for all that are known.
        tolerance: of relative errors; None as for `fisher_agreement`.

    Returns:
        Two checks for each chart, and one of the inverse.
    """
    bound = bound_of(point.coordinates, tolerance)
    others = list(charts(point.family).values()) if others is None else others
    checks = []
    trips = jax.jit(lambda point: [_there_and_back(point, c) for c in others])(point)
    for chart, (trip, worst) in zip(others, trips, strict=True):
        checks.append(Check(f"round trip by {chart.name}", float(trip), 0, bound))
        checks.append(Check(f"⟨v, v⟩ in {chart.name}", float(worst), 0, bound))
    if charts(point.family)["natural"].gauge is None:
        error = float(jax.jit(_inverse_error)(point))
        checks.append(Check("F_μ F_η = 1, over its condition", error, 0, bound))
    return Report(f"Charts at {place(point)}", tuple(checks))


def _there_and_back(point: Point, chart: Chart) -> tuple[Array, Array]:
    """Relative errors of the coordinates, and of pairings of a tangent, in a chart."""
    x = point.coordinates
    components = jnp.cos(jnp.arange(1, x.size + 1, dtype=x.dtype)).reshape(x.shape)
    v = point.tangent(components)
    w, pairing = v.to(chart), flat(v)(v)
    there = jnp.stack([flat(w)(w), flat(v).to(chart)(w)])
    back = w.point.to(point.chart).coordinates
    return relative_error(back, x), jnp.max(jnp.abs(there / pairing - 1))


def _inverse_error(point: Point) -> Array:
    natural, mean = (fisher_matrix(point.to(c)) for c in ("natural", "expectation"))
    product = jnp.matmul(mean, natural, precision="highest")
    worst = jnp.max(jnp.abs(product - jnp.eye(len(product), dtype=product.dtype)))
    return worst / jnp.linalg.cond(natural)


def _metric_and_hessians(point: Point) -> tuple[Array, Array, Array]:
    """F and the Hessians of KL in its second and its first argument, [P, P]."""
    x, n = point.coordinates, point.coordinates.size
    to, back = lambda x: point.kl(point.at(x)), lambda x: point.at(x).kl(point)
    hessians = (jax.hessian(f)(x).reshape(n, n) for f in (to, back))
    return fisher_matrix(point), *hessians


def _matrix_check(name, matrix, reference, bound) -> Check:
    scale = jnp.sqrt(jnp.diagonal(reference))
    error = tree.largest(jnp.abs(matrix - reference) / jnp.outer(scale, scale))
    return Check(name, float(error), 0, bound)


def _sampled_check(name, values, reference) -> Check:
    deviation = jnp.std(values, axis=0) / np.sqrt(len(values))
    scale = jnp.sqrt(jnp.diagonal(reference))
    rounding = jnp.sqrt(jnp.finfo(values.dtype).eps) * jnp.outer(scale, scale)
    z = jnp.abs(jnp.mean(values, axis=0) - reference) / (deviation + rounding)
    return Check(f"{name}, standard errors off", float(tree.largest(z)), 0, _DEVIATIONS)
