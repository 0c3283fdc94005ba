"""A problem whose leaves have a λ each, or each layer one."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
from problems import CASES

KEY = jax.random.PRNGKey(3)
CASE = CASES["categorical"]
# The λ of in/b, in/w, out/b, out/w and of a leaf that no layer reads: each its own, or
# one for each layer.
BY_LEAF, BY_LAYER = np.array([0.03, 0.1, 0.02, 0.3, 0.05]), np.array([0.03, 0.2, 0.05])
LAYERS, LAYER_OF = [[0, 1], [2, 3], [4]], [0, 0, 1, 1, 2]


def problem(examples=7):
    """(model, params, x, y), with parameters that nothing reads."""
    model, params, x, y = CASE.problem(examples=examples)
    return model, params | {"unused": jnp.ones(2)}, x, y


def tree_of(values):
    """A tree of the λs of leaves, or a prefix of it with those of layers."""
    if len(values) == 3:
        return dict(zip(["in", "out", "unused"], values, strict=True))
    b, w, c, v, unused = values
    return {"in": {"b": b, "w": w}, "out": {"b": c, "w": v}, "unused": unused}


def entries_of(values, params):
    """Λ's diagonal, from the λs of leaves."""
    return np.repeat(values, [leaf.size for leaf in jax.tree.leaves(params)])
