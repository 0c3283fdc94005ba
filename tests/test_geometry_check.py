"""Certificates: ours pass them, and what is wrong on purpose does not."""

from __future__ import annotations

import dataclasses

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.scipy.stats import norm
from manifolds import CHARTS, MANIFOLDS, coordinates

import natgrad.families as nf
from natgrad import geometry as ng
from natgrad.geometry import check

OVERCOMPLETE = {("categorical", "natural"), ("categorical", "expectation")}
# Second derivatives of Gamma's log p compile slowly: one chart is enough.
CERTIFIED = [
    c
    for c in CHARTS
    if c not in OVERCOMPLETE and (c[0] != "gamma" or c[1] == "natural")
]


def law(name, chart=None):
    manifold = MANIFOLDS[name]
    p = ng.Point(manifold.family, manifold.chart, coordinates(name))
    return p if chart is None else p.to(chart)


@pytest.mark.parametrize(("name", "chart"), CERTIFIED)
def test_our_families_agree_on_their_information(name, chart):
    """∇²KL in either argument, E[s sᵀ] and −E[∇² log p], in every chart."""
    report = check.fisher_agreement(law(name, chart)).raise_if_failed()
    assert len(report.checks) == 4


@dataclasses.dataclass(frozen=True)
class Sampled(nf.Bernoulli):
    """A Bernoulli law whose expectations must be sampled."""

    score_nodes = nf.Family.score_nodes


@dataclasses.dataclass(frozen=True)
class WrongMean(nf.Poisson):
    """Its mean and its divergence are of another law than its log-probability."""

    def mean(self, eta):
        return 1.1 * jnp.exp(eta)


def test_sampled_expectations_are_judged_by_their_standard_errors():
    p = ng.Point(Sampled(), "probability", jnp.array(0.3))
    report = check.fisher_agreement(p, key=jax.random.key(0)).raise_if_failed()
    assert "E[s sᵀ], standard errors off" in [c.name for c in report.checks]
    with pytest.raises(ValueError, match="no key was given"):
        check.fisher_agreement(p)


def test_a_wrong_family_is_found_out():
    p = ng.Point(WrongMean(), "natural", jnp.array(0.5))
    assert not check.fisher_agreement(p).passed
    report = check.duality(p, p.at(jnp.array(0.9)))
    assert not report["∇A = μ"].passed
    assert "FAIL ∇A = μ: 0.0909" in str(report)
    with pytest.raises(ValueError, match=r"Duality at WrongMean.*certificate failed"):
        report.raise_if_failed()


def test_a_wrong_chart_is_found_out():
    wrong = ng.Chart("wrong", lambda x: x**3, lambda eta: 1.01 * jnp.cbrt(eta))
    report = check.charts_agree(law("bernoulli", "natural"), [wrong])
    assert not report["round trip by wrong"].passed
    assert report["F_μ F_η = 1, over its condition"].passed


def test_a_report_reads_well():
    report = check.Report(
        "A law", (check.Check("x", 0.5, 0, 1), check.Check("order", 3.0, 0.9, 1.1))
    )
    assert not report.passed
    assert str(report) == (
        "A law\n  ok   x: 0.5, expected ≤ 1\n  FAIL order: 3, expected in [0.9, 1.1]"
    )
    assert not check.Check("x", float("nan"), 0, 1).passed


def test_an_order_that_is_not_there_is_found_out():
    goal = ng.Point(nf.Normal(), "mean/sd", jnp.array([1.0, 0.5]))
    start = ng.Point(nf.Normal(), "mean/sd", jnp.array([0.0, 0.8]))
    report = check.invariance_order(
        ng.natural_step,
        lambda q: q.kl(goal),
        start,
        ["mean/sd", "mean/log sd"],
        (1.8, 2.2),  # Euler's method is of order 1
    )
    assert not report.passed
    assert report.checks[0].value == pytest.approx(1, abs=0.15)


# Chentsov -----------------------------------------------------------------------------


def through(kernel):
    """A law on classes -> the law of a label that the Markov kernel [C, D] changes."""
    kernel = jnp.asarray(kernel)

    def image(p):
        mixed = jnp.einsum("c,cd->d", p.family.mean(p.natural), kernel)
        return ng.Point(nf.Categorical(), "natural", jnp.log(mixed)).to("probability")

    return image


MERGED = [[1.0, 0.0], [1.0, 0.0], [0.0, 1.0]]
SPLIT = [[0.3, 0.7, 0, 0], [0, 0, 1.0, 0], [0, 0, 0, 1.0]]  # one cell, in a fixed ratio
NOISE = [[0.8, 0.1, 0.1], [0.1, 0.8, 0.1], [0.1, 0.1, 0.8]]


@pytest.mark.parametrize("kernel", [MERGED, NOISE])
def test_merging_and_noise_lose_information(kernel):
    p = law("categorical")
    check.monotone(p, through(kernel)).raise_if_failed()
    assert not check.sufficient(p, through(kernel)).passed


def test_splitting_in_a_fixed_ratio_keeps_information_and_distances():
    p = law("categorical")
    image = through(SPLIT)
    check.sufficient(p, image).raise_if_failed()
    q = p.at(jnp.array([0.5, 0.4]))
    np.testing.assert_allclose(
        ng.distance(image(p), image(q)), ng.distance(p, q), 1e-12
    )
    np.testing.assert_allclose(image(p).kl(image(q)), p.kl(q), 1e-12)


def known_variance(m):
    """N(m, 1) as a curve in the normal laws, with one coordinate m."""
    chart = ng.Chart(
        "mean", lambda m: jnp.stack([m, jnp.full_like(m, -0.5)]), lambda eta: eta[0]
    )
    return ng.Point(nf.Normal(), chart, jnp.asarray(m))


def mean_of(n):
    """The law of the mean of n observations, N(m, 1/n)."""
    chart = ng.Chart(
        "mean",
        lambda m: jnp.stack([m * n, jnp.full_like(m, -0.5 * n)]),
        lambda eta: eta[0] / n,
    )
    return lambda p: ng.Point(p.family, chart, p.coordinates)


def test_the_mean_is_sufficient_for_a_normal_sample():
    p = known_variance(0.3)
    check.sufficient(p, mean_of(20), copies=20).raise_if_failed()
    assert not check.monotone(p, mean_of(20), copies=19).passed


@pytest.mark.parametrize("m", [0.0, 1.0])
def test_the_sign_of_a_normal_label_keeps_two_over_pi_at_zero(m):
    """φ²/(Φ(1 − Φ)): a loss of 36 % at m = 0."""
    sign = lambda p: ng.Point(nf.Bernoulli(), "probability", norm.cdf(p.coordinates))
    report = check.monotone(known_variance(m), sign).raise_if_failed()
    cdf = norm.cdf(m)
    expected = norm.pdf(m) ** 2 / (cdf * (1 - cdf))
    np.testing.assert_allclose(report.checks[0].value, expected, 1e-10)
    if m == 0:
        np.testing.assert_allclose(expected, 2 / np.pi, 1e-12)


def test_derivatives_finds_a_wrong_one():
    @jax.custom_jvp
    def cube(x):
        return x**3

    cube.defjvps(lambda dx, _, x: 2.9 * x**2 * dx)
    x = jnp.array([0.5, 2.0])
    check.derivatives(lambda x: x**3, x).raise_if_failed()
    assert not check.derivatives(cube, x).passed
