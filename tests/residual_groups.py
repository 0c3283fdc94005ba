"""Three groups of residuals, and their Jacobian by hand."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

import natgrad as ng

RNG = np.random.default_rng(0)
PARAMS = {"a": jnp.array([0.7, -0.4]), "k": jnp.array(1.3)}
X = {"decay": RNG.normal(size=5), "pair": RNG.normal(size=(3, 2)), "one": np.ones(1)}
WEIGHTS = {"decay": 2.0, "pair": np.array([0.5, 3.0, 1.0])}
RESIDUALS = {
    "decay": lambda p, x: p["a"][0] * jnp.exp(-p["k"] * x) - 1,
    "pair": lambda p, x: jnp.stack([p["a"][1] * x[:, 0], p["k"] ** 2 * x[:, 1]], 1),
    "one": lambda p, x: p["a"][0] * p["a"][1] * x,
}
MODEL = ng.least_squares(RESIDUALS, WEIGHTS)


def by_hand():
    """group -> (r [M_g], dr/d(a, k) [M_g, 3], w_g / N_g [M_g])."""
    (a, b), k = np.asarray(PARAMS["a"]), float(PARAMS["k"])
    x, (u, v), zero = X["decay"], X["pair"].T, np.zeros(3)
    decay = np.exp(-k * x)
    pair = np.array([[zero, u, zero], [zero, zero, 2 * k * v]])  # [which, params, N]
    return {
        "decay": (
            a * decay - 1,
            np.stack([decay, 0 * x, -x * a * decay], 1),
            np.full(5, 2 / 5),
        ),
        "pair": (
            np.stack([b * u, k**2 * v], 1).ravel(),
            pair.transpose(2, 0, 1).reshape(6, 3),
            np.repeat(WEIGHTS["pair"] / 3, 2),
        ),
        "one": (np.array([a * b]), np.array([[b, a, 0]]), np.ones(1)),
    }


def joined():
    return [np.concatenate(parts) for parts in zip(*by_hand().values(), strict=True)]


def flat(params):
    return np.concatenate([np.ravel(leaf) for leaf in jax.tree.leaves(params)])
