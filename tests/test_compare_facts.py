"""What the comparison must find by itself: theorems, and the labels' verdict."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import scipy.stats
import sklearn.datasets
from zoo import ZOO

import natgrad as ng
from natgrad.compare import Budget, ComparisonSetup, along
from natgrad.compare.misspecification import information_matrix_test
from natgrad.curvature import Dense, Empirical

QUICK = Budget(repeats=1, charts=0, draws=9)


def chain(params, inputs):
    """A deep linear network."""
    for layer in params:
        inputs = inputs @ layer["w"] + layer["b"][None]
    return inputs


def linear(params, inputs):
    return inputs @ params["w"]


@pytest.mark.slow
def test_kfac_is_exact_in_every_block_of_a_deep_linear_network():
    """Its output gradients do not depend on x. Across blocks K-FAC is 0, F is not."""
    draw = np.random.default_rng(0)
    layer = lambda i, o: {"w": draw.normal(size=(i, o)), "b": draw.normal(size=o)}
    params = [layer(3, 4), layer(4, 2), layer(2, 2)]
    inputs, targets = draw.normal(size=(9, 3)), draw.normal(size=(9, 2))
    model = ng.Model(chain, ng.families.NormalMean(0.7))
    names = ("kfac", "diagonal")
    found = ng.compare.compare(
        model, params, inputs, targets, approximations=names, budget=QUICK
    )
    assert max(block.relative_error for block in found["kfac"].blocks) < 1e-13
    assert max(block.divergence for block in found["kfac"].blocks) < 1e-13
    assert min(block.relative_error for block in found["diagonal"].blocks) > 0.1
    assert found["kfac"].relative_error > 0.1


@pytest.mark.slow
@pytest.mark.parametrize("name", ["plain", "scan over layers"])
def test_ekfac_is_nearer_than_kfac_in_every_block(name):
    """Its scales are the best ones in K-FAC's own basis."""
    case = ZOO[name]()
    model = ng.Model(case.apply, ng.families.NormalMean(), in_axes=case.in_axes)
    z = model.outputs(case.params, case.inputs)
    found = ng.compare.compare(
        model,
        case.params,
        case.inputs,
        jnp.zeros_like(z),
        approximations=("kfac", "ekfac"),
        budget=QUICK,
    )
    pairs = list(zip(found["kfac"].blocks, found["ekfac"].blocks, strict=True))
    assert len(pairs) > 1
    for kfac, ekfac in pairs:
        assert ekfac.relative_error <= kfac.relative_error + 1e-12, kfac.name
        assert ekfac.trace_ratio == pytest.approx(1, rel=1e-10)
    assert any(e.relative_error < k.relative_error - 1e-6 for k, e in pairs)


def test_true_and_empirical_fisher_agree_for_logistic_regression_at_zero():
    """There the squared residual is p(1 − p), whatever the label."""
    draw = np.random.default_rng(1)
    inputs, targets = draw.normal(size=(20, 3)), draw.integers(0, 2, (20, 1))
    found = ng.compare.compare(
        ng.Model(linear, ng.families.Bernoulli()),
        {"w": np.zeros((3, 1))},
        inputs,
        targets,
        approximations=["empirical"],
        budget=QUICK,
    )
    row = found["empirical"]
    assert row.agrees
    assert row.uses_targets
    assert row.relative_error < 1e-14
    assert row.step_cosine == pytest.approx(1, abs=1e-14)
    assert np.isnan(found.misspecification.z)
    assert "does not depend on the labels" in found.misspecification.verdict


def test_twice_the_noise_makes_the_empirical_fisher_four_times_too_large():
    """At the true weights, whose residuals have variance 4σ² where σ² is modelled."""
    draw = np.random.default_rng(2)
    inputs, weights = draw.normal(size=(4000, 3)), np.array([[1.0], [-2.0], [0.5]])
    targets = inputs @ weights + 2 * 0.3 * draw.normal(size=(4000, 1))
    found = ng.compare.compare(
        ng.Model(linear, ng.families.NormalMean(0.3)),
        {"w": weights},
        inputs,
        targets,
        approximations=["empirical"],
        damping=0.0,
        budget=Budget(repeats=1, charts=0, draws=199),
    )
    row, verdict = found["empirical"], found.misspecification
    # Var r²/(4σ²) = 2, so the ratio of traces is 4 ± 4·√(2/4000) and a little.
    assert row.trace_ratio == pytest.approx(4, abs=0.5)
    assert row.median_ratio == pytest.approx(4, abs=0.5)
    assert row.step_norm_ratio == pytest.approx(1 / 4, abs=0.03)
    assert row.step_cosine > 0.99
    assert verdict.trace_ratio == pytest.approx(row.trace_ratio, rel=1e-10)
    # T − tr F in units of its standard deviation under the model.
    square = np.sum(inputs**2, axis=1)
    residual = (targets - inputs @ weights)[:, 0] / 0.3
    z = square @ (residual**2 - 1) / np.sqrt(2 * square @ square)
    assert verdict.z == pytest.approx(z, rel=0.2)  # 199 draws: 5 percent
    assert verdict.p_value == pytest.approx(2 / 200)
    assert "misspecified" in verdict.verdict


@pytest.mark.slow
def test_the_empirical_fisher_points_backwards_on_wine():
    """Linear regression of the class by steps with the empirical Fisher itself.

    Settings of Kunstner, Hennig & Balles (2019), section 4: raw features, start at 0.
    """
    data = sklearn.datasets.load_wine()
    inputs = np.concatenate([data.data, np.ones((178, 1))], axis=1)
    targets = data.target[:, None].astype(float)
    model, damping = ng.Model(linear, ng.families.NormalMean()), 1e-4
    optimizer = optax.chain(
        ng.scale_by_curvature(Dense(model, Empirical()), damping=damping),
        optax.scale_by_learning_rate(0.1),
    )
    trace = along(
        ComparisonSetup(model, ["empirical"], damping=damping, budget=QUICK),
        {"w": np.zeros((14, 1))},
        inputs,
        targets,
        optimizer=optimizer,
        steps=(0, 16),
    )
    # The same in NumPy.
    theta, cosines = np.zeros(14), []
    for _ in range(17):
        residual = inputs @ theta - targets[:, 0]
        gradient = inputs.T @ residual / 178
        solve = lambda w, g: np.linalg.solve(
            (inputs * w[:, None]).T @ inputs / 178 + damping * np.eye(14), g
        )
        own, exact = solve(residual**2, gradient), solve(np.ones(178), gradient)
        cosines.append(own @ exact / np.linalg.norm(own) / np.linalg.norm(exact))
        theta = theta - 0.1 * own
    found = trace.series("empirical", "step_cosine")
    assert found == pytest.approx(np.array(cosines)[[0, 16]], abs=1e-4)
    assert found[0] > 0.5
    assert found[1] < -0.2
    start, end = trace.losses - np.log(2 * np.pi) / 2
    assert end < 0.2 * start


@pytest.mark.slow
@pytest.mark.parametrize("matrices", [4096, 0], ids=["trace", "directions"])
def test_the_verdict_on_labels_has_the_right_size_and_power(matrices):
    """Labels drawn from the model give uniform p-values; overdispersed ones do not."""
    model = ng.Model(linear, ng.families.Poisson())
    draw = np.random.default_rng(4)
    inputs = jnp.asarray(draw.normal(size=(100, 2)))
    params = {"w": jnp.asarray([[0.6], [-0.4]])}
    budget = Budget(matrices=matrices, draws=59)
    rate = np.exp(np.asarray(inputs @ params["w"]))
    found = {"drawn": [], "overdispersed": []}
    for seed in range(30):
        key = jax.random.PRNGKey(seed)
        labels = {
            "drawn": draw.poisson(rate),
            "overdispersed": draw.negative_binomial(2.0, 2.0 / (2.0 + rate)),
        }
        for kind, y in labels.items():
            given = (model, params, inputs, jnp.asarray(y), key, budget)
            found[kind].append(information_matrix_test(*given))
    p_values = np.array([test.p_value for test in found["drawn"]])
    assert scipy.stats.kstest(p_values, "uniform").pvalue > 0.01
    assert np.mean([test.p_value < 0.05 for test in found["overdispersed"]]) > 0.5
    ratios = [test.trace_ratio for test in found["overdispersed"]]
    square = np.sum(np.asarray(inputs) ** 2, axis=1, keepdims=True)
    expected = np.sum((rate + rate**2 / 2) * square) / np.sum(rate * square)
    assert np.mean(ratios) == pytest.approx(expected, rel=0.2)
