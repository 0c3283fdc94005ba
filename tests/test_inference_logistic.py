"""Bayesian logistic regression on breast_cancer, against scipy on mean and factor."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import optimize
from scipy.special import expit
from scipy.stats import norm
from sklearn.datasets import load_breast_cancer

from natgrad.families import MultivariateNormal
from natgrad.inference import LearningRule, Linear, LinearPredictors, fit

FULL = MultivariateNormal()
STEPS = 49
VARIANCE = 10.0  # of the prior


@functools.cache
def data():
    x, y = load_breast_cancer(return_X_y=True)
    return (x - x.mean(0)) / x.std(0), 2.0 * y - 1


def log_likelihood(f, y):
    return jax.nn.log_sigmoid(y * f)


def prior_of(variance, d):
    return FULL.from_mean_and_covariance(jnp.zeros(d), variance * jnp.eye(d))


@functools.cache
def fitted(halvings, rho):
    x, y = data()
    rule = LearningRule(FULL, LinearPredictors(log_likelihood), halvings=halvings)
    prior = prior_of(VARIANCE, x.shape[1])
    linear = Linear(jnp.asarray(x), jnp.asarray(y))
    return jax.jit(lambda prior: fit(rule, prior, prior, linear, STEPS, rho))(prior)


@functools.cache
def optimum():
    """The greatest ELBO, its mean and covariance: L-BFGS in (m, L), by numpy alone."""
    x, y = data()
    d = x.shape[1]
    rows, columns = np.tril_indices(d)
    z, weights = np.polynomial.legendre.leggauss(150)
    z, weights = 9 * z, 9 * weights * norm.pdf(9 * z)

    def unpack(parameters):
        factor = np.zeros((d, d))
        factor[rows, columns] = parameters[d:]
        return parameters[:d], factor

    def negative(parameters):
        m, factor = unpack(parameters)
        projected = x @ factor
        sd = np.linalg.norm(projected, axis=1)
        margins = y[:, None] * ((x @ m)[:, None] + sd[:, None] * z)
        value = -np.logaddexp(0, -margins) @ weights
        slope = y * (expit(-margins) @ weights)
        in_sd = y * ((expit(-margins) * z) @ weights)
        kl = (
            ((factor**2).sum() + m @ m) / VARIANCE
            - d
            + d * np.log(VARIANCE)
            - 2 * np.log(np.abs(np.diag(factor))).sum()
        ) / 2
        g_m = x.T @ slope - m / VARIANCE
        g_factor = x.T @ ((in_sd / sd)[:, None] * projected) - factor / VARIANCE
        g_factor[np.diag_indices(d)] += 1 / np.diag(factor)
        gradient = np.concatenate([g_m, g_factor[rows, columns]])
        return kl - value.sum(), -gradient

    start = np.concatenate([np.zeros(d), np.eye(d)[rows, columns]])
    best = optimize.minimize(
        negative,
        start,
        jac=True,
        method="L-BFGS-B",
        options={"maxiter": 20000, "maxfun": 20000, "ftol": 1e-15, "gtol": 1e-7},
    )
    m, factor = unpack(best.x)
    return -best.fun, m, factor @ factor.T


def test_the_optimum_is_reached_from_the_prior_in_less_than_50_steps():
    best, m, covariance = optimum()
    result = fitted(20, 1.0)
    assert abs(result.state.elbo - best) < 1e-6
    assert result.state.falls == 0
    assert result.state.cycle == 0
    assert np.all(np.diff(result.elbo) > -1e-10)
    ours, our_covariance = FULL.mean_and_covariance(result.state.natural)
    np.testing.assert_allclose(ours, m, atol=1e-3)
    np.testing.assert_allclose(our_covariance, covariance, atol=1e-3)


def test_undamped_steps_end_in_a_2_cycle_and_the_state_says_so():
    best, *_ = optimum()
    result = fitted(0, 1.0)
    state = result.state
    assert state.cycle > 3
    assert state.falls > 10
    assert state.change > 0.1
    assert state.returned < 1e-2 * state.change
    np.testing.assert_allclose(result.elbo[-1], result.elbo[-3], atol=1e-2)
    assert best - np.max(result.elbo[-2:]) > 0.1


def test_a_fixed_half_step_converges_too():
    result = fitted(0, 0.5)
    assert abs(result.state.elbo - optimum()[0]) < 1e-6
    assert result.state.cycle == 0


# Derivatives: four features and 100 examples ----------------------------------------


def small_fit(steps):
    """log prior precision -> (ELBO, means, log determinant of the covariance)."""
    x, y = data()
    linear = Linear(jnp.asarray(x[:100, :4]), jnp.asarray(y[:100]))
    rule = LearningRule(FULL, LinearPredictors(log_likelihood, 65))

    def outcome(log_precision):
        prior = prior_of(jnp.exp(-log_precision), 4)
        state = fit(rule, prior, prior, linear, steps).state
        m, covariance = FULL.mean_and_covariance(state.natural)
        spread = jnp.linalg.slogdet(covariance)[1]
        return jnp.concatenate([jnp.stack([state.elbo, spread]), m])

    return outcome


# Three steps have not converged; twenty-five have. The first are halved.
@pytest.mark.parametrize(
    ("steps", "mode"),
    [(3, jax.jacfwd), (25, jax.jacrev)],
)
def test_derivatives_through_the_fit_are_differences(steps, mode, tolerance):
    outcome = small_fit(steps)
    at, h = jnp.array(-1.0), 1e-4
    both = mode(lambda x: (outcome(x),) * 2, has_aux=True)  # one program
    derivatives, (two_below, below, _, above, two_above) = jax.jit(jax.vmap(both))(
        at + h * jnp.arange(-2, 3)
    )
    differences = (8 * (above - below) - (two_above - two_below)) / (12 * h)
    np.testing.assert_allclose(
        derivatives[2], differences, rtol=tolerance("differences")
    )
