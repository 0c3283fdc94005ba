"""The comparison: figures against NumPy, and broken approximations."""

from __future__ import annotations

import dataclasses
import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import natgrad as ng
from natgrad.compare import Effort, tables
from natgrad.curvature import CURVATURES, Dense
from natgrad.metric import DenseMetric

DAMPING, STEP_SIZE = 0.05, 0.7
QUICK = Effort(repeats=1, charts=0)
CLOSED_FORMS = ("dense", "kl_hessian", "matrix_free", "block_diagonal", "diagonal")


def apply(params, inputs):
    return inputs @ params["w"] + params["b"][None]


@pytest.fixture(scope="module")
def problem():
    """Three-class logistic regression: (model, params, inputs, targets)."""
    draw = np.random.default_rng(3)
    params = {"b": draw.normal(size=3), "w": draw.normal(size=(2, 3))}
    params = jax.tree.map(jnp.asarray, params)
    inputs = jnp.asarray(draw.normal(size=(12, 2)))
    targets = jnp.asarray(draw.integers(0, 3, size=12))
    return ng.Model(apply, ng.families.Categorical()), params, inputs, targets


@pytest.fixture(scope="module")
def comparison(problem):
    names = [*CLOSED_FORMS, "empirical"]
    given = {"damping": DAMPING, "step_size": STEP_SIZE, "effort": QUICK}
    return ng.compare(*problem, approximations=names, **given)


class Oracle:
    """The same problem in NumPy, parameters in ravel_pytree order: b, then w."""

    def __init__(self, params, inputs, targets):
        self.x, self.y = np.asarray(inputs), np.asarray(targets)
        self.theta = np.concatenate([np.ravel(params["b"]), np.ravel(params["w"])])
        p = self.probabilities(self.theta)
        rows = np.concatenate([np.ones((len(self.x), 1)), self.x], axis=1)
        jacobian = np.stack([np.kron(row, np.eye(3)) for row in rows])  # [N, C, P]
        residual = np.eye(3)[self.y] - p
        scores = np.einsum("ncp,nc->np", jacobian, residual)
        count = len(self.x)
        f_z = np.einsum("nc,cd->ncd", p, np.eye(3)) - np.einsum("nc,nd->ncd", p, p)
        self.gradient = -scores.mean(axis=0)
        exact = np.einsum("ncp,ncd,ndq->pq", jacobian, f_z, jacobian) / count
        blocks = np.zeros_like(exact)
        blocks[:3, :3], blocks[3:, 3:] = exact[:3, :3], exact[3:, 3:]
        self.matrices = {
            **dict.fromkeys(("dense", "kl_hessian", "matrix_free"), exact),
            "block_diagonal": blocks,
            "diagonal": np.diag(np.diag(exact)),
            "empirical": scores.T @ scores / count,
        }

    def probabilities(self, theta):
        z = self.x @ theta[3:].reshape(2, 3) + theta[:3]
        e = np.exp(z - z.max(axis=1, keepdims=True))
        return e / e.sum(axis=1, keepdims=True)

    def loss(self, theta):
        p = self.probabilities(theta)
        return -np.mean(np.log(p[np.arange(len(self.y)), self.y]))

    def figures(self, name):
        exact, matrix = self.matrices["dense"], self.matrices[name]
        solve = lambda m: np.linalg.solve(m + DAMPING * np.eye(len(m)), self.gradient)
        d_exact, d = STEP_SIZE * solve(exact), STEP_SIZE * solve(matrix)
        p, q = self.probabilities(self.theta), self.probabilities(self.theta - d)
        kl, own_kl = d @ exact @ d / 2, d @ matrix @ d / 2
        norm = np.linalg.norm
        return {
            "relative_error": norm(matrix - exact) / norm(exact),
            "step_cosine": d @ d_exact / norm(d) / norm(d_exact),
            "step_norm_ratio": norm(d) / norm(d_exact),
            "predicted_loss_decrease": self.gradient @ d - kl,
            "own_predicted_loss_decrease": self.gradient @ d - own_kl,
            "actual_loss_decrease": self.loss(self.theta) - self.loss(self.theta - d),
            "predicted_kl": kl,
            "own_predicted_kl": own_kl,
            "actual_kl": np.mean(np.sum(p * np.log(p / q), axis=1)),
        }


@pytest.mark.parametrize("name", [*CLOSED_FORMS, "empirical"])
def test_figures_equal_an_independent_computation(problem, comparison, name):
    _, *arrays = problem
    row = comparison[name]
    for figure, expected in Oracle(*arrays).figures(name).items():
        assert getattr(row, figure) == pytest.approx(expected, rel=1e-8, abs=1e-10), (
            figure
        )
    assert row.agrees == (name in ("dense", "kl_hessian", "matrix_free"))
    assert row.residual < 1e-10
    assert not row.fallback


def test_comparison_says_where_it_was_taken(problem, comparison):
    _, params, *arrays = problem
    oracle = Oracle(params, *arrays)
    assert comparison.parameters == 9
    assert comparison.examples == 12
    assert comparison.loss == pytest.approx(oracle.loss(oracle.theta), rel=1e-12)
    assert comparison["empirical"].uses_targets
    assert not comparison["empirical"].uses_key
    assert comparison["dense"].statistics_bytes == 9 * 9 * 8
    assert comparison["diagonal"].statistics_bytes == 9 * 8
    assert all(row.cost.run_seconds > 0 for row in comparison.rows)
    record = json.loads(json.dumps(comparison.to_dict()))
    assert record["rows"][0]["name"] == "dense"
    text = str(comparison)
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
    def metric(self, statistics, params, inputs=None, targets=None):
        layout = ng.tree.Layout.of(params)
        order = np.concatenate([np.arange(3), np.arange(3, 9).reshape(2, 3).T.ravel()])
        return DenseMetric(layout, statistics[np.ix_(order, order)])


def broken_row(problem, **options):
    options = {"approximations": ["broken"], "effort": QUICK} | options
    return ng.compare(*problem, **options).rows[0]


def test_a_wrong_scale_is_flagged(problem, monkeypatch):
    monkeypatch.setitem(CURVATURES, "broken", WrongScale)
    row = broken_row(problem, damping=1e-9)
    assert row.relative_error == pytest.approx(1, rel=1e-10)
    assert row.own_predicted_kl == pytest.approx(2 * row.predicted_kl, rel=1e-10)
    assert row.step_norm_ratio == pytest.approx(0.5, rel=1e-5)
    assert not row.agrees


def test_a_swapped_axis_is_flagged(problem, monkeypatch):
    monkeypatch.setitem(CURVATURES, "broken", SwappedAxes)
    row = broken_row(problem)
    assert row.relative_error > 0.1
    assert row.step_cosine < 0.99
    assert not row.agrees


def test_the_registry_is_what_is_compared(problem, monkeypatch):
    monkeypatch.setitem(CURVATURES, "mine", Dense)
    names = [row.name for row in ng.compare(*problem, effort=QUICK).rows]
    assert names == list(CURVATURES)
    assert names[-1] == "mine"


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"approximations": ["diagnal"]}, "Did you mean 'diagonal'"),
        ({"approximations": []}, "nothing to compare"),
        ({"reference": "dens"}, "Did you mean 'dense'"),
        ({"damping": -1.0}, "damping must be finite and at least 0"),
        ({"step_size": float("inf")}, "step_size must be finite"),
    ],
)
def test_impossible_arguments_are_refused(problem, arguments, message):
    with pytest.raises(ValueError, match=message):
        ng.compare(*problem, **arguments)


def test_a_loss_that_is_not_finite_is_refused(problem):
    model, params, inputs, targets = problem
    with pytest.raises(ValueError, match="no step to compare"):
        ng.compare(model, params, inputs.at[0].set(jnp.nan), targets)


def test_figures_are_written_in_seven_characters():
    values = (0.0, 1.0, -0.99999, 1.8e-7, -3.4e-12, 123.4, 99999.0, 1e9, -0.00831)
    assert all(len(tables.figure(value)) <= 8 for value in values)
    assert tables.figure(0.99999) == "1.00"
    assert tables.figure(float("nan")) == "nan"
    assert tables.figure(None) == tables.MISSING
