"""What the tests of the optax contract share: a problem, its oracle, compiled steps.

The oracle is numpy: softmax regression, whose Jacobian is written down by hand, so the
Fisher information, its empirical cousin and the gradient come from no line of the
library.
"""

from __future__ import annotations

import collections
import functools
import inspect
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import natgrad as ng
from natgrad import optimizers

N, FEATURES, CLASSES, LAMBDA, RATE = 6, 2, 3, 0.3, 0.5
BIAS = slice(0, CLASSES)  # of the parameter vector [b, w], in ravel_pytree order
WEIGHT = slice(CLASSES, None)


def draw(seed, count=N):
    """A batch (x [N, I], y [N])."""
    rng = np.random.default_rng(seed)
    return rng.normal(size=(count, FEATURES)), rng.integers(0, CLASSES, count)


def start(dtype=jnp.float64):
    """Parameters in fresh buffers, so that a test may donate them."""
    rng = np.random.default_rng(1)
    params = {
        "w": rng.normal(size=(FEATURES, CLASSES)),
        "b": rng.normal(size=CLASSES),
    }
    return jax.tree.map(lambda leaf: jnp.array(leaf, dtype), params)


X, Y = draw(0)
MODEL = ng.Model(
    lambda params, x: x @ params["w"] + params["b"][None],
    ng.families.Categorical(),
    example_inputs=X[:1],
)


# The oracle, in numpy ---------------------------------------------------------------


def flat(tree):
    """A tree as a vector, leaves in the order of their names."""
    return np.concatenate([np.asarray(tree[name]).ravel() for name in sorted(tree)])


def tree_of(vector):
    """A tree like the parameters from a vector in the order of `flat`."""
    return jax.flatten_util.ravel_pytree(start())[1](jnp.asarray(vector))


class Oracle(NamedTuple):
    """What numpy knows of a batch at given parameters."""

    gradient: np.ndarray
    fisher: np.ndarray
    empirical: np.ndarray


def oracle(params, x=X, y=Y):
    x, w, b = np.asarray(x), np.asarray(params["w"]), np.asarray(params["b"])
    eye = np.eye(CLASSES)
    logits = x @ w + b
    p = np.exp(logits) / np.exp(logits).sum(1, keepdims=True)
    J = np.stack([np.hstack([eye, np.kron(row, eye)]) for row in x])  # [N, C, P]
    in_z = p[:, :, None] * eye - p[:, :, None] * p[:, None, :]  # [N, C, C]
    g = np.einsum("ncp,nc->np", J, p - eye[np.asarray(y)])
    return Oracle(
        g.mean(0), np.einsum("ncp,ncd,ndq->pq", J, in_z, J) / len(x), g.T @ g / len(x)
    )


def damped_solve(matrix, v, damping=LAMBDA):
    return np.linalg.solve(matrix + damping * np.eye(len(v)), v)


def blocks(matrix):
    """The diagonal blocks of the two leaves."""
    kept = np.zeros_like(matrix)
    for part in (BIAS, WEIGHT):
        kept[part, part] = matrix[part, part]
    return kept


# Name -> the matrix this curvature should be, of an Oracle. A curvature without a line
# here is held to the matrix that its own statistics describe.
EXPECTED = {
    "dense": lambda known: known.fisher,
    "kl_hessian": lambda known: known.fisher,
    "matrix_free": lambda known: known.fisher,
    "gram_blocks": lambda known: known.fisher,  # the model is one layer
    "block_diagonal": lambda known: blocks(known.fisher),
    "diagonal": lambda known: np.diag(np.diag(known.fisher)),
    "empirical": lambda known: known.empirical,
}
EVERY = pytest.mark.parametrize("name", list(ng.CURVATURES))


def curvature_of(name):
    return ng.CURVATURES[name](MODEL)


def expected_matrix(name, params, curvature_state):
    if name in EXPECTED:
        return EXPECTED[name](oracle(params))
    statistics = curvature_state.statistics
    return np.asarray(curvature_of(name).metric(statistics, params, X, Y).dense())


# The aliases, found by their signature so that a new one is tested from its first day.
ALIASES = {
    name: function
    for name, function in vars(optimizers).items()
    if inspect.isfunction(function)
    and not name.startswith("_")
    and function.__module__.startswith(optimizers.__name__)
    and list(inspect.signature(function).parameters)[:2] == ["learning_rate", "model"]
}
EVERY_ALIAS = pytest.mark.parametrize("alias", ALIASES)
TARGETS_TOO = {"empirical_fisher"}
# Alias -> the curvature it stands for; those with exact oracles.
STANDS_FOR = {
    "natural_gradient": "dense",
    "diagonal_fisher": "diagonal",
    "empirical_fisher": "empirical",
    "matrix_free": "matrix_free",
}


def equal(a, b, rtol, atol=0.0):
    """Two trees of one structure, leaf by leaf."""
    assert jax.tree.structure(a) == jax.tree.structure(b)
    for left, right in zip(jax.tree.leaves(a), jax.tree.leaves(b), strict=True):
        np.testing.assert_allclose(left, right, rtol=rtol, atol=atol)


def describe(tree):
    """Structure, shapes and dtypes."""
    leaves = [
        (leaf.shape, leaf.dtype, leaf.weak_type) for leaf in jax.tree.leaves(tree)
    ]
    return jax.tree.structure(tree), leaves


@jax.jit
def gradient_of(params, x=X, y=Y):
    return jax.grad(MODEL.loss)(params, x, y)


def find(state):
    """The one state of `scale_by_curvature` in an optax state."""
    is_state = lambda node: hasattr(node, "statistics")
    nodes = jax.tree.leaves(state, is_leaf=is_state)
    (found,) = [node for node in nodes if is_state(node)]
    return found


def jitted_update(tx, **fixed):
    """(grads, state, params, extra arguments) -> update, compiled."""
    return jax.jit(
        lambda grads, state, params, **extra: tx.update(
            grads, state, params, **fixed, **extra
        )
    )


# Every curvature: one compiled step and one batched scan, shared by all contracts

TRACES = collections.Counter()


class Programs(NamedTuple):
    """One step, compiled; 100 steps; 100 steps of several members, compiled."""

    step: Callable
    run: Callable
    batched: Callable


def transformation(name, damping=LAMBDA, rate=RATE, seed=0):
    return optax.chain(
        ng.scale_by_curvature(curvature_of(name), damping=damping, seed=seed),
        optax.scale_by_learning_rate(rate),
    )


@functools.cache
def programs(name):
    def step(params, state, damping, rate):
        tx = transformation(name, damping, rate)
        grads = gradient_of(params)
        updates, state = tx.update(grads, state, params, inputs=X, targets=Y)
        return optax.apply_updates(params, updates), state

    def counted(*arguments):
        TRACES[name] += 1
        return step(*arguments)

    def run(seed, damping, rate):
        state = transformation(name, seed=seed).init(start())
        one = lambda carry, _: (step(*carry, damping, rate), None)
        return jax.lax.scan(one, (start(), state), None, length=100)[0]

    return Programs(jax.jit(counted), run, jax.jit(jax.vmap(run)))
