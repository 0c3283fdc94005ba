"""MARCH by the variance of steps and of scores, against its equations in numpy."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from problems import ravel, relative_error
from vmc_steps import CASE, MOMENTUM, path, problem, traced
from wave_functions import Problem, local_energies
from wave_functions import problem as wave_function

import natgrad as ng
from natgrad import curvature as curvatures
from natgrad.tree import split_complex

DECAY, STRENGTH = 0.8, 0.05
VARIANCES = {"steps": ng.StepVariance(DECAY), "scores": ng.ScoreVariance(DECAY)}
BOTH = pytest.mark.parametrize("kind", VARIANCES)


class March:
    """S17 to S23 in parameter space, F and g given; v of scores by JaQMC's average."""

    def __init__(self, kind, size):
        self.kind, self.step, self.variance = kind, np.zeros(size), np.ones(size)

    def update(self, matrix, gradient):
        if self.kind == "scores":
            mean = np.diag(matrix) / np.diag(matrix).mean()
            self.variance = DECAY * self.variance + (1 - DECAY) * mean
        own = STRENGTH * np.maximum(np.sqrt(self.variance), 1e-8)
        right = gradient + own * MOMENTUM * self.step
        new = np.linalg.solve(matrix + np.diag(own), right)
        if self.kind == "steps":
            self.variance = DECAY * self.variance + (new - self.step) ** 2
        self.step = new
        return new


def transformation(curvature, kind):
    return ng.scale_by_march(
        curvature, damping=STRENGTH, momentum=MOMENTUM, variance=VARIANCES[kind]
    )


@BOTH
@pytest.mark.parametrize("form", [curvatures.Gram, curvatures.Dense])
def test_steps_are_those_of_the_equations(kind, form):
    model, params, x, y = problem("gram", 4)
    tx = transformation(form(model, curvatures.Empirical()), kind)
    updates, gradients, matrices, variances = path(
        tx, model, params, x, y, lambda state: ravel(state.variance)
    )
    paper = March(kind, matrices.shape[2])
    for k, rows in enumerate(matrices):
        expected = paper.update(rows.T @ rows, gradients[k])
        assert relative_error(updates[k], expected) < 1e-9
        assert relative_error(variances[k], paper.variance) < 1e-9


def test_steps_are_those_of_the_paper_in_sample_space():
    """Equations S17 to S23 as they are written, with v_0 = 1 and ε = 1e-8."""
    model, params, x, y = problem("gram", 4)
    tx = transformation(curvatures.Gram(model, curvatures.Empirical()), "steps")
    updates, _, matrices, _ = path(tx, model, params, x, y)
    step, variance = np.zeros(matrices.shape[2]), np.ones(matrices.shape[2])
    for k, rows in enumerate(matrices):
        e = np.ones(len(rows)) / np.sqrt(len(rows))
        phi, inverse = MOMENTUM * step, 1 / np.maximum(np.sqrt(variance), 1e-8)
        kernel = rows * inverse @ rows.T + STRENGTH * np.eye(len(rows))
        new = phi + inverse * (rows.T @ np.linalg.solve(kernel, e - rows @ phi))
        variance = DECAY * variance + (new - step) ** 2
        step = new
        assert relative_error(updates[k], step) < 1e-9


@BOTH
@pytest.mark.parametrize("parameters", ["complex", "mixed"])
def test_steps_of_complex_amplitudes_are_those_of_the_pairs(kind, parameters):
    """log ψ complex, its parameters all complex, or some real; F and g by hand."""
    known = wave_function(parameters)
    tx = transformation(curvatures.Dense(known.model, curvatures.Centred()), kind)

    def step(carry, _):
        params, state = carry
        _, gradient = ng.variational.energy_and_gradient(
            known.model, params, known.inputs, local_energies(params)
        )
        updates, state = tx.update(gradient, state, params, inputs=known.inputs)
        new = jax.tree.map(lambda p, u: p - 0.1 * u, params, updates)
        return (new, state), (params, updates)

    run = jax.jit(lambda p: jax.lax.scan(step, (p, tx.init(p)), length=3)[1])
    visited, updates = jax.tree.map(np.asarray, run(known.tree))
    paper = March(kind, len(known.matrix))
    for k in range(3):
        params = jax.tree.map(lambda leaf, k=k: leaf[k], visited)
        here = Problem(params, known.s, known.weights)
        gradient = 2 * here.force(np.asarray(local_energies(params)))
        expected = paper.update(here.matrix, gradient)
        found = jax.tree.map(lambda leaf, k=k: leaf[k], updates)
        assert jax.tree.structure(found) == jax.tree.structure(known.tree)
        assert relative_error(ravel(split_complex(found)), expected) < 1e-9


def test_parameters_that_a_batch_does_not_see_keep_their_variance():
    v, squares = jnp.array([1.0, 2.0, 3.0]), jnp.array([4.0, 1e-20, 2.0])
    found = ng.ScoreVariance(0.5).before(v, lambda: squares)
    np.testing.assert_allclose(found, [0.5 + 2 / 3, 2.0, 1.5 + 1 / 3], rtol=1e-12)


@BOTH
def test_the_alias_lowers_the_loss_and_refuses_kfac(kind):
    model, params, x, y = CASE.problem(examples=30)
    variance = VARIANCES[kind]
    tx = ng.march(0.1, model, damping=1e-2, constraint=1e-2, variance=variance)

    def step(carry, _):
        params, state = carry
        loss, gradient = jax.value_and_grad(model.loss)(params, x, y)
        updates, state = tx.update(gradient, state, params, inputs=x)
        length = optax.tree.norm(updates)
        return (optax.apply_updates(params, updates), state), (loss, length)

    run = jax.jit(lambda p: jax.lax.scan(step, (p, tx.init(p)), None, length=40)[1])
    losses, lengths = run(params)
    assert losses[-1] < 0.8 * losses[0]
    assert (lengths <= 0.1 + 1e-12).all()
    refused = ng.march(0.1, model, curvature=curvatures.KFAC, variance=variance)
    with pytest.raises(ValueError, match="one number a layer"):
        traced(refused, model, params, x, y)


def test_impossible_arguments_are_errors():
    model, params, _, _ = problem("gram")
    with pytest.raises(ValueError, match=r"decay must lie in \[0, 1\], got 1.5"):
        ng.ScoreVariance(1.5)
    with pytest.raises(ValueError, match=r"natgrad.StepVariance\(decay\).*got 0.9"):
        ng.march(0.1, model, variance=0.9)
    tx = ng.scale_by_march(curvatures.Dense(model), variance=ng.ScoreVariance())
    with pytest.raises(ValueError, match=r"the diagonal of F of each batch: call upd"):
        tx.update(params, tx.init(params), params)
