"""The learning rule where Bayes' rule is known, its domain and its bad input."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import optimize, special, stats

from natgrad import geometry
from natgrad.families import (
    Bernoulli,
    Beta,
    Dirichlet,
    Gamma,
    LogNormal,
    MultivariateNormal,
    MultivariateNormalDiag,
    Normal,
)
from natgrad.inference import (
    ClosedForm,
    LearningRule,
    Linear,
    LinearPredictors,
    Quadrature,
    elbo,
    fit,
    init,
    step,
)

FULL = MultivariateNormal()
RNG = np.random.default_rng(0)
INNER = ClosedForm(lambda mu, statistics: jnp.vdot(statistics, mu))


def one_step(rule, start, prior, data, rho=1.0, scale=1.0):
    take = lambda start, prior: step(rule, init(rule, start), prior, data, rho, scale)
    return jax.jit(take)(start, prior)


def beta_bernoulli():
    """A likelihood ⟨s, T(w)⟩: the posterior's parameters are sums."""
    arrays = [6.0, 0.1], [1.0, 0.5], [13.0, 4.0], [14.0, 4.5]
    return Beta(), INNER, *map(jnp.asarray, arrays)


def normal_mean():
    y, v = RNG.normal(1.0, 0.7, 15), 0.49
    precision = 1 / 4.0 + 15 / v  # prior N(-1, 4)
    first = -1 / 4.0 + y.sum() / v
    rule = Quadrature(lambda w, y: -jnp.sum((y - w) ** 2) / (2 * v))
    arrays = [3.0, -2.0], [-0.25, -0.125], y, [first, -precision / 2]
    return Normal(), rule, *map(jnp.asarray, arrays)


def linear_regression():
    x, y, v = RNG.normal(size=(20, 3)), RNG.normal(size=20), 0.3
    precision = np.diag([0.5, 1.0, 2.0]) + x.T @ x / v
    covariance = np.linalg.inv(precision)
    posterior = FULL.from_mean_and_covariance(covariance @ x.T @ y / v, covariance)
    prior = FULL.from_mean_and_covariance(
        jnp.zeros(3), jnp.diag(1 / jnp.array([0.5, 1.0, 2.0]))
    )
    start = FULL.from_mean_and_covariance(jnp.ones(3), 0.2 * jnp.eye(3) + 0.1)
    rule = LinearPredictors(lambda f, y: -((y - f) ** 2) / (2 * v))
    return FULL, rule, start, prior, Linear(jnp.asarray(x), jnp.asarray(y)), posterior


CONJUGATE = [beta_bernoulli, normal_mean, linear_regression]


@pytest.mark.parametrize("model", CONJUGATE, ids=lambda model: model.__name__)
def test_one_step_is_bayes_rule(model, tolerance):
    family, expectation, start, prior, data, posterior = model()
    state = one_step(LearningRule(family, expectation), start, prior, data)
    np.testing.assert_allclose(
        state.natural, posterior, rtol=tolerance("identity"), atol=1e-10
    )
    assert state.rate == 1
    assert state.kept == 1
    assert state.falls == 0


def test_the_elbo_of_the_posterior_is_the_evidence(tolerance):
    """log p(y) of Poisson counts under a Gamma prior: negative binomial, by scipy."""
    y, a, b = np.array([2, 0, 5, 3]), 2.0, 0.5
    lam = lambda w, y: jnp.sum(
        y * jnp.log(w) - w - special.gammaln(np.array([3, 1, 6, 4]))
    )
    rule = LearningRule(Gamma(), Quadrature(lam))
    prior = jnp.array([a - 1, -b])
    state = one_step(rule, jnp.array([4.0, -7.0]), prior, jnp.asarray(y))
    posterior = [a - 1 + y.sum(), -b - 4]
    np.testing.assert_allclose(state.natural, posterior, rtol=tolerance("oracle"))
    evidence = (
        a * np.log(b)
        - special.gammaln(a)
        + special.gammaln(a + y.sum())
        - (a + y.sum()) * np.log(b + 4)
        - special.gammaln(y + 1).sum()
    )
    np.testing.assert_allclose(state.elbo, evidence, rtol=tolerance("oracle"))


def test_a_bit_is_inferred_exactly():
    log_likelihoods = jnp.array([-3.0, 1.5])
    rule = LearningRule(
        Bernoulli(), Quadrature(lambda w, l: jnp.where(w > 0.5, l[1], l[0]))
    )
    state = one_step(rule, jnp.array(2.0), jnp.array(-0.7), log_likelihoods)
    np.testing.assert_allclose(state.natural, -0.7 + 4.5, rtol=1e-12)


def test_a_prior_of_another_form_is_one_more_expectation(tolerance):
    """Written as log p(w), a conjugate prior gives the conjugate posterior.

    For a log-normal q, whose log base measure −log w has to be taken out.
    """
    family = LogNormal()
    statistics, prior = jnp.array([3.0, -1.0]), jnp.array([0.5, -0.8])
    start = jnp.array([-2.0, -3.0])
    normalizer = lambda eta: -(eta[0] ** 2) / (4 * eta[1]) - jnp.log(-2 * eta[1]) / 2
    log_prior = ClosedForm(
        lambda mu, eta: (
            jnp.vdot(eta, mu) - mu[0] - normalizer(eta) - jnp.log(2 * jnp.pi) / 2
        )
    )
    general = one_step(LearningRule(family, INNER, log_prior), start, prior, statistics)
    np.testing.assert_allclose(
        general.natural, prior + statistics, rtol=tolerance("identity")
    )
    value = elbo(LearningRule(family, INNER), general.natural, prior, statistics)
    np.testing.assert_allclose(general.elbo, value, rtol=tolerance("identity"))


def test_a_gamma_law_against_scipy(tolerance):
    """No conjugacy: y ~ N(w, 0.5²) with w ~ Gamma(2, 1), optimum by scipy."""
    y, log_lik = 0.4, lambda w, y: -2 * (y - w) ** 2
    prior = jnp.array([1.0, -1.0])
    rule = LearningRule(Gamma(), Quadrature(log_lik))
    result = jax.jit(lambda prior: fit(rule, prior, prior, jnp.array(y), 40))(prior)

    x, weights = np.polynomial.legendre.leggauss(400)
    t = 12 * x - 8  # log w, from e^-20 to e^4
    target = log_lik(np.exp(t), y) + stats.gamma(2).logpdf(np.exp(t))

    def negative(logs):
        log_q = stats.gamma(np.exp(logs[0]), scale=np.exp(-logs[1])).logpdf(np.exp(t))
        return -12 * weights @ (np.exp(log_q + t) * (target - log_q))

    best = optimize.minimize(negative, [0.0, 0.0], tol=1e-12, method="Nelder-Mead")
    np.testing.assert_allclose(result.state.elbo, -best.fun, rtol=tolerance("solve"))
    shape, rate = result.state.natural[0] + 1, -result.state.natural[1]
    np.testing.assert_allclose([shape, rate], np.exp(best.x), rtol=1e-4)
    assert result.state.falls == 0


BAD = {  # (family, η, statistics whose step points out of the domain)
    "normal": (Normal(), [0.3, -0.5], [1.0, 5.0]),
    "gamma": (Gamma(), [1.0, -2.0], [-7.0, 9.0]),
    "beta": (Beta(), [2.0, 0.1], [-3.0, -9.0]),
    "dirichlet": (Dirichlet(), [2.0, 0.1, 1.0], [-3.0, 4.0, -9.0]),
    "diagonal": (
        MultivariateNormalDiag(),
        [1.0, 2.0, -0.5, -3.0],
        [0.0, 1.0, 9.0, 2.0],
    ),
    "full": (FULL, [0.0, 1.0, -1.0, 0.3, -0.7], [1.0, -1.0, 0.2, 8.0, 3.0]),
}


@pytest.mark.parametrize(
    ("name", "dtype"),
    [
        ("normal", "float64"),
        ("diagonal", "float32"),
        ("full", "float32"),
        ("gamma", "float32"),
        ("beta", "float32"),
        ("dirichlet", "float32"),
    ],
)
def test_no_step_leaves_the_domain(name, dtype):
    family, eta, statistics = BAD[name]
    eta, statistics = jnp.asarray(eta, dtype), jnp.asarray(statistics, dtype)
    rule = LearningRule(family, INNER, halvings=0)

    chart = geometry.charts(family)["natural"]

    @jax.jit
    @jax.vmap
    def take(state, rho):
        state = step(rule, state, eta, statistics, rho)
        return state, chart.margins(state.natural), family.mean(state.natural)

    rhos = np.asarray(10.0 ** np.arange(-3, 7), dtype)
    each = lambda leaf: np.broadcast_to(leaf, (rhos.size, *np.shape(leaf)))
    state = jax.tree.map(each, init(rule, eta))
    for _ in range(2):
        state, margins, mean = jax.device_get(take(state, rhos))
        assert state.natural.dtype == dtype
        assert state.elbo.dtype == dtype
        assert np.all(np.isfinite(state.natural))
        assert np.all(state.margin > 0)
        assert np.all(np.isfinite(state.elbo))
        assert np.all(margins > 0)
        assert np.all(np.isfinite(mean))
        assert state.kept[0] == 1
        assert 0 < state.kept[-1] < 1e-3


def test_bad_input_is_refused():
    rule = LearningRule(FULL, INNER)
    eta = jnp.array([0.0, 0.0, -0.5, 0.0, -0.5])
    with pytest.raises(ValueError, match="floating natural parameters"):
        init(rule, jnp.arange(5))
    with pytest.raises(ValueError, match="prior: shape"):
        step(rule, init(rule, eta), eta[:2], eta)
    with pytest.raises(ValueError, match="prior: a tuple"):
        step(rule, init(rule, eta), (1.0, 2.0), eta)
    with pytest.raises(ValueError, match="rule for its expectation"):
        LearningRule(FULL, lambda w, data: 0.0)
    with pytest.raises(ValueError, match="ExponentialFamily"):
        LearningRule("normal", INNER)
    with pytest.raises(ValueError, match="halvings"):
        LearningRule(FULL, INNER, halvings=-1)
    with pytest.raises(ValueError, match=r"inference\.Linear"):
        elbo(LearningRule(FULL, LinearPredictors(jnp.add)), eta, eta, (eta, eta))
    linear = Linear(jnp.ones((3, 1)), jnp.ones(3))
    with pytest.raises(ValueError, match="x·w is known"):
        elbo(LearningRule(Gamma(), LinearPredictors(jnp.add)), eta, eta, linear)
