"""The comparison: figures against NumPy, broken approximations, impossible requests."""

from __future__ import annotations

import dataclasses
import json

import compare_oracle
import jax
import numpy as np
import pytest
import scipy.linalg
from compare_oracle import BLOCKS, DAMPING, STEP_SIZE, Oracle

import natgrad as ng
from natgrad import tree
from natgrad.compare import Budget, ComparisonSetup, Reference, invariance, tables
from natgrad.curvature import CURVATURES, KFAC, Dense, Diagonal
from natgrad.metrics.matrices import DenseMetric

QUICK = Budget(repeats=1, charts=0)
EXACT = ("dense", "kl_hessian", "matrix_free")
NAMES = (*EXACT, "block_diagonal", "diagonal", "kfac", "empirical")


@pytest.fixture(scope="module")
def problem():
    return compare_oracle.problem()


@pytest.fixture(scope="module")
def oracle(problem):
    return Oracle(*problem[1:])


@pytest.fixture(scope="module")
def comparison(problem):
    model, *batch = problem
    how = {"damping": DAMPING, "step_size": STEP_SIZE, "budget": Budget(repeats=1)}
    return Reference.at(ComparisonSetup(model, NAMES, **how), *batch).compare()


def assert_equal(found, expected):
    for name, value in expected.items():
        given = getattr(found, name)
        assert given == pytest.approx(value, rel=1e-8, abs=1e-9), name


@pytest.mark.parametrize("name", NAMES)
def test_figures_equal_an_independent_computation(oracle, comparison, name):
    row = comparison[name]
    assert_equal(row, oracle.figures(name))
    assert_equal(row, oracle.point(name, STEP_SIZE))
    assert [block.name for block in row.blocks] == list(BLOCKS)
    for block, place in zip(row.blocks, BLOCKS.values(), strict=True):
        assert_equal(block, oracle.figures(name, place))
    for factor, point in zip(QUICK.factors, row.path, strict=True):
        assert_equal(point, oracle.point(name, factor * STEP_SIZE))
    ranks = np.array(row.spectrum.ranks, int)
    values = np.linalg.eigvalsh(oracle.matrices[name])[-ranks]
    assert row.spectrum.values == pytest.approx(values, abs=1e-12)
    assert row.agrees == (name in EXACT)
    assert row.residual < 1e-10
    assert not row.fallback


@pytest.mark.parametrize("name", NAMES)
def test_the_invariance_defect_is_that_of_the_matrix(problem, oracle, comparison, name):
    """θ = T φ with T made of the L; every matrix here is known in closed form."""
    key = jax.random.split(jax.random.PRNGKey(0), 1)[0]
    chart = invariance.recombination(*problem[:3], key)
    one, two = (np.asarray(chart.matrices[w]) for w in ("one/w", "two/w"))
    two_by_two, three = np.eye(2), np.eye(3)
    parts = two_by_two, np.kron(one, two_by_two), three, np.kron(two, three)
    change = scipy.linalg.block_diag(*parts)
    pulled = change.T @ oracle.matrices["dense"] @ change
    expected = change.T @ oracle.matrices[name] @ change
    there = np.diag(np.diag(pulled)) if name == "diagonal" else expected
    defect = np.linalg.norm(there - expected) / np.linalg.norm(expected)
    row = comparison[name]
    assert row.invariance_defect == pytest.approx(defect, abs=1e-10)
    assert (defect > 0.1) == (name == "diagonal")
    inverse = lambda m: np.linalg.inv(m + DAMPING * np.eye(15))
    own = inverse(oracle.matrices[name]) @ oracle.gradient
    moved = change @ inverse(there) @ change.T @ oracle.gradient
    step_defect = np.linalg.norm(moved - own) / np.linalg.norm(own)
    assert row.step_invariance_defect == pytest.approx(step_defect, rel=1e-8)


def test_the_verdict_on_labels_compares_traces(oracle, comparison):
    found = comparison.misspecification
    traces = [np.trace(oracle.matrices[name]) for name in ("empirical", "dense")]
    assert found.trace_ratio == pytest.approx(traces[0] / traces[1], rel=1e-8)
    assert found.directions == 0


def test_comparison_says_where_it_was_taken(oracle, comparison):
    assert comparison.parameters == 15
    assert comparison.examples == 12
    assert comparison.loss == pytest.approx(oracle.loss(oracle.theta), rel=1e-12)
    assert comparison["empirical"].uses_targets
    assert not comparison["empirical"].uses_key
    assert comparison["dense"].statistics_bytes == 15 * 15 * 8
    assert comparison["diagonal"].statistics_bytes == 15 * 8
    assert all(row.cost.run_seconds > 0 for row in comparison.rows)
    record = json.loads(json.dumps(comparison.to_dict()))
    assert record["rows"][0]["name"] == "dense"
    missed = record["error_sources"][-1]["kfac"]
    assert missed == pytest.approx(comparison["kfac"].relative_error ** 2, rel=1e-10)
    text = str(comparison)
    assert "where K-FAC's error comes from" in text
    assert "empirical†" in text
    assert max(map(len, text.splitlines())) <= 90
    with pytest.raises(KeyError):
        comparison["sampled"]


@dataclasses.dataclass(frozen=True, eq=False)
class WrongScale(Dense):
    def metric(self, statistics, params, inputs=None, targets=None):
        return DenseMetric(ng.tree.Layout.of(params), 2 * statistics)


@dataclasses.dataclass(frozen=True, eq=False)
class SwappedAxes(Dense):
    """Takes the second weight for its transpose."""

    def metric(self, statistics, params, inputs=None, targets=None):
        order = np.r_[:9, np.arange(9, 15).reshape(2, 3).T.ravel()]
        return DenseMetric(ng.tree.Layout.of(params), statistics[order][:, order])


@dataclasses.dataclass(frozen=True, eq=False)
class Unnormalised(Dense):
    """K-FAC that forgot to divide one layer's input factor by N."""

    def metric(self, statistics, params, inputs=None, targets=None):
        found = KFAC(self.model).at(params, inputs)
        first, *others = found.inputs
        return dataclasses.replace(found, inputs=(len(inputs) * first, *others))


BROKEN = {"scale": WrongScale, "axes": SwappedAxes, "factor": Unnormalised}


@pytest.fixture(scope="module")
def broken(problem):
    names = {"dense": Dense, "kfac": KFAC, **BROKEN}
    return ng.compare.compare(
        *problem, approximations=names, damping=DAMPING, budget=QUICK
    )


def test_a_wrong_scale_is_flagged(oracle, broken):
    row = broken["scale"]
    assert row.relative_error == pytest.approx(1, rel=1e-10)
    assert row.spectral_error == pytest.approx(1, rel=1e-10)
    assert row.trace_ratio == pytest.approx(2, rel=1e-10)
    assert row.own_predicted_kl == pytest.approx(2 * row.predicted_kl, rel=1e-10)
    solve = lambda m: np.linalg.solve(m + DAMPING * np.eye(15), oracle.gradient)
    exact = oracle.matrices["dense"]
    shorter = np.linalg.norm(solve(2 * exact)) / np.linalg.norm(solve(exact))
    assert row.step_norm_ratio == pytest.approx(shorter, rel=1e-8)
    assert shorter < 0.8
    top = np.linalg.eigvalsh(exact)[-1]
    highest = (2 * top + DAMPING) / (top + DAMPING)
    assert row.highest_ratio == pytest.approx(highest, rel=1e-8)
    assert row.lowest_ratio == pytest.approx(1, abs=1e-8)  # where F is 0
    assert not row.agrees


def test_a_swapped_axis_is_flagged(broken):
    """In the block where it is, and only by directions: trace and spectrum fit."""
    row = broken["axes"]
    first, second = row.blocks
    assert first.relative_error == 0
    assert second.relative_error > 0.1
    assert row.trace_ratio == pytest.approx(1, rel=1e-10)
    assert row.spectrum.values == pytest.approx(broken["dense"].spectrum.values)
    assert row.divergence > 0.01
    assert row.step_cosine < 0.999
    assert not row.agrees


def test_an_unnormalised_factor_is_flagged(broken):
    first, second = broken["factor"].blocks
    right = broken["kfac"].blocks
    assert second.relative_error == pytest.approx(right[1].relative_error)
    assert second.trace_ratio == pytest.approx(right[1].trace_ratio)
    assert first.trace_ratio == pytest.approx(12 * right[0].trace_ratio, rel=1e-8)
    assert first.relative_error > 5
    assert first.step_norm_ratio < 0.5 * right[0].step_norm_ratio


def test_curvatures_are_compared_as_they_are_given(problem):
    """With their labels and declared blocks, beside functions that make one."""
    model, *batch = problem
    declared = {path: ng.layers.DiagonalBlock() for path in tree.paths(batch[0])}
    given = {
        "by hand": KFAC(model, declared=declared),
        "made": lambda model: KFAC(model, declared=declared),
        "diagonal": Diagonal(model),
    }
    found = ng.compare.compare(model, *batch, approximations=given, budget=QUICK)
    rows = [row.figures() for row in found.rows]
    assert rows[0] == pytest.approx(rows[1], nan_ok=True)
    diagonal = found["diagonal"].relative_error
    assert found["by hand"].relative_error == pytest.approx(diagonal)


def test_the_registry_is_what_is_compared(problem, monkeypatch):
    for name in CURVATURES.keys() - {"dense", "kfac"}:
        monkeypatch.delitem(CURVATURES, name)
    monkeypatch.setitem(CURVATURES, "mine", Dense)
    names = [row.name for row in ng.compare.compare(*problem, budget=QUICK).rows]
    assert names == ["dense", "kfac", "mine"]


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"approximations": ["diagnal"]}, "Did you mean 'diagonal'"),
        ({"approximations": []}, "nothing to compare"),
        ({"approximations": {"mine": 3}}, "a curvature or a function model -> cur"),
        ({"damping": -1.0}, "damping must be finite and at least 0"),
        ({"approximations": ["dense"], "budget": Budget(memory=1000)}, "needs 1.8 kB"),
    ],
)
def test_impossible_arguments_are_refused(problem, arguments, message):
    with pytest.raises(ValueError, match=message):
        ng.compare.compare(*problem, **arguments)


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"reference": "dens"}, "Did you mean"),
        ({"step_size": np.inf}, "must be finite"),
    ],
)
def test_impossible_setups_are_refused(problem, arguments, message):
    with pytest.raises(ValueError, match=message):
        ComparisonSetup(problem[0], **arguments)


def test_the_keywords_of_the_version_before_still_work(problem):
    old = {"approximations": ["diagonal"], "effort": QUICK, "reference": "kfac"}
    with pytest.warns(DeprecationWarning, match="budget"):
        before = ng.compare.compare(*problem, step_size=0.5, **old)
    how = {"budget": QUICK, "reference": "kfac", "step_size": 0.5}
    setup = ComparisonSetup(problem[0], ["diagonal"], **how)
    now = Reference.at(setup, *problem[1:]).compare()
    figures = now.rows[0].figures()
    assert before.rows[0].figures() == pytest.approx(figures, nan_ok=True)
    assert (before.reference, before.step_size) == ("kfac", 0.5)


def test_the_verdict_names_what_follows_the_exact_step(comparison):
    verdict = comparison.verdict()
    assert any(f"by {name}:" in verdict.headline for name in EXACT)
    assert any("the data's own labels" in point for point in verdict.points)
    assert comparison.misspecification.verdict in verdict.points[-1]


def times(params, number):
    return jax.tree.map(lambda leaf: leaf * number, params)


@pytest.mark.parametrize(
    ("change", "message"),
    [
        (lambda p, x, y: (p, x.at[0].set(np.nan), y), "inputs must be finite"),
        (lambda p, x, y: (times(p, np.inf), x, y), "params must be"),
        (lambda p, x, y: (p, x[:0], y[:0]), "batch is empty"),
        (lambda p, x, y: (p, x, y[:5]), "targets must have shape"),
        (lambda p, x, y: (p, x, None), "targets are needed"),
        (lambda p, x, y: (p, x, y + 7), "impossible"),
        (lambda p, x, y: (times(p, 1e200), 1e200 * x, y), "finite"),
    ],
)
def test_impossible_arrays_are_refused(problem, change, message):
    model, *arrays = problem
    with pytest.raises(ValueError, match=message):
        ng.compare.compare(model, *change(*arrays))


@pytest.mark.parametrize(
    ("name", "value"), [("probes", 1), ("charts", -1), ("factors", (np.nan,))]
)
def test_impossible_efforts_are_refused(name, value):
    with pytest.raises(ValueError, match=name):
        Budget(**{name: value})


def test_figures_are_written_in_seven_characters():
    values = (0.0, 1.0, -0.99999, 1.8e-7, -3.4e-12, 123.4, 99999.0, 1e9, -0.00831)
    assert all(len(tables.figure(value)) <= 8 for value in values)
    assert tables.figure(0.99999) == "1.00"
    assert tables.figure(float("nan")) == "nan"
    assert tables.figure(None) == tables.MISSING
