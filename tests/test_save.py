"""Saved statistics come back bit for bit, and a wrong file says what is wrong."""

from __future__ import annotations

import json

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from problems import CASES

import natgrad as ng
from natgrad.curvature import (
    EKFAC,
    KFAC,
    BlockDiagonal,
    Constant,
    DataAverage,
    Dense,
    Empirical,
    Sampled,
)
from natgrad.curvature.ekfac import Bases

MODEL, PARAMS, X, Y = CASES["categorical"].problem()
CURVATURE = Dense(MODEL)
TREE = {
    "numbers": (
        np.array([1.5, np.nan, -0.0], "float64"),
        np.frombuffer(b"\x01\x00\xc0\x7f", "float32"),  # a NaN with other bits
        jnp.array([[1.1, -3e38]], jnp.bfloat16),
        jnp.array(0.1, jnp.float16),
        jnp.arange(3, dtype=jnp.uint32),
        jnp.array([True, False]),
        jnp.zeros((0, 2), jnp.float8_e4m3fn),
    ),
    "none": None,
    "empty": (),
    "list": [Bases((jnp.ones(2), None), (jnp.ones(1),)), []],
}


def bits(tree):
    leaves = map(np.asarray, jax.tree.leaves(tree))
    return [(a.dtype, a.shape, a.tobytes()) for a in leaves]


@pytest.fixture
def path(tmp_path):
    return tmp_path / "statistics.npz"


def test_a_tree_comes_back_bit_for_bit_and_nothing_is_pickled(path):
    ng.save(path, CURVATURE, TREE)
    found = ng.load(path)
    assert jax.tree.structure(found) == jax.tree.structure(TREE)
    assert bits(found) == bits(TREE)
    with np.load(path, allow_pickle=False) as file:
        description = json.loads(str(file["natgrad"]))
        assert all(file[name].dtype.kind in "biufU" for name in file)
    assert description["natgrad"] == ng.__version__
    assert description["curvature"] == "Dense(labels=Exact())"


MAKES = {
    **ng.CURVATURES,
    "constant": lambda model: Constant(EKFAC(model)),
    "grouped": lambda model: BlockDiagonal(model, grouping=lambda path: path[:2]),
}


@pytest.mark.parametrize("name", MAKES)
def test_the_metric_is_rebuilt_without_data(name, path):
    curvature = MAKES[name](MODEL)
    rng = np.random.default_rng(0)
    statistics = jax.tree.map(
        lambda leaf: jnp.asarray(rng.normal(size=leaf.shape)).astype(leaf.dtype),
        curvature.init(PARAMS),
    )
    ng.save(path, curvature, statistics)
    found = ng.load(path, MAKES[name](MODEL), PARAMS)
    assert bits(found) == bits(statistics)
    if curvature.requires_batch:
        return
    with_data, without = (
        curvature.metric(each, PARAMS, *data)
        for each, data in ((statistics, (X, Y)), (found, ()))
    )
    assert bits(without) == bits(with_data)
    ng.save(path, curvature, DataAverage(statistics, jnp.ones(())))
    assert bits(ng.load(path, curvature, PARAMS).statistics) == bits(statistics)


def test_a_file_of_something_else_is_refused(path):
    with pytest.raises(FileNotFoundError):
        ng.load(path)
    refused = pytest.raises(ValueError, match="not a complete file")
    path.write_text("text")
    with refused:
        ng.load(path)
    with path.open("wb") as file:
        np.save(file, np.ones(3))
    with refused:
        ng.load(path)
    np.savez(path, a=np.ones(3))
    with refused:
        ng.load(path)
    np.savez(path, natgrad=np.array([{}], dtype=object))
    with refused:
        ng.load(path)
    ng.save(path, CURVATURE, TREE)
    path.write_bytes(path.read_bytes()[:-100])
    with refused:
        ng.load(path)


def test_another_version_of_the_format_is_refused(path):
    ng.save(path, CURVATURE, jnp.ones(2))
    with np.load(path) as file:
        arrays = dict(file)
    text = str(arrays["natgrad"]).replace('"format": 1', '"format": 7')
    arrays["natgrad"] = np.array(text)
    np.savez(path, allow_pickle=False, **arrays)
    with pytest.raises(ValueError, match=r"version 7 .* reads version 1"):
        ng.load(path)


@pytest.mark.parametrize(
    "other",
    [EKFAC(MODEL), KFAC(MODEL, Empirical()), KFAC(MODEL, sharing=ng.layers.Reduce())],
)
def test_statistics_of_another_curvature_are_refused(path, other):
    ng.save(path, KFAC(MODEL, Sampled(2)), ())
    match = r"of KFAC\(labels=Sampled\(n=2\).*, expected " + type(other).__name__
    with pytest.raises(ValueError, match=match):
        ng.load(path, other)


def test_statistics_for_other_parameters_are_refused(path):
    curvature = KFAC(MODEL)
    statistics = curvature.init(PARAMS)
    wrong = statistics._replace(outputs=(jnp.ones((4, 4)), jnp.ones((7, 7))))
    ng.save(path, curvature, wrong)
    match = r"outputs/1 has shape \(7, 7\), expected \(3, 3\)"
    with pytest.raises(ValueError, match=match):
        ng.load(path, curvature, PARAMS)
    ng.save(path, curvature, statistics._replace(outputs=statistics.outputs[:1]))
    with pytest.raises(ValueError, match=r"outputs/1 has shape None, expected"):
        ng.load(path, curvature, PARAMS)
    ng.save(path, CURVATURE, jnp.ones(3))
    with pytest.raises(ValueError, match=r"the array has shape \(3,\)"):
        ng.load(path, CURVATURE, PARAMS)


def test_what_cannot_be_saved_leaves_the_old_file(path, monkeypatch):
    ng.save(path, CURVATURE, jnp.ones(2))
    with pytest.raises(ValueError, match="got a str in it"):
        ng.save(path, CURVATURE, {"a": "text"})
    with pytest.raises(ValueError, match="key_data"):
        ng.save(path, CURVATURE, jax.random.key(0))

    def full(*_, **__):
        raise OSError("the disk is full")

    monkeypatch.setattr(np, "savez", full)
    with pytest.raises(OSError, match="full"):
        ng.save(path, CURVATURE, jnp.zeros(2))
    assert [each.name for each in path.parent.iterdir()] == [path.name]
    np.testing.assert_array_equal(ng.load(path), np.ones(2))


def test_numbers_that_jax_would_shorten_are_refused(path):
    ng.save(path, CURVATURE, jnp.ones(2))
    with (
        jax.enable_x64(False),
        pytest.raises(ValueError, match="float64, and JAX would shorten"),
    ):
        ng.load(path)
