"""The experiments of Kunstner, Hennig & Balles (2019) against NumPy."""

from __future__ import annotations

import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from kunstner_oracle import Oracle

import natgrad as ng
from benchmarks.kunstner import data, misspecification, tuning
from benchmarks.kunstner.optimisation import METHODS, cosines, descend, iterates
from benchmarks.kunstner.problems import Linear, Logistic, minimiser
from benchmarks.kunstner.tuning import FACTORS, optimise, starting_points
from benchmarks.kunstner.vector_field import STARTS, vector_field

KINDS = {Linear: ng.families.NormalMean(), Logistic: ng.families.Bernoulli()}


def small(kind):
    draw = np.random.default_rng(2)
    features = draw.normal(size=(12, 3))
    return kind.of(features, draw.integers(0, 2, size=12), prior_variance=0.3)


@pytest.mark.parametrize(
    "kind", [pytest.param(Linear, marks=pytest.mark.slow), Logistic]
)
def test_the_problems_are_natgrads_own_models(kind):
    problem = small(kind)
    model = ng.Model(lambda theta, x: x @ theta[:, None], KINDS[kind])
    theta = jnp.asarray([0.3, -1.1, 0.7])
    batch = theta, problem.features, problem.targets[:, None]
    prior = float(theta @ theta) / (2 * 0.3 * 12)
    constant = math.log(2 * math.pi) / 2 if kind is Linear else 0.0
    loss = float(model.loss(*batch)) + prior - constant
    assert float(problem.loss(theta)) == pytest.approx(loss, rel=1e-12)
    gradient = jax.grad(model.loss)(*batch) + theta / (0.3 * 12)
    np.testing.assert_allclose(problem.gradient(theta), gradient, rtol=1e-12)
    for name, matrix in (
        ("dense", problem.fisher(theta)),
        ("empirical", problem.empirical(theta)),
    ):
        library = ng.CURVATURES[name](model).at(*batch).dense()
        np.testing.assert_allclose(matrix, library, rtol=1e-11, atol=1e-14)
    np.testing.assert_allclose(
        problem.hessian(theta), jax.hessian(problem.loss)(theta), rtol=1e-10
    )


# Settings and last losses, from float64 runs.
PINNED = {
    "Wine": (False, {"EFGD": (-1.375, -6.0, 0.02983869373304788)}),
    "BreastCancer": (
        True,
        {
            "NGD": (0.125, -10.0, 0.0005158319092325258),
            "EFGD": (-1.375, -10.0, 0.012203452836807818),
        },
    ),
}


@pytest.mark.parametrize("name", PINNED)
def test_pinned_runs_equal_numpy_to_1e_9(name):
    logistic, runs = PINNED[name]
    problem = data.load(name)
    oracle = Oracle.of(problem, logistic)
    for method, (rate, damping, last) in runs.items():
        rate, damping = 10**rate, 10**damping
        start = jnp.zeros(problem.parameters)
        losses = descend(
            problem, METHODS[method], start, jnp.array([rate]), jnp.array([damping])
        )[:, 0]
        assert float(losses[-1]) == pytest.approx(last, rel=1e-9)
        np.testing.assert_allclose(losses, oracle.run(method, rate, damping), rtol=1e-7)
        assert oracle.run(method, rate, damping)[-1] == pytest.approx(last, rel=1e-9)


def test_the_empirical_step_turns_against_the_natural_one_on_wine():
    problem = data.load("Wine")
    rate, damping = 10**-1.375, 1e-6
    thetas = iterates(problem, METHODS["EFGD"], jnp.zeros(14), rate, damping)
    along = np.asarray(cosines(problem, thetas, damping))
    expected = []
    Oracle.of(problem, logistic=False).run("EFGD", rate, damping, cosines=expected)
    # Near the minimum the gradient is rounding and so is its direction.
    np.testing.assert_allclose(along[:50], expected[:50], atol=1e-6)
    assert along.min() == pytest.approx(-0.2144094, abs=1e-6)


def test_rounding_decides_a_published_choice_and_is_found_out():
    grid = optimise(
        data.load("BreastCancer"), "EFGD", 10 ** np.array([-1.375, -1.25]), [1e-10]
    )
    assert grid.spread[0, 0] < 1e-8
    assert grid.spread[1, 0] > 1e-3
    assert grid.steady.rate == 10**-1.375
    assert not grid.steady.chaotic
    assert grid.chaotic_share == 0.5


@pytest.mark.parametrize("method", METHODS)
def test_a_grid_is_searched_as_numpy_searches_it(method):
    problem, rates, dampings = small(Logistic), np.logspace(-3, 9, 5), [1e-8, 1.0]
    oracle = Oracle.of(problem, logistic=True)
    oracle.v = math.inf
    problem = Logistic.of(oracle.X, oracle.y)
    grid = optimise(problem, method, rates, dampings, steps=6)
    dampings = dampings if method != "GD" else [math.nan]
    runs = [[oracle.run(method, r, d, steps=6) for d in dampings] for r in rates]
    last = [[run[-1] for run in line] for line in runs]
    np.testing.assert_allclose(grid.last, last, rtol=1e-9)
    first, second = np.unravel_index(np.argmin(last), grid.last.shape)
    assert grid.best.rate == rates[first]
    np.testing.assert_allclose(grid.best.losses, runs[first][second], rtol=1e-9)
    record = grid.to_dict()
    assert np.shape(record["last"]) == (5, len(dampings))
    assert record["best"]["chaotic"] is False


def test_a_run_stops_when_it_has_blown_up_and_no_number_is_never_the_best():
    problem = Linear.of(np.eye(2), np.ones(2))
    settings = jnp.array([30.0, 0.1]), jnp.array([math.nan, math.nan])
    losses = np.asarray(descend(problem, METHODS["GD"], jnp.zeros(2), *settings))
    stopped = int(np.sum(~np.isnan(losses[:, 0])))
    assert losses[stopped - 1, 0] > 100 * losses[0, 0] >= losses[stopped - 2, 0]
    assert not np.isnan(losses[:, 1]).any()
    assert np.isnan(losses[stopped:, 0]).all()
    curves = np.array([[1.0, math.nan, math.nan], [1.0, 300.0, math.nan], [1, 2, 3]])
    np.testing.assert_array_equal(tuning.last_losses(curves), [math.inf, 300, 3])


# Figures 1 and 2 --------------------------------------------------------------------


def test_fields_and_paths_equal_numpy():
    result = vector_field(points=20)
    oracle = Oracle.of(result.problem, logistic=False)
    identity = np.eye(2)

    def natural(theta):
        matrix = oracle.fisher(theta) + identity / (0.1 * 1000) + 1e-8 * identity
        return -np.linalg.solve(matrix, oracle.gradient(theta))

    def empirical(theta):
        matrix = oracle.empirical(theta) + 1e-8 * identity
        return -3 * np.linalg.solve(matrix, oracle.gradient(theta))

    fields = {
        "GD": lambda theta: -oracle.gradient(theta) / 3,
        "NGD": natural,
        "EF": empirical,
        "Adam, batches of one": lambda theta: (
            -oracle.gradient(theta) / np.sqrt(np.diag(oracle.empirical(theta)))
        ),
        "Adam, all data": lambda theta: -np.sign(oracle.gradient(theta)),
    }
    assert fields.keys() == result.arrows.keys()
    for name, field in fields.items():
        corner = field(np.array([5.0, -1.0]))  # bias 5, slope -1
        np.testing.assert_allclose(result.arrows[name][0, -1], corner, rtol=1e-6)
        theta = STARTS[0]
        for point in result.paths[name][0]:
            np.testing.assert_allclose(point, theta, rtol=1e-7)
            theta = theta + 1e-3 * field(theta)
    y = np.asarray(result.problem.targets)
    root = np.linalg.inv(oracle.X.T @ oracle.X + identity / 0.1)
    np.testing.assert_allclose(result.minimum, root @ oracle.X.T @ y, rtol=1e-10)


def test_a_noise_twice_as_wide_makes_the_empirical_fisher_four_times_too_large():
    cases = {case.name: case for case in misspecification.cases(data.LINEAR)}
    right, wide, _ = cases.values()
    # r² of N(0, s²) has mean s² and standard deviation √2 s²; x² weights it.
    deviation = 5 * math.sqrt(2 * 3 / 1000)
    assert np.all(np.abs(right.ratios - 1) < deviation)
    assert np.all(np.abs(wide.ratios / 4 - 1) < deviation)
    theta = wide.minimum + np.array([0.1, -0.2])
    gradient = np.asarray(wide.problem.gradient(jnp.asarray(theta)))
    steps = (np.linalg.solve(m, gradient) for m in (wide.empirical, wide.fisher))
    short, exact = map(np.linalg.norm, steps)
    assert short / exact == pytest.approx(0.25, rel=deviation)


def test_the_ellipses_are_where_the_paper_draws_them():
    case = misspecification.cases(data.LOGISTIC)[-1]
    for matrix in (case.fisher, case.empirical):
        away = case.ellipse(matrix, points=7) - case.minimum
        level = np.einsum("ni,ij,nj->n", away, 1000 * matrix, away)
        np.testing.assert_allclose(level, 9, rtol=1e-10)
    assert np.linalg.norm(case.problem.gradient(jnp.asarray(case.minimum))) < 1e-14
    grid = case.losses(np.array([0.1, 0.2, 0.3]), np.array([-1.0, 1.0]))
    expected = Oracle.of(case.problem, logistic=True).loss(np.array([0.3, -1.0]))
    assert grid[0, 2] == pytest.approx(expected, rel=1e-12)
    # Opposite tilts: the empirical Fisher leans the other way.
    assert case.fisher[0, 1] < 0 < case.empirical[0, 1]


def test_both_fishers_agree_for_logistic_regression_at_zero_and_not_beyond():
    problem = data.load("BreastCancer")
    zero = jnp.zeros(problem.parameters)
    fisher, empirical = problem.fisher(zero), problem.empirical(zero)
    np.testing.assert_allclose(fisher, empirical, rtol=1e-12)
    away = zero + 1e-4
    assert np.abs(problem.fisher(away) / problem.empirical(away) - 1).max() > 0.01


def test_the_starting_points_lead_down_to_the_least_loss():
    problem = data.load("Wine")
    natural = optimise(problem, "NGD", [10**-0.5], [10**-8.5])
    result = starting_points(problem, [natural])
    X, y = np.asarray(problem.features), np.asarray(problem.targets)
    best = np.linalg.lstsq(X, y, rcond=None)[0]
    assert result.least == pytest.approx(np.mean((X @ best - y) ** 2) / 2, rel=1e-9)
    losses = result.losses["NGD"]
    for curve, factor in zip(losses.T, FACTORS, strict=True):
        # A quadratic: the distance to θ* shrinks by 1 − η with every step.
        excess = result.least + (1 - factor) ** 2 * (
            np.mean(y**2) / 2 - result.least
        ) * (1 - 10**-0.5) ** (2 * np.arange(21))
        np.testing.assert_allclose(curve, excess, rtol=1e-2)
    np.testing.assert_allclose(minimiser(problem), best, rtol=1e-4)


def test_separable_classes_are_refused_where_a_minimum_is_asked_for():
    with pytest.raises(ValueError, match="separable classes have none"):
        minimiser(data.load("BreastCancer"))
