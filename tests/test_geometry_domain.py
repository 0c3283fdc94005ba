"""No step leaves the domain: any size, any interior point, float32 and float64."""

from __future__ import annotations

import functools

import hypothesis
import hypothesis.strategies as st
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from manifolds import CHARTS, MANIFOLDS, coordinates

from natgrad import geometry as ng
from natgrad.geometry.domain import KEPT, STRAIGHT, fraction

# The others have the domains of the expectation chart: one positive number, or a unit
# interval.
SAME = {"probability", "rate", "mean/variance", "shape/mean"}
BOUNDED = [
    (name, chart, dtype)
    for name, chart in CHARTS
    if ng.charts(MANIFOLDS[name].family)[chart].margins is not ng.whole_space
    if chart not in SAME or name == "categorical"
    for dtype in ("float32", "float64")
    if dtype == "float32" or (chart == "expectation" and name in ("normal", "gamma"))
]


def target(name, dtype):
    manifold = MANIFOLDS[name]
    return ng.Point(manifold.family, manifold.chart, coordinates(name, 1, dtype))


@functools.cache
def steps(name, chart, dtype):
    """(source coordinates, direction, h) -> start, and the ends of steps from it."""
    bends = (name, chart) in {("normal", "expectation"), ("exponential", "natural")}
    manifold = MANIFOLDS[name]
    loss = lambda q: q.kl(target(name, dtype))

    def run(x, direction, h):
        p = ng.Point(manifold.family, manifold.chart, x).to(chart)
        n = p.coordinates.size
        v = p.tangent(direction[:n].reshape(p.coordinates.shape))
        if p.chart.gauge is not None:
            v = v - p.tangent(p.chart.gauge(v.components))
        downhill = -ng.natural_gradient(loss, p)
        ends = jax.vmap(lambda v: ng.retract(p.tangent(v), h).coordinates)(
            jnp.stack([v.components, downhill.components])
        )
        curved = [ng.geodesic_retract(downhill, h).coordinates] if bends else []
        return p.coordinates, p.inside(), [*ends, *curved]

    return jax.jit(run)


def wide(low, high):
    """Positive numbers, evenly in their logarithm."""
    return st.floats(np.log(low), np.log(high)).map(lambda s: float(np.exp(s)))


POINTS = {
    "bernoulli": wide(1e-5, 0.5).flatmap(lambda p: st.sampled_from([p, 1 - p])),
    "categorical": st.tuples(wide(1e-5, 0.49), wide(1e-5, 0.49)),
    "poisson": wide(1e-3, 1e3),
    "exponential": wide(1e-3, 1e3),
    "gamma": st.tuples(wide(1e-2, 1e2), wide(1e-2, 1e2)),
    "normal": st.tuples(st.floats(-5, 5), wide(0.05, 20)),
}
DIRECTIONS = st.tuples(
    *[st.tuples(st.sampled_from([-1, 0, 1]), wide(1e-6, 1e6)).map(np.prod)] * 3
)
SIZES = st.one_of(st.sampled_from([1.0, 1e6]), wide(1e-6, 1e6))


@pytest.mark.parametrize(("name", "chart", "dtype"), BOUNDED)
def test_no_step_leaves_the_domain(name, chart, dtype):
    manifold = MANIFOLDS[name]

    @hypothesis.settings(
        max_examples=40, deadline=None, derandomize=True, database=None
    )
    @hypothesis.given(POINTS[name], DIRECTIONS, SIZES)
    def holds(x, direction, h):
        arrays = (jnp.asarray(a, dtype) for a in (x, direction, h))
        start, interior, ends = steps(name, chart, dtype)(*arrays)
        hypothesis.assume(bool(interior))
        for end in ends:
            assert end.dtype == dtype
            assert manifold.inside[chart](np.asarray(end)), (start, end)

    holds()


@pytest.mark.parametrize(
    ("name", "chart"), [("normal", "expectation"), ("gamma", "expectation")]
)
def test_a_thousand_huge_steps_in_a_row_stay_inside(name, chart):
    """In float32, from point to point, with directions that point anywhere."""
    manifold = MANIFOLDS[name]
    p = ng.Point(manifold.family, manifold.chart, coordinates(name, 0, jnp.float32)).to(
        chart
    )
    key = jax.random.key(0)
    directions = 10 ** jax.random.uniform(key, (1000, 2), minval=-3, maxval=3)
    signs = jax.random.rademacher(jax.random.key(1), (1000, 2))

    def step(p, direction):
        p = ng.retract(p.tangent(direction), 1.0)
        return p, p.coordinates

    visited = jax.jit(lambda p, ds: jax.lax.scan(step, p, ds)[1])(
        p, (directions * signs).astype(jnp.float32)
    )
    assert all(manifold.inside[chart](x) for x in np.asarray(visited))


@functools.cache
def on_the_mean_of_exponentials():
    """d -> (fraction, end) of a step from μ = 2, whose domain is μ > 0."""
    family = MANIFOLDS["exponential"].family
    p = ng.Point(family, "expectation", jnp.array(2.0))

    def step(d):
        return fraction(p.chart, p.coordinates, d), ng.retract(p.tangent(d)).coordinates

    return jax.jit(jax.vmap(step)), jax.jit(jax.vmap(jax.grad(lambda d: step(d)[1])))


def test_a_step_is_straight_until_nearly_the_boundary_and_then_saturates():
    """By hand: m(t) = 1 + t d/x, so t* = (1 − κ) x/|d|."""
    d = jnp.array([5.0, 1e6, -0.1, -1.9, -1.97, -1.99, -2.0, -3.0, -1e6])
    t = np.where(d < 0, (1 - KEPT) * 2 / np.abs(d), np.inf)
    u = 1 / t
    saturated = STRAIGHT + (1 - STRAIGHT) * np.tanh((u - STRAIGHT) / (1 - STRAIGHT))
    f = np.where(u <= STRAIGHT, 1, t * saturated)
    actual, ends = on_the_mean_of_exponentials()[0](d)
    np.testing.assert_allclose(actual, f, 1e-11)
    np.testing.assert_allclose(ends, 2 + f * d, 1e-9)
    assert np.all(actual[:5] == 1)
    np.testing.assert_allclose(ends[-1], 2 * KEPT, 1e-9)


def test_steps_are_smooth_in_the_direction():
    """Derivatives against central differences, across both ends of the bend."""
    step, slope = on_the_mean_of_exponentials()
    d = jnp.array([3.0, -1.0, -1.975, -1.9781, -1.985, -1.998, -2.01, -2.5])
    h = 1e-6
    differences = (step(d + h)[1] - step(d - h)[1]) / (2 * h)
    np.testing.assert_allclose(slope(d), differences, 1e-4, 1e-8)
    np.testing.assert_allclose(slope(d)[:2], 1, 1e-12)


@pytest.mark.parametrize("name", ["normal", "categorical", "gamma"])
def test_a_retraction_agrees_with_the_straight_step_to_second_order(name):
    """R(0) = x, R'(0) v = v, R''(0)(v, v) = 0, near the boundary too."""
    manifold = MANIFOLDS[name]
    p = ng.Point(manifold.family, manifold.chart, coordinates(name, 2)).to(
        "expectation"
    )
    v = jnp.array([1.0, -3.0, 2.0])[: p.coordinates.size]
    curve = lambda t: ng.retract(p.tangent(v), t).coordinates
    slope = lambda t: jax.jvp(curve, (t,), (1.0,))
    (x, velocity), (_, bend) = jax.jit(lambda t: jax.jvp(slope, (t,), (1.0,)))(0.0)
    np.testing.assert_array_equal(x, p.coordinates)
    np.testing.assert_allclose(velocity, v, 1e-12)
    np.testing.assert_array_equal(bend, 0)


@pytest.mark.parametrize("way", [jax.jacfwd, jax.jacrev])
def test_the_end_of_a_saturated_step_is_differentiable_in_the_start(way):
    """A step of the normal law out of {μ₂ > μ₁²}, against central differences."""
    family, d = MANIFOLDS["normal"].family, jnp.array([3.0, -2.0])
    chart = ng.charts(family)["expectation"]
    end = jax.jit(lambda x: ng.retract_into_domain(chart, x, d))
    x, h = jnp.array([0.3, 1.53]), 1e-6
    differences = np.stack(
        [(end(x + e) - end(x - e)) / (2 * h) for e in h * np.eye(2)], axis=-1
    )
    assert not np.allclose(end(x), x + d)
    np.testing.assert_allclose(jax.jit(way(end))(x), differences, 1e-6, 1e-7)


def test_nan_is_not_hidden():
    p = ng.Point(MANIFOLDS["normal"].family, "mean/sd", coordinates("normal"))
    end = ng.retract(p.tangent(jnp.array([jnp.nan, 1.0])))
    assert np.any(np.isnan(end.coordinates))


def test_without_the_saturation_the_same_steps_leave():
    """The straight step is out for the examples above: the tests are not empty."""
    family = MANIFOLDS["normal"].family
    p = ng.Point(family, "mean/sd", coordinates("normal")).to("expectation")
    loss = lambda q: q.kl(target("normal", jnp.float64))
    v = -1 * ng.natural_gradient(loss, p)
    straight = p.coordinates + 1.5 * v.components
    assert not MANIFOLDS["normal"].inside["expectation"](straight)
