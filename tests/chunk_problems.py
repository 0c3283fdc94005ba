"""Models whose examples are taken in chunks: rows of every kind."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

import natgrad as ng
from natgrad.curvature import (
    Centred,
    Empirical,
    Sampled,
)

KEY = jax.random.PRNGKey(3)
RNG = np.random.default_rng(0)
N = 8


def convolve(params, x):
    """A kernel whose rows are written out, and a weight whose factors are kept."""
    signal = jax.lax.conv_general_dilated(
        x, params["k"], (1,), "SAME", dimension_numbers=("NWC", "WIO", "NWC")
    )
    return jnp.tanh(signal).sum(1) @ params["w"]


def scalar(params, x):
    return jnp.tanh(x @ params["w"]) @ params["v"]


def normalised(params, x):
    """By the batch's own mean: examples need each other."""
    hidden = jnp.tanh(x @ params["w"])
    return (hidden - hidden.mean(0, keepdims=True)) @ params["v"][:, None]


def arrays(**shapes):
    return {name: jnp.asarray(RNG.normal(size=s)) for name, s in shapes.items()}


CONV = ng.Model(convolve, ng.families.Categorical())
WAVE = ng.Model(
    lambda params, x: jax.lax.complex(scalar(params, x), jnp.sin(scalar(params, x))),
    ng.families.Unnormalized(),
    weights=lambda x: 1.0 + x[:, 0] ** 2,
)
LOG_DENSITY = ng.Model(
    scalar, ng.families.Unnormalized(), weights=lambda x: 1.0 + x[:, 0] ** 2
)
CASES = {
    "convolution": (
        (CONV, Sampled(1)),
        arrays(k=(3, 2, 4), w=(4, 3)),
        jnp.asarray(RNG.normal(size=(N, 6, 2))),
    ),
    "empirical": (
        (CONV, Empirical()),
        arrays(k=(3, 2, 4), w=(4, 3)),
        jnp.asarray(RNG.normal(size=(N, 6, 2))),
    ),
    "centred": (
        (LOG_DENSITY, Centred()),
        arrays(w=(4, 5), v=(5,)),
        jnp.asarray(RNG.normal(size=(N, 4))),
    ),
    "wave function": (
        (WAVE, Centred()),
        arrays(w=(4, 5), v=(5,)),
        jnp.asarray(RNG.normal(size=(N, 4))),
    ),
    "examples that need each other": (
        (ng.Model(normalised, ng.families.NormalMean()),),
        arrays(w=(4, 5), v=(5,)),
        jnp.asarray(RNG.normal(size=(N, 4))),
    ),
}
Y = jnp.arange(N) % 3
