"""What `natgrad.doctor` measures, advises and refuses."""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import natgrad as ng
from natgrad.compare import advice, batch_check, measurements, step_costs
from natgrad.compare.advice import advise
from natgrad.compare.batch_check import BatchFigures
from natgrad.compare.measurements import CurvatureFigures, GradientNoise
from natgrad.compare.step_costs import Costs, LayersSeen
from natgrad.layers import Dependence

DRAW = np.random.default_rng(0)
X = jnp.asarray(DRAW.normal(size=(10, 3)))
Y = jnp.asarray(DRAW.integers(0, 2, 10))


def linear(params, x):
    return x @ params["w"]


def classifier(apply=linear):
    model = ng.Model(apply, ng.families.Categorical(), X[:1])
    return model, {"w": jnp.asarray(DRAW.normal(size=(3, 2)))}


@pytest.mark.parametrize(("unit", "told"), [(1.0, False), (150.0, True)])
def test_labels_in_raw_units_are_told(unit, told):
    y = unit * (1 + 0.1 * X[:, :1])
    zero = {"w": jnp.zeros((3, 1))}
    for scale in (1.0, 150.0):
        model = ng.Model(linear, ng.families.NormalMean(scale), X[:1])
        notes = batch_check.check_batch(model, zero, X, y).to_mend
        assert any("standardise them, or" in note for note in notes) is (
            told and scale == 1
        )


# Measurements ------------------------------------------------------------------------


@pytest.mark.parametrize("weighted", [False, True])
def test_the_noise_is_that_of_the_examples_gradients(weighted):
    weights = np.where(np.arange(10) % 3 == 0, 0.0, 2.0) if weighted else np.ones(10)
    inputs = {"x": X, "w": jnp.asarray(weights)}
    model = ng.Model(
        lambda p, inputs: linear(p, inputs["x"]),
        ng.families.Categorical(),
        weights=(lambda inputs: inputs["w"]) if weighted else None,
    )
    _, params = classifier()
    z = np.asarray(X @ params["w"])
    p = np.exp(z) / np.exp(z).sum(axis=1, keepdims=True)
    errors = p - np.eye(2)[np.asarray(Y)]
    each = np.einsum("ni,no->nio", np.asarray(X), errors).reshape(10, -1)
    each *= (weights * 10 / weights.sum())[:, None]
    noise = measurements.gradient_noise(model, params, inputs, Y)
    variance = each.var(axis=0, ddof=1).sum()
    square = np.sum(each.mean(axis=0) ** 2)
    assert noise.square == pytest.approx(square, rel=1e-9)
    assert noise.variance == pytest.approx(variance, rel=1e-9)
    signal = square - variance / 10
    scale = variance / signal if signal > 0 else math.inf
    assert noise.scale == pytest.approx(scale, rel=1e-8)


def test_the_noise_scale_of_noise_alone_and_of_none():
    assert GradientNoise(10, square=1.0, variance=20.0).scale == math.inf
    assert GradientNoise(10, square=1.0, variance=0.0).scale == 0
    assert GradientNoise(1, square=1.0, variance=math.inf).scale == math.inf


def test_the_curvature_of_a_diagonal_fisher_is_exact():
    """Probes of signs have no noise where F is diagonal."""
    lengths = np.array([3.0, 2.0, 0.5, 0.1])
    model = ng.Model(linear, ng.families.NormalMean())
    params, x = {"w": jnp.zeros((4, 1))}, jnp.diag(jnp.asarray(lengths))
    key = jax.random.PRNGKey(3)
    found = measurements.curvature_figures(model, params, x, 0.1, key)
    values = lengths**2 / 4
    assert found.trace == pytest.approx(values.sum(), rel=1e-10)
    assert found.largest == pytest.approx(values.max(), rel=1e-10)
    dimension = np.sum(values / (values + 0.1))
    assert found.effective_dimension == pytest.approx(dimension, rel=1e-10)


def test_a_model_without_forward_derivative_has_no_products():
    @jax.custom_vjp
    def halved(z):
        return z / 2

    halved.defvjp(lambda z: (z / 2, None), lambda _, g: (g / 2,))
    model, params = classifier(lambda params, x: halved(linear(params, x)))
    key = jax.random.PRNGKey(0)
    assert math.isnan(measurements.curvature_figures(model, params, X, 0.1, key).trace)


def test_costs_are_those_of_the_shapes():
    model, params = classifier()
    blocks, obstacle = step_costs.captured_blocks(model, params, X)
    assert obstacle == ""
    costs = step_costs.step_costs(model, params, X[:2], blocks, obstacle)
    assert costs.columns == 2
    assert costs.gradient == 3 * 2 * 6
    # M = 4 rows are less than P = 6, but F of few parameters is averaged.
    assert costs.space == "Dense"
    assert costs.exact == 4 * 6**2 + 6**3 / 3
    assert costs.kfac == 2 * (2**2 + 3**2) / 5 + (2**3 + 3**3) / 10 + 6 * (2 + 3)
    seen = step_costs.layers_seen(params, blocks, obstacle)
    assert seen.kinds == (("dense", 1, 6),)
    assert (seen.parameters, seen.outside, seen.largest) == (6, 0, 3)


# The batch ---------------------------------------------------------------------------


def normalised(params, x):
    z = linear(params, x)
    return z - jnp.mean(z, axis=0, keepdims=True)


NOTES = {
    "sound": ({}, ""),
    "large inputs": ({"x": 100 * X}, "root mean square 8"),
    "one large column": ({"x": X * jnp.array([[1, 1, 1e3]])}, "one input column"),
    "no inputs": ({"x": 0 * X}, "all inputs are 0"),
    "softmax": ({"apply": lambda p, x: jax.nn.softmax(linear(p, x))}, "takes logits"),
    "batch norm": ({"apply": normalised}, "depends on the other examples"),
}


@pytest.mark.parametrize("case", NOTES)
def test_what_is_to_be_mended_is_named(case):
    changes, words = NOTES[case]
    model, params = classifier(changes.get("apply", linear))
    found = batch_check.check_batch(model, params, changes.get("x", X), Y)
    assert words in "; ".join(found.to_mend)
    assert len(found.to_mend) == bool(words)
    assert (found.examples, found.labels, found.outputs) == (10, 1, 2)


@pytest.mark.parametrize(
    ("change", "words"),
    [
        ({"x": X.at[1, 1].set(jnp.nan)}, "inputs must be finite, got 1"),
        ({"params": {"w": jnp.full((3, 2), jnp.inf)}}, "params must be finite, got 6"),
        ({"y": Y.at[3].set(7)}, r"targets\[3\] = 7"),
        ({"y": Y[:4]}, "targets must have shape"),
        ({"x": 1e300 * X}, "outputs are not finite"),
        ({"damping": -1.0}, "damping must be"),
        ({"damping": "1"}, "damping must be"),
    ],
)
def test_what_cannot_be_measured_is_refused(change, words):
    model, params = classifier(lambda p, x: linear(p, x) ** 3)
    params, x, y = change.get("params", params), change.get("x", X), change.get("y", Y)
    with pytest.raises(ValueError, match=words):
        ng.doctor(model, params, x, y, damping=change.get("damping", 1e-3))


# The advice --------------------------------------------------------------------------

BATCH = BatchFigures(128, 1, 10, 2.3, 1.0, False, 1.0, Dependence.NOTHING, ())
LAYERS = LayersSeen(26_122, (("dense", 3, 26_122),), 0, 129, 280_000, "")
CURVATURE = CurvatureFigures(30.0, 5.0, 400.0, 1e-3)
COSTS = Costs(10, 1e7, "Gram", 1.7e9, 6.6e6, 9e6)
DETERMINED = {
    "costs": {"columns": 1},
    "batch": {"least_squares": True},
    "curvature": {"effective_dimension": 25.0},
}
# name -> what differs from a network of 26,122 parameters on a batch of noise.
TABLE = {
    "kfac": [{"batch": {"examples": 31}}],
    "kfac_adaptive": [
        {},
        {"batch": {"examples": 32}},
        {"layers": {"parameters": 513}},
        {"layers": {"parameters": 512}, "costs": {"exact": 2.1e9}},
        DETERMINED | {"costs": {"columns": 3}},
        DETERMINED | {"costs": {"columns": 1, "space": "MatrixFree"}},
        DETERMINED | {"batch": {"least_squares": True, "examples": 2049}},
        DETERMINED | {"batch": {"least_squares": False}},
        DETERMINED | {"curvature": {"effective_dimension": 26.0}},
    ],
    "spring": [
        {"layers": {"parameters": 512}},
        {"layers": {"parameters": 512, "obstacle": "examples depend on each other"}},
        DETERMINED,
        DETERMINED
        | {"costs": {"columns": 2}, "curvature": {"effective_dimension": 51.0}},
        {"costs": {"columns": 2}, "layers": {"outside": 9_000}},
    ],
    "gram": [
        {"layers": {"obstacle": "a parameter's use is not understood"}},
        {"layers": {"outside": 9_000}},
    ],
    "matrix_free": [{"layers": {"outside": 9_000}, "batch": {"labels": 32}}],
    "diagonal_fisher": [
        {
            "layers": {"outside": 9_000},
            "batch": {"labels": 32},
            "curvature": {"trace": math.nan, "effective_dimension": math.nan},
        }
    ],
}


@pytest.mark.parametrize(
    ("name", "change"), [(name, c) for name, cases in TABLE.items() for c in cases]
)
def test_each_line_of_the_table_is_reached(name, change):
    figures = {
        "batch": BATCH,
        "layers": LAYERS,
        "curvature": CURVATURE,
        "costs": COSTS,
    }
    found = advise(
        **{
            which: dataclasses.replace(value, **change.get(which, {}))
            for which, value in figures.items()
        }
    )
    assert found.optimizer == name
    assert found.code == f"ng.{name}(model=model)"


def test_numbers_in_words():
    words = [advice.times(ratio) for ratio in (1.24, 9.6, 172.0, 4712.0, math.inf)]
    assert words == ["1.2 times", "10 times", "170 times", "4,700 times", "many times"]
    two = LayersSeen(9, (("dense", 3, 6), ("conv", 1, 3)), 0, 3, 1, "")
    assert advice.kinds(two) == "3 dense layers and 1 conv layer"


# All of it ---------------------------------------------------------------------------


def test_five_lines_that_repeat_and_nothing_printed(capsys, monkeypatch):
    from natgrad.compare import doctor

    monkeypatch.setattr(doctor, "EXAMPLES", 5)
    model, params = classifier()
    found = ng.doctor(model, params, X, Y)
    assert found == ng.doctor(model, params, X, Y)
    assert capsys.readouterr().out == ""
    lines = str(found).splitlines()
    heads = ["Use ng.", "Batch: 10 exa", "Layers: K-FAC sees 1 d", "Noise:", "Curvatur"]
    assert [line.startswith(head) for line, head in zip(lines, heads, strict=True)]
    assert all(line.endswith(".") for line in lines)
    # A part was measured, and the advice is for all.
    assert found.noise.examples == 5
    assert found.batch.examples == 10


def test_a_model_that_kfac_refuses_gets_its_reason_and_another_optimizer():
    model, params = classifier(normalised)
    found = ng.doctor(model, params, X, Y)
    assert "K-FAC cannot take this model" in str(found)
    assert "example" in found.layers.obstacle
    assert found.costs.kfac == 0
