"""Filters, and steps of optimizers damped as variational Monte Carlo is."""

from __future__ import annotations

import jax
import numpy as np
import optax
from problems import CASES, ravel

import natgrad as ng
from natgrad.solvers import HardCutoff, RobustDamping, SmoothCutoff

CASE = CASES["categorical"]
DAMPING, MOMENTUM = 0.03, 0.9


def filters(largest):
    """(a solver, what it does to eigenvalues in numpy), by name."""
    cutoff = 0.01 * largest
    return {
        "hard": (HardCutoff(0.01), lambda s: (s > cutoff) / (s + DAMPING)),
        "smooth": (
            SmoothCutoff(0.01),
            lambda s: s**6 / (s**6 + cutoff**6) / (s + DAMPING),
        ),
        "robust": (
            RobustDamping(4.0),
            lambda s: (s + 4 * DAMPING**2) / (s + DAMPING) ** 2,
        ),
    }


def problem(name, count=1):
    """(model, parameters, batches of inputs and labels)."""
    size = 20 if name == "tall" else 7
    model, params, x, y = CASE.problem(examples=size * count)
    return model, params, x.reshape(count, size, -1), y.reshape(count, size)


def stepped(tx, model, params, x, y):
    """(the update, health)."""
    gradient = jax.grad(model.loss)(params, x, y)
    updates, state = tx.update(gradient, tx.init(params), params, inputs=x, targets=y)
    return ravel(updates), optax.tree.get(state, "health")


def traced(tx, model, params, x, y):
    """Errors of `stepped` without its values."""
    jax.eval_shape(lambda params: stepped(tx, model, params, x, y)[0], params)


def path(tx, model, params, x, y, record=lambda state: ()):
    """(parameters after, update, gradient, rows B, what is recorded) of each step.

    B [N, P] are the gradients of −log p of the examples over √N, and g = Bᵀ e with
    e = 1/√N: F = Bᵀ B is that of `Empirical` labels.
    """
    layout = ng.tree.Layout.of(params)

    def losses(v, x, y):
        return -model.log_prob(layout.unravel(v), x, y)

    def step(carry, batch):
        params, state = carry
        gradient = jax.grad(model.loss)(params, *batch)
        rows = jax.jacrev(losses)(ravel(params), *batch) / np.sqrt(len(batch[1]))
        updates, state = tx.update(
            gradient, state, params, inputs=batch[0], targets=batch[1]
        )
        params = optax.apply_updates(params, jax.tree.map(lambda u: -0.2 * u, updates))
        return (params, state), (ravel(updates), ravel(gradient), rows, record(state))

    run = jax.jit(
        lambda params, x, y: jax.lax.scan(step, (params, tx.init(params)), (x, y))[1]
    )
    return jax.tree.map(np.asarray, run(params, x, y))
