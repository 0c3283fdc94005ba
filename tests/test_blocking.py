"""Errors of means by blocking: independent draws, a chain of known correlation."""

from __future__ import annotations

import jax
import numpy as np
import pytest

from natgrad.variational import mean_and_error


def autoregressive(draw, steps, chains, rho):
    """x_t = ρ x_{t−1} + √(1 − ρ²) ξ_t, of variance 1 from the start."""
    noise = draw.normal(size=(steps, chains))
    x = [noise[0]]
    for each in noise[1:]:
        x.append(rho * x[-1] + np.sqrt(1 - rho**2) * each)
    return np.array(x)


@pytest.mark.parametrize(("chains", "rho"), [(1, 0.9), (8, 0.9), (8, 0.0), (4, -0.5)])
def test_errors_of_a_chain_of_known_correlation(chains, rho):
    """The variance of a mean of T: (1/T²) Σ_{s,t} ρ^|s−t|, over the chains."""
    steps = 4096
    lags = np.arange(1, steps)
    variance = (1 + 2 * np.sum((1 - lags / steps) * rho**lags)) / steps / chains
    estimate = jax.jit(mean_and_error)
    draw = np.random.default_rng(0)
    errors, misses = [], []
    for _ in range(20):
        x = autoregressive(draw, steps, chains, rho)
        mean, error = estimate(x)
        np.testing.assert_allclose(mean, x.mean(), atol=1e-12)
        errors.append(float(error))
        misses.append(float(mean) / float(error))
    # The largest of several uncertain ones: 20 % above where nothing is correlated.
    expected = np.sqrt(max(variance, 1 / steps / chains))
    assert 0.95 * expected < np.mean(errors) < 1.3 * expected
    if rho >= 0:
        assert 0.5 < np.std(misses) < 1.4


def test_independent_draws_of_one_block_length():
    """64 values have one level: the textbook's error."""
    x = np.random.default_rng(1).normal(size=64)
    mean, error = mean_and_error(x)
    np.testing.assert_allclose(mean, x.mean(), rtol=1e-12)
    np.testing.assert_allclose(error, x.std(ddof=1) / 8, rtol=1e-12)


def test_complex_values_and_remainders():
    draw = np.random.default_rng(2)
    x = draw.normal(size=(3, 40)) + 1j * draw.normal(size=(3, 40))
    mean, error = mean_and_error(x)
    np.testing.assert_allclose(mean, x.mean(), rtol=1e-12)
    spread = np.sqrt(np.sum(abs(x - x.mean()) ** 2) / 119)
    np.testing.assert_allclose(error, spread / np.sqrt(120), rtol=1e-12)


@pytest.mark.parametrize("shape", [(10,), (3, 20), (4, 4, 8)])
def test_too_few_values_are_refused(shape):
    with pytest.raises(ValueError, match="64 values or more"):
        mean_and_error(np.zeros(shape))
