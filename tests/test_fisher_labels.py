"""Exact, sampled and empirical labels do what they say."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from problems import CASES, dense_of, relative_error

import natgrad as ng
from natgrad import families
from natgrad.curvature import (
    Dense,
    Empirical,
    Exact,
    Sampled,
)

KEY = jax.random.PRNGKey(5)


def test_sampled_labels_are_unbiased_for_every_entry():
    model, params, x, _ = CASES["categorical"].problem()
    exact = np.asarray(dense_of(Dense(model), params, x))
    keys = jax.random.split(KEY, 400)
    draw = lambda key: Dense(model, Sampled(2)).estimate(params, x, key=key)
    draws = np.asarray(jax.jit(jax.vmap(draw))(keys))
    error = draws.std(0, ddof=1) / np.sqrt(len(keys))
    z = (draws.mean(0) - exact)[error > 0] / error[error > 0]
    assert np.abs(z).max() < 5
    assert 0.5 < z.std() < 1.6


def test_sampled_labels_converge_like_the_square_root_of_their_number():
    model, params, x, _ = CASES["normal_mean_log_scale"].problem()
    exact = dense_of(Dense(model), params, x)

    def mean_square_error(n):
        draw = lambda key: Dense(model, Sampled(n)).estimate(params, x, key=key)
        draws = np.asarray(jax.jit(jax.vmap(draw))(jax.random.split(KEY, 200)))
        return float(((draws - np.asarray(exact)[None]) ** 2).sum((1, 2)).mean())

    slope = np.log(mean_square_error(64) / mean_square_error(4)) / np.log(64 / 4)
    assert abs(slope + 1) < 0.25  # of the square: the error falls as n^(-1/2)


def test_a_key_gives_the_same_labels_whatever_the_chunks():
    model, params, x, _ = CASES["categorical"].problem()
    chunked = CASES["categorical"].model(chunk_size=2)
    estimate = jax.jit(
        lambda key: Dense(model, Sampled(2)).estimate(params, x, key=key)
    )
    one, different = estimate(KEY), estimate(jax.random.PRNGKey(6))
    other = jax.jit(Dense(chunked, Sampled(2)).estimate)(params, x, key=KEY)
    assert relative_error(one, other) < 1e-12
    assert relative_error(one, different) > 1e-3


@pytest.mark.parametrize("name", ["bernoulli", "poisson", "normal_mean_log_scale"])
def test_the_derivative_of_a_sampled_fisher_is_that_of_the_exact_one(name):
    """With labels held fixed it would miss the Amari-Chentsov term (0 in natural
    coordinates)."""
    family = CASES[name].family
    shape = (1, CASES[name].outputs)
    z = 0.3 + 0.4 * jnp.arange(1.0, 1 + shape[1]).reshape(shape)
    model = ng.Model(lambda params, _: params, family)
    entry = lambda labels: (
        lambda z, key: Dense(model, labels).estimate(z, None, key=key)[0, 0]
    )
    exact = jax.jit(jax.grad(entry(Exact())))(z, None)
    draws = jax.jit(jax.vmap(jax.grad(entry(Sampled(1))), (None, 0)))(
        z, jax.random.split(KEY, 40_000)
    )
    draws = np.asarray(draws)
    error = draws.std(0, ddof=1) / np.sqrt(len(draws))
    assert jnp.abs(exact).max() > 0.05
    assert (jnp.abs(draws.mean(0) - exact) < 5 * error).all()
    assert (error < jnp.abs(exact).max() / 5).all()


def test_empirical_is_exact_for_logistic_regression_at_zero():
    """There r² = p(1 − p) = 1/4 whatever the labels: a coincidence, to the bit."""
    x = jax.random.normal(KEY, (20, 4))
    y = jax.random.bernoulli(KEY, 0.3, (20, 1)).astype(int)
    model = ng.Model(lambda w, x: x @ w, families.Bernoulli())
    w = jnp.zeros((4, 1))
    exact = dense_of(Dense(model), w, x)
    empirical = dense_of(Dense(model, Empirical()), w, x, y)
    assert relative_error(empirical, exact) < 1e-15
    elsewhere = w + 0.5
    exact = dense_of(Dense(model), elsewhere, x)
    assert (
        relative_error(dense_of(Dense(model, Empirical()), elsewhere, x, y), exact)
        > 0.1
    )


def test_empirical_is_four_times_too_large_when_residuals_are_twice_too_large():
    """Model variance σ², residuals of exactly ±2σ: E = (1/N) Σ r²/σ⁴ xxᵀ = 4 F."""
    sigma = 0.6
    x = jax.random.normal(KEY, (12, 3))
    w = jnp.array([[1.0], [-2.0], [0.5]])
    signs = jnp.where(jnp.arange(12) % 3 == 0, 1.0, -1.0)[:, None]
    y = x @ w + 2 * sigma * signs
    model = ng.Model(lambda w, x: x @ w, families.NormalMean(sigma))
    exact = dense_of(Dense(model), w, x)
    empirical = dense_of(Dense(model, Empirical()), w, x, y)
    assert relative_error(exact, x.T @ x / 12 / sigma**2) < 1e-12
    assert relative_error(empirical, 4 * exact) < 1e-12
