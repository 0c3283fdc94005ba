"""Two dense layers, and their factors made by hand."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import zoo

from natgrad import layers

N, I, H, O = 4, 3, 5, 2


X = zoo.normal(9, N, I)


Z = np.random.default_rng(3).standard_normal((N, O))


FACTORS = {"expand": layers.Expand(), "reduce": layers.Reduce()}


hom = lambda x: jnp.concatenate([x, jnp.ones((*x.shape[:-1], 1))], axis=-1)


outer = lambda x: jnp.einsum("...i,...j->ij", x, x)


def close(one, two, rtol=1e-10):
    scale = max(float(np.max(np.abs(two))), 1e-30)
    assert np.shape(one) == np.shape(two)
    assert np.max(np.abs(np.asarray(one) - np.asarray(two))) / scale < rtol


def statistics(apply, params, inputs, cotangent, wanted=None, **kwargs):
    """(blocks by name, statistics) for one cotangent."""
    captured = layers.capture(apply, params, inputs, **kwargs)
    pull = lambda p, x: captured.pull(wanted or FACTORS, p, x)[1](cotangent)[1]
    return {b.name: b for b in captured.blocks}, jax.jit(pull)(params, inputs)


def by_hand(p, x, z):
    """Inputs and output gradients of the two layers of the reference network."""
    h = jnp.tanh(x @ p["w1"] + p["b1"][None])
    return (x, (z @ p["w2"].T) * (1 - h**2)), (h, z)


@functools.cache
def reference():
    p = zoo.mlp_params()
    return [(outer(hom(x)), outer(g)) for x, g in by_hand(p, X, Z)]


@functools.cache
def plain_capture():
    return layers.capture(zoo.mlp, zoo.mlp_params(), X)


def factors(p, x, z):
    return plain_capture().pull({"f": layers.Expand()}, p, x)[1](z)[1]


def deep(p, x):
    for w in p:
        x = jnp.tanh(x @ w)
    return x
