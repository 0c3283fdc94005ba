"""Models whose outputs depend on more than one example, and F by brute force."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

import natgrad as ng
from natgrad.layers import Dependence

N, I, H, C = 5, 3, 4, 3
KEY = jax.random.key(7)


def normal(seed, *shape):
    return np.random.default_rng(seed).normal(size=shape)


PARAMS = {"w": normal(0, I, H), "b": normal(1, H), "v": normal(2, H, C)}
X = normal(3, N, I)
Y = np.random.default_rng(4).integers(0, C, N)
NEIGHBOURS = np.random.default_rng(5).uniform(size=(N, N))


def hidden(p, x):
    return jnp.tanh(x @ p["w"] + p["b"][None])


def dropped(key, h, keep=0.6):
    return jnp.where(jax.random.bernoulli(key, keep, h.shape), h / keep, 0)


def dropout(p, inputs):
    return dropped(inputs["key"], hidden(p, inputs["x"])) @ p["v"]


def dropout_by_example(p, inputs):
    one = lambda x, key: dropped(key, hidden(p, x[None])[0]) @ p["v"]
    return jax.vmap(one)(inputs["x"], inputs["key"])


def rare_dropout(p, inputs):
    """Of two examples it drops nothing in nearly every draw."""
    return dropped(inputs["key"], hidden(p, inputs["x"]), 0.999) @ p["v"]


def batch_norm(p, x):
    h = x @ p["w"]
    h = (h - h.mean(0, keepdims=True)) / jnp.sqrt(h.var(0, keepdims=True) + 1e-3)
    return jnp.tanh(h + p["b"][None]) @ p["v"]


def contrastive(p, x):
    h = hidden(p, x)
    return h @ h.T


def graph(p, x):
    a = jnp.asarray(NEIGHBOURS)
    return a @ hidden(p, a @ x) @ p["v"]


def places(p, x):
    return hidden(p, x) @ p["v"] * (1 + jnp.arange(len(x), dtype=x.dtype))[:, None]


def means(p, x):
    """A whole-batch model: each row reads a mean over the batch."""
    h = hidden(p, x)
    return (h + h.mean(0, keepdims=True)) @ p["v"]


class Case(NamedTuple):
    """A model, its batch, and what its outputs depend on."""

    apply: Any
    inputs: Any
    in_axes: Any
    expected: Dependence

    def model(self, family=None, **options):
        return ng.Model(
            self.apply,
            family or ng.families.Categorical(),
            example_inputs=self.inputs,
            in_axes=self.in_axes,
            **options,
        )


SHARED = {"x": 0, "key": None}
KEYS = jax.random.split(KEY, N)
PLACE, OTHERS, NOTHING = Dependence.PLACE, Dependence.OTHERS, Dependence.NOTHING
CASES = {
    "dropout": Case(dropout, {"x": X, "key": KEY}, SHARED, PLACE),
    "dropout by example": Case(dropout_by_example, {"x": X, "key": KEYS}, 0, NOTHING),
    "places": Case(places, X, 0, PLACE),
    "batch norm": Case(batch_norm, X, 0, OTHERS),
    "contrastive": Case(contrastive, X, 0, OTHERS),
    "graph": Case(graph, X, 0, OTHERS),
    "means": Case(means, X, 0, OTHERS),
}


def brute_force(case, empirical=None):
    """F [P, P] of a softmax law by the Jacobian of all outputs; of labels if given."""
    flat, unravel = jax.flatten_util.ravel_pytree(PARAMS)
    outputs = lambda vector: case.apply(unravel(vector), case.inputs)
    z, jacobian = jax.jit(lambda v: (outputs(v), jax.jacrev(outputs)(v)))(flat)
    z, jacobian = np.asarray(z), np.asarray(jacobian)
    p = np.exp(z - z.max(1, keepdims=True))
    p /= p.sum(1, keepdims=True)
    eye = np.eye(z.shape[1])
    if empirical is None:
        in_z = p[:, :, None] * eye - p[:, :, None] * p[:, None, :]
    else:
        s = eye[np.asarray(empirical)] - p
        in_z = s[:, :, None] * s[:, None, :]
    return np.einsum("ncp,ncd,ndq->pq", jacobian, in_z, jacobian) / len(z)
