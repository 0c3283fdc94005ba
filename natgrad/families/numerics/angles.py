"""Random angles of von Mises' law about 0, by rejection.

Source: Best & Fisher, Efficient simulation of the von Mises distribution (1979).
"""

from __future__ import annotations

import jax
import jax.numpy as jnp

from natgrad.typing import Array, Key


def centred_angles(key: Key, kappa: Array) -> Array:
    """θ with density ∝ e^{κ cos θ}, by rejection from a wrapped Cauchy law.

    With x = sin²(θ/2) the ratio of the densities is e^−2κx ((1 − ρ)² + 4ρx). It is
    exact for every ρ in (0, 1); Best and Fisher's accepts at least 2 of 3 proposals.
    """
    tau = 1 + jnp.sqrt(1 + 4 * kappa**2)
    best = (tau - jnp.sqrt(2 * tau)) / jnp.maximum(2 * kappa, 0.01)
    rho = jnp.clip(jnp.where(kappa < 0.01, kappa / 2, best), 1e-3, 0.9999)
    square = (1 - rho) ** 2
    log_ratio = lambda x: jnp.log(square + 4 * rho * x) - 2 * kappa * x
    top = jnp.clip((2 * rho / jnp.maximum(kappa, 1e-3) - square) / (4 * rho), 0, 1)
    bound = log_ratio(top)

    def unfinished(state):
        return ~jnp.all(state[2])

    def draw(state):
        key, theta, done = state
        key, key1, key2 = jax.random.split(key, 3)
        tangent = (
            (1 - rho) / (1 + rho) * jax.random.cauchy(key1, kappa.shape, kappa.dtype)
        )
        x = tangent**2 / (1 + tangent**2)
        u = jnp.log(jax.random.uniform(key2, kappa.shape, kappa.dtype))
        new = ~done & (u < log_ratio(x) - bound)
        return key, jnp.where(new, 2 * jnp.arctan(tangent), theta), done | new

    start = (key, jnp.zeros_like(kappa), ~jnp.isfinite(kappa))
    _, theta, _ = jax.lax.while_loop(unfinished, draw, start)
    return jnp.where(jnp.isfinite(kappa), theta, jnp.nan)
