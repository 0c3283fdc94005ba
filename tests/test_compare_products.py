"""Figures from products: Lanczos's method, and estimates against exact figures."""

from __future__ import annotations

import compare_oracle
import jax.numpy as jnp
import numpy as np
import pytest
from compare_oracle import BLOCKS, DAMPING, Oracle

import natgrad as ng
from natgrad.compare import Budget
from natgrad.solvers.lanczos import krylov

NAMES = ("kfac", "empirical", "matrix_free")
ESTIMATED = ("relative_error", "trace_ratio", "divergence", "effective_dimension")


@pytest.fixture(scope="module")
def operator():
    draw = np.random.default_rng(0)
    basis = np.linalg.qr(draw.normal(size=(30, 30)))[0]
    values = np.concatenate([np.geomspace(1e-3, 10, 12), np.zeros(18)])
    return (basis * values) @ basis.T, values, draw.normal(size=30)


def test_lanczos_integrates_and_solves_as_the_matrix_does(operator):
    matrix, values, v = operator
    product = lambda x: (jnp.asarray(matrix) @ x, x)
    found = krylov(product, jnp.asarray(v), 16)
    assert found.image() == pytest.approx(matrix @ v, abs=1e-12)
    damped = matrix + 0.01 * np.eye(30)
    assert found.solved(0.01) == pytest.approx(np.linalg.solve(damped, v), rel=1e-6)
    nodes, weights = found.quadrature()
    exact = np.linalg.eigh(matrix)
    log = lambda x: np.log1p(np.maximum(x, 0) / 0.01)
    expected = (exact[1].T @ v) ** 2 @ log(exact[0])
    assert weights @ log(nodes) == pytest.approx(expected, rel=1e-9)
    assert nodes.max() == pytest.approx(values.max(), rel=1e-10)
    # The space is exhausted after 12 eigenvalues and 0: later vectors are zero.
    gram = np.asarray(found.basis @ found.basis.T)
    assert gram == pytest.approx(np.diag(np.diag(gram)), abs=1e-12)
    assert np.diag(gram)[:13] == pytest.approx(np.ones(13))


@pytest.fixture(scope="module")
def found():
    budget = Budget(matrices=0, probes=40, iterations=15, repeats=1, charts=0, draws=9)
    problem = compare_oracle.problem()
    return ng.compare.compare(
        *problem, approximations=NAMES, damping=DAMPING, budget=budget
    )


@pytest.fixture(scope="module")
def oracle():
    return Oracle(*compare_oracle.problem()[1:])


@pytest.mark.slow
@pytest.mark.parametrize("name", NAMES)
def test_estimates_are_within_their_standard_errors(found, oracle, name):
    row = found[name]
    places = [slice(None), *BLOCKS.values()]
    for figures, place in zip((row.whole, *row.blocks), places, strict=True):
        exact = oracle.figures(name, place)
        for figure in ESTIMATED:
            noise = figures.standard_errors[figure] + 1e-9
            assert abs(getattr(figures, figure) - exact[figure]) < 4 * noise, figure
        for figure in ("step_cosine", "step_norm_ratio"):
            assert getattr(figures, figure) == pytest.approx(exact[figure], rel=2e-3)
        # 15 steps exhaust 15 parameters.
        assert figures.spectral_error == pytest.approx(
            exact["spectral_error"], rel=1e-6, abs=1e-9
        )
        for figure in ("lowest_ratio", "highest_ratio"):
            assert getattr(figures, figure) == pytest.approx(exact[figure], rel=1e-6)


@pytest.mark.slow
def test_what_is_estimated_and_what_is_not(found, oracle):
    assert not found.formed
    assert found.reference == "matrix_free"
    assert found.misspecification.directions == 40
    norm = np.linalg.norm(oracle.matrices["dense"])
    assert found.reference_norm == pytest.approx(norm, rel=0.2)
    assert found["matrix_free"].agrees
    assert not found["kfac"].agrees
    assert "±" in str(found)
    assert np.isnan(found["kfac"].median_ratio)


@pytest.mark.slow
def test_few_iterations_give_bounds_from_inside(oracle):
    budget = Budget(matrices=0, probes=4, iterations=3, repeats=1, draws=9)
    given = {"approximations": ["diagonal"], "damping": DAMPING, "budget": budget}
    row = ng.compare.compare(*compare_oracle.problem(), **given).rows[0]
    exact = oracle.figures("diagonal")
    assert row.spectral_error <= exact["spectral_error"] * 1.2
    assert exact["lowest_ratio"] <= row.lowest_ratio <= 1 <= row.highest_ratio
    assert row.highest_ratio <= exact["highest_ratio"]
    assert row.invariance_error > 0
    assert row.invariance_defect > 0.1


@pytest.mark.slow
def test_what_does_not_fit_is_left_out_unless_asked_for(monkeypatch):
    """300 parameters: a matrix takes 720 kB, a diagonal 2.4 kB."""
    for name in ng.CURVATURES.keys() - {"dense", "diagonal", "matrix_free"}:
        monkeypatch.delitem(ng.CURVATURES, name)
    draw = np.random.default_rng(0)
    model = ng.Model(lambda p, x: x @ p["w"], ng.families.Categorical())
    inputs, targets = draw.normal(size=(5, 100)), draw.integers(0, 3, 5)
    problem = (model, {"w": np.zeros((100, 3))}, inputs, targets)
    small = {"matrices": 0, "probes": 2, "iterations": 3, "repeats": 1, "charts": 0}
    budget = Budget(**small, memory=2e5)
    found = ng.compare.compare(*problem, budget=budget)
    assert {row.name for row in found.rows} == {"diagonal", "matrix_free"}
    ((name, reason),) = found.skipped
    assert name == "dense"
    assert "720.0 kB of statistics" in reason
    assert "left out: dense" in str(found)
    with pytest.raises(ValueError, match="dense needs 720"):
        ng.compare.compare(*problem, approximations=["dense"], budget=budget)
