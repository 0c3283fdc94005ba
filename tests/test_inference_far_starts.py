"""Starts from which the likelihood is all but infinite: a fit gets on, or says why not.

A log-linear model of counts under a wide prior has E[exp(x·w)] beyond what a step of
Newton's kind can bear, and soon beyond the floating-point range.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from natgrad.families import Bernoulli, MultivariateNormal, Poisson
from natgrad.inference import LearningRule, Linear, LinearPredictors, fit

FULL = MultivariateNormal()


def steep(predictor, y):
    return Bernoulli().log_prob(1000 * predictor, jnp.minimum(y, 1))


@functools.cache
def problem(log_likelihood, dtype):
    """fit(prior variance, variance of the start) of 200 counts, five features."""
    generator = np.random.default_rng(0)
    x = generator.normal(size=(200, 5))
    y = generator.poisson(np.exp(x @ np.linspace(-0.5, 0.5, 5)))
    data = Linear(jnp.asarray(x, dtype), jnp.asarray(y, dtype))
    rule = LearningRule(FULL, LinearPredictors(log_likelihood, 65))

    @jax.jit
    def law(variance):
        eye = jnp.eye(5, dtype=dtype)
        return FULL.from_mean_and_covariance(jnp.zeros(5, dtype), variance * eye)

    def run(variance, start):
        return fit(rule, law(start), law(variance), data, 60)

    return run, jax.jit(run), law


@pytest.mark.parametrize(
    ("log_likelihood", "dtype", "variance"),
    [
        (Poisson().log_prob, "float32", 3.0),
        (Poisson().log_prob, "float64", 10.0),
        (steep, "float32", 10.0),
    ],
)
def test_a_fit_from_a_wide_prior_ends_where_one_from_a_narrow_start_does(
    log_likelihood, dtype, variance
):
    _, run, _ = problem(log_likelihood, dtype)
    wide, narrow = run(variance, variance), run(variance, 0.01)
    assert np.all(np.isfinite(wide.elbo))
    assert wide.state.falls == 0
    assert np.all(wide.rate > 0)
    rtol = 0.1 if log_likelihood is steep else 1e-5  # the steep one is on its way
    np.testing.assert_allclose(wide.elbo[-1], narrow.elbo[-1], rtol=rtol)
    assert wide.elbo[-1] > wide.elbo[0] / 10


def test_a_start_without_a_finite_elbo_is_an_error_that_names_the_cure():
    run, jitted, law = problem(Poisson().log_prob, "float32")
    with pytest.raises(ValueError, match=r"ELBO.*-inf.*narrower law"):
        run(100.0, 100.0)
    stuck = jitted(100.0, 100.0)
    assert np.all(stuck.rate == 0)
    np.testing.assert_array_equal(stuck.state.natural, law(100.0))
    assert np.all(jitted(100.0, np.nan).rate == 0)  # and it ends
