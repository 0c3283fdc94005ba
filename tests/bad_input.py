"""What the tests of bad input share: a problem and how a refusal is recognised."""

from __future__ import annotations

import re

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import natgrad as ng

N, CLASSES, LAMBDA = 4, 3, 0.5
RNG = np.random.default_rng(0)
X, Y = RNG.normal(size=(N, 2)), np.array([0, 2, 1, 1])
CATEGORICAL = ng.families.Categorical()
MODEL = ng.Model(
    lambda params, x: x @ params["w"] + params["b"][None],
    CATEGORICAL,
    example_inputs=jnp.zeros((1, 2)),
)
PARAMS = {"w": jnp.array(RNG.normal(size=(2, CLASSES))), "b": jnp.zeros(CLASSES)}
GRADS = {"w": jnp.full((2, CLASSES), 0.1), "b": jnp.array([0.2, -0.3, 0.1])}
DENSE = ng.curvature.Dense(MODEL)
TX = ng.scale_by_curvature(DENSE, damping=LAMBDA)


def refuses(*words, error=ValueError):
    """A context in which an error is raised whose message has all these words."""
    ahead = "".join(f"(?=.*{re.escape(word)})" for word in words)
    return pytest.raises(error, match=f"(?s){ahead}")


def refused(function, *words):
    """The same refusal when called directly and while being traced for jit."""
    for call in (function, lambda: jax.eval_shape(function)):
        with refuses(*words):
            call()


def flat(tree):
    return np.concatenate([np.asarray(leaf).ravel() for leaf in jax.tree.leaves(tree)])


def updated(tx=TX, grads=GRADS, params=PARAMS, **batch):
    """One update from a fresh state."""
    return tx.update(grads, tx.init(PARAMS), params, **batch)
