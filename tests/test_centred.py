"""Centred scores: the Fisher information of an unnormalised density."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from problems import dense_of, ravel, relative_error

import natgrad as ng
from natgrad.curvature import Centred, Dense, Gram, KLHessian

KEY = jax.random.PRNGKey(1)


def energy(params, x):
    """An unnormalised log-density of a spin configuration, one number each."""
    hidden = jnp.log(jnp.cosh(x @ params["w"] + params["b"][None]))
    return jnp.sum(hidden, axis=-1) + x @ params["a"]


def spins():
    """Every configuration of four spins, and parameters."""
    x = np.array(np.meshgrid(*[[-1.0, 1.0]] * 4)).reshape(4, -1).T
    keys = jax.random.split(KEY, 3)
    params = {
        "w": 0.5 * jax.random.normal(keys[0], (4, 3)),
        "b": 0.5 * jax.random.normal(keys[1], (3,)),
        "a": 0.5 * jax.random.normal(keys[2], (4,)),
    }
    return params, jnp.asarray(x)


@pytest.mark.parametrize("form", [Gram, Dense, KLHessian])
def test_centred_scores_weighted_by_the_law_are_the_fisher_of_a_softmax(form):
    """One categorical law over all configurations is the independent definition."""
    params, x = spins()
    whole = ng.Model(lambda p, _: energy(p, x)[None], ng.families.Categorical())
    expected = dense_of(Dense(whole), params, jnp.zeros((1, 1)))
    law = jax.nn.softmax(energy(params, x))
    model = ng.Model(
        lambda p, inputs: energy(p, inputs["x"]),
        ng.families.Unnormalized(),
        weights=lambda inputs: inputs["law"],
    )
    v = jax.tree.map(jnp.ones_like, params)

    @jax.jit
    def found(params):
        metric = form(model, Centred()).at(params, {"x": x, "law": law})
        return metric.dense(), ravel(metric.solve(v, 1e-3))

    matrix, given = found(params)
    assert relative_error(matrix, expected) < 1e-10
    damped = expected + 1e-3 * np.eye(len(expected))
    assert relative_error(given, np.linalg.solve(damped, ravel(v))) < 1e-9


def test_centred_scores_without_weights_are_a_covariance():
    params, x = spins()
    x = x[:7]
    model = ng.Model(energy, ng.families.Unnormalized())
    layout = ng.tree.Layout.of(params)
    forms = (Gram, Dense, ng.curvature.MatrixFree)

    @jax.jit
    def computed(params):
        metrics = [form(model, Centred()).at(params, x) for form in forms]
        rows = jax.jacrev(lambda v: energy(layout.unravel(v), x))
        said = [(metric.dense(), ravel(metric.diagonal())) for metric in metrics]
        return rows(layout.ravel(params)), said

    rows, said = computed(params)
    expected = np.cov(rows.T, bias=True)
    for matrix, diagonal in said:
        assert relative_error(matrix, expected) < 1e-10
        assert relative_error(diagonal, np.diag(expected)) < 1e-10


def test_centred_scores_refuse_what_they_cannot_mean():
    params, x = spins()
    model = ng.Model(energy, ng.families.Unnormalized(), example_inputs=x)
    with pytest.raises(ValueError, match="one example at a time"):
        ng.curvature.KFAC(model, Centred()).at(params, x)
    wide = ng.Model(lambda p, x: x @ p["w"], ng.families.NormalMean())
    with pytest.raises(ValueError, match="one number an example"):
        Gram(wide, Centred()).at({"w": params["w"]}, x)
    with pytest.raises(ValueError, match="draws of its own"):
        model.sample(KEY, params, x)
