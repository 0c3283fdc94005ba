"""The derivative of a sampled Fisher is that of the Fisher, on average."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest

import natgrad as ng
from natgrad.curvature import Dense, Gram

KEY = jax.random.PRNGKey(2)


class FixedLabels(ng.curvature.Sampled):
    """Labels drawn once and held fixed, as a sampled Fisher often is differentiated."""

    def columns(self, model, z, example):
        scores, weights = super().columns(model, z, example)
        return ng.curvature.ScoreColumns(scores, jax.lax.stop_gradient(weights))


NATURAL = {"bernoulli": ng.families.Bernoulli(), "poisson": ng.families.Poisson()}


@pytest.mark.parametrize("form", [Gram, Dense])
@pytest.mark.parametrize("family", NATURAL)
def test_hypergradients_of_a_sampled_fisher_are_unbiased(family, form):
    """One natural parameter θ: d/dθ of F is the Amari-Chentsov tensor T = A'''(θ).

    In natural coordinates scores are y − μ(θ), whose squares with labels held fixed
    have a derivative of mean 0. Through a damped step g/(F + λ), z-scores over keys.
    """
    model = ng.Model(lambda p, x: p["t"] * jnp.ones_like(x), NATURAL[family])
    params, x = {"t": jnp.array(0.7)}, jnp.ones((400, 1))

    def fisher(labels, key):
        of = lambda t: form(model, labels).at({"t": t}, x, None, key).dense()[0, 0]
        return jax.grad(of)(params["t"])

    keys = jax.random.split(KEY, 200)
    each = lambda labels: jax.jit(jax.vmap(lambda k: fisher(labels, k)))(keys)
    mean = lambda eta: NATURAL[family].mean(eta[None])[0]
    tensor = jax.grad(jax.grad(mean))(params["t"])
    right, fixed = each(ng.curvature.Sampled(1)), each(FixedLabels(1))
    error = lambda d: jnp.std(d) / jnp.sqrt(len(keys))
    assert abs(jnp.mean(right) - tensor) < 4 * error(right)
    assert abs(jnp.mean(fixed)) < 4 * error(fixed) + 1e-12
    assert abs(tensor) > 10 * error(right)
