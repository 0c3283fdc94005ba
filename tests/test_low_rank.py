"""Gradients that are known as rows: the same step, in fewer operations."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import pytest
from kfac_problems import normal
from problems import ravel, relative_error

import natgrad as ng
from natgrad.curvature import KFAC, Dense, Sampled
from natgrad.metrics.kronecker import Eigenbasis


@dataclasses.dataclass(frozen=True)
class Case:
    """A model of a wide layer with a bias, stacked heads and a narrow one."""

    model: ng.Model
    params: dict
    x: jax.Array
    y: jax.Array


def case(examples):
    params = {
        "first": {"w": normal(0, 40, 50) / 6, "b": normal(1, 50)},
        "heads": normal(2, 3, 50, 30) / 7,
        "last": normal(3, 30, 4) / 5,
    }

    def apply(params, x):
        x = jnp.tanh(x @ params["first"]["w"] + params["first"]["b"][None])
        x = jnp.tanh(jnp.einsum("ni,hio->nho", x, params["heads"])).sum(1)
        return x @ params["last"]

    x, y = normal(4, examples, 40), jnp.arange(examples) % 4
    family = ng.families.Categorical()
    return Case(ng.Model(apply, family, example_inputs=x[:1]), params, x, y)


FEW, MANY = case(5), case(64)


def test_the_rows_are_the_gradient():
    """Σ x gᵀ with a row of ones for the bias, by NumPy, is JAX's gradient; loss too."""

    @jax.jit
    def both(*batch):
        found = KFAC(FEW.model).value_grad_and_rows(*batch)
        return found, jax.value_and_grad(FEW.model.loss)(*batch)

    (loss, gradient, rows), expected = both(FEW.params, FEW.x, FEW.y)
    assert abs(loss - expected[0]) < 1e-12
    assert relative_error(ravel(gradient), ravel(expected[1])) < 1e-12
    x, g = (rows["first/w"][name].reshape(5, -1) for name in ("x", "g"))
    assert relative_error(x.T @ g, expected[1]["first"]["w"]) < 1e-12
    assert relative_error(g.sum(0), expected[1]["first"]["b"]) < 1e-12


OPTIMIZERS = {
    "kfac": ng.kfac(0.1, FEW.model),
    "adaptive": ng.scale_by_factored_curvature(KFAC(FEW.model, Sampled(1))),
}


def whole(params, state, x, tx):
    gradient = jax.grad(FEW.model.loss)(params, x, FEW.y)
    return tx.update(gradient, state, params, inputs=x)


def fast(params, state, x, tx):
    curvature = KFAC(FEW.model, Sampled(1))
    _, gradient, rows = curvature.value_grad_and_rows(params, x, FEW.y)
    return tx.update(gradient, state, params, inputs=x, rows=rows)


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_a_step_from_rows_is_the_step_of_the_gradient(name):
    tx = OPTIMIZERS[name]
    steps = [jax.jit(functools.partial(step, tx=tx)) for step in (whole, fast)]
    state = tx.init(FEW.params)
    for _ in range(3):
        results = [step(FEW.params, state, FEW.x) for step in steps]
        assert relative_error(*(ravel(update) for update, _ in results)) < 1e-9
        state = results[0][1]
    slow, quick = (
        step.lower(FEW.params, state, FEW.x).cost_analysis()["flops"] for step in steps
    )
    assert quick < slow


def test_a_step_that_is_not_finite_is_skipped():
    bad = FEW.x.at[0, 0].set(jnp.nan)
    tx = OPTIMIZERS["kfac"]
    step = jax.jit(functools.partial(fast, tx=tx))
    update, after = step(FEW.params, tx.init(FEW.params), bad)
    assert after[0].health.skipped
    assert not ravel(update).any()


def test_only_narrow_batches_have_rows():
    found = [
        set(KFAC(c.model).value_grad_and_rows(c.params, c.x, c.y)[2])
        for c in (FEW, MANY)
    ]
    assert found[0] >= {"first/w", "heads"}
    assert found[1] == set()


@pytest.mark.parametrize(
    ("form", "solver"), [(KFAC, Eigenbasis()), (KFAC, None), (Dense, None)]
)
def test_solvers_without_use_for_rows_refuse_them(form, solver):
    tx = ng.scale_by_curvature(form(FEW.model), solver=solver)
    state = jax.eval_shape(tx.init, FEW.params)
    update = lambda p, s: tx.update(p, s, p, inputs=FEW.x, rows={})
    with pytest.raises(ValueError, match="rows="):
        jax.eval_shape(update, FEW.params, state)
