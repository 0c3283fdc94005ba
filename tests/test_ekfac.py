"""EKFAC and the diagonal from taps against the Fisher's own entries."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import zoo
from kfac_problems import KEY, temporary
from problems import CASES, relative_error

import natgrad as ng
from natgrad.curvature import (
    EKFAC,
    KFAC,
    Dense,
    Diagonal,
    Empirical,
    Exact,
    LayerDiagonal,
    Sampled,
)


def both_diagonals(model, labels, *batch):
    """From taps and from gradients of the examples, in one program."""
    forms = [form(model, labels) for form in (LayerDiagonal, Diagonal)]
    return jax.jit(lambda *batch: [form.estimate(*batch) for form in forms])(*batch)


@functools.cache
def zoo_problem(name):
    """A zoo model with normal outputs, and its captured blocks' Fisher."""
    apply, params, inputs, in_axes = zoo.ZOO[name]()
    flat = lambda p, x: (lambda z: z.reshape(z.shape[0], -1))(apply(p, x))
    model = ng.Model(
        flat, ng.families.NormalMean(), example_inputs=inputs, in_axes=in_axes
    )
    return model, params, inputs


def block_masked(metric, fisher):
    """The Fisher inside the blocks of a metric."""
    inside = np.zeros(fisher.shape, bool)
    for places in metric._places():
        for where in places:
            inside[np.ix_(where, where)] = True
    return np.where(inside, fisher, 0)


@pytest.mark.parametrize(
    "name",
    [
        "tied",
        "scan and remat",
        "linen conv 1d",
        "tied embedding",
        "ensemble",
    ],
)
def test_ekfac_is_nearer_to_the_fisher_in_every_block(name):
    """Grouped, tied and stacked blocks too, by the same labels."""
    model, params, inputs = zoo_problem(name)

    @jax.jit
    def matrices(params):
        kron = KFAC(model, Sampled(1)).at(params, inputs, key=KEY)
        eigen = EKFAC(model, Sampled(1)).at(params, inputs, key=KEY)
        fisher = Dense(model, Sampled(1)).at(params, inputs, key=KEY).dense()
        return kron, eigen.dense(), fisher

    kron, eigen, fisher = matrices(params)
    for places in kron._places():
        for where in places:
            cut = lambda matrix, where=where: np.asarray(matrix)[np.ix_(where, where)]
            target, near, far = cut(fisher), cut(eigen), cut(kron.dense())
            scale = np.linalg.norm(target)
            bound = np.linalg.norm(far - target) + 1e-12 * scale
            assert np.linalg.norm(near - target) <= bound
            assert np.trace(near) == pytest.approx(
                np.trace(target), rel=1e-10, abs=1e-12
            )
    masked = block_masked(kron, fisher)
    gain = np.linalg.norm(kron.dense() - masked) - np.linalg.norm(eigen - masked)
    assert gain > 1e-3 * np.linalg.norm(masked)


def test_ekfac_is_kfac_before_its_scales_are_measured(tolerance):
    model, params, x, _ = CASES["poisson"].problem()
    kfac, ekfac = KFAC(model), EKFAC(model)

    @jax.jit
    def matrices(params):
        factors = kfac.estimate(params, x)
        start = ekfac.metric(ekfac.from_factors(factors), params)
        metrics = start, kfac.metric(factors, params), ekfac.at(params, x)
        return [metric.dense() for metric in metrics]

    start, expected, after = matrices(params)
    assert relative_error(start, expected) < tolerance("identity")
    assert relative_error(after, expected) > 0.01


@pytest.mark.parametrize("labels", [Exact(), Sampled(2), Empirical()])
@pytest.mark.parametrize("name", ["categorical", "normal_mean_log_scale"])
def test_the_diagonal_from_taps_is_the_diagonal(name, labels, tolerance):
    model, params, x, y = CASES[name].problem()
    given, expected = both_diagonals(model, labels, params, x, y, KEY)
    assert relative_error(given, expected) < tolerance("identity")


@pytest.mark.parametrize(
    "name",
    [
        "scan and remat",
        "tied",
        "linen cnn",
        "attention",
        "norms",
    ],
)
def test_the_diagonal_from_taps_is_the_diagonal_of_zoo_models(name, tolerance):
    model, params, inputs = zoo_problem(name)
    given, expected = both_diagonals(model, Sampled(1), params, inputs, None, KEY)
    assert relative_error(given, expected) < tolerance("identity")


def test_the_diagonal_from_taps_forms_no_gradient_of_an_example():
    """Compiled temporary memory stays far below N P numbers."""
    params = {"w": jnp.zeros((64, 64)), "v": jnp.zeros((64, 64))}
    x = jnp.ones((50, 64))
    model = ng.Model(
        lambda p, x: jnp.tanh(x @ p["w"]) @ p["v"],
        ng.families.NormalMean(),
        example_inputs=x,
    )
    curvature = LayerDiagonal(model, Sampled(1))
    memory = temporary(lambda p: curvature.estimate(p, x, key=KEY), params)
    assert memory < 0.5 * 8 * 50 * 2 * 64 * 64
