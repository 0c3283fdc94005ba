"""The rules for expectations against each other, scipy and themselves in the mean."""

from __future__ import annotations

import functools
import itertools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from scipy import integrate, stats
from scipy.special import expit

from natgrad.families import (
    Bernoulli,
    Beta,
    Binomial,
    Dirichlet,
    Exponential,
    Gamma,
    InverseGamma,
    LogNormal,
    MultivariateNormal,
    MultivariateNormalDiag,
    Normal,
    Poisson,
)
from natgrad.inference import (
    BonnetPrice,
    ClosedForm,
    ClosedPredictors,
    LearningRule,
    Linear,
    LinearPredictors,
    Quadrature,
    Sampling,
    ScoreFunction,
    elbo,
    fit,
    fit_batches,
    init,
    step,
    value_and_dual_gradient,
)

FULL, DIAGONAL = MultivariateNormal(), MultivariateNormalDiag()
REPEATS = 4000
ETA = FULL.from_mean_and_covariance(
    jnp.array([0.5, -1.0]), jnp.array([[0.6, 0.2], [0.2, 0.3]])
)
ETA_DIAGONAL = jnp.array([0.7, -2.0, -0.8, -1.5])
X = jnp.array([[1.0, 0.5], [-1.0, 2.0], [0.3, 0.0], [2.0, -1.0], [0.0, 1.5]])
Y = jnp.array([1.0, -1.0, 1.0, 1.0, -1.0])
logistic = lambda f, y: jax.nn.log_sigmoid(y * f)
of_weights = lambda w, data: jnp.sum(logistic(data.x @ w, data.y))


def z_scores(draws, exact):
    """Of the mean of draws [R, ...] by their own standard error."""
    error = jnp.std(draws, axis=0, ddof=1) / np.sqrt(draws.shape[0])
    return np.asarray((jnp.mean(draws, axis=0) - exact) / error)


def repeated(rule, family, eta, data):
    keys = jax.random.split(jax.random.key(1), REPEATS)
    one = lambda key: rule.value_and_gradient(family, eta, data, key)
    return jax.jit(jax.vmap(one))(keys)


@pytest.mark.parametrize("family", [FULL, DIAGONAL], ids=["full", "diagonal"])
def test_linear_predictors_against_scipy(family, tolerance):
    eta = ETA if family is FULL else ETA_DIAGONAL
    if family is FULL:
        m, s = FULL.mean_and_covariance(eta)
    else:
        s = np.diag(-0.5 / np.asarray(eta[2:]))
        m = s @ np.asarray(eta[:2])
    further = np.array([0.0, 0.3, 0.0, 1.0, 0.1])
    value = LinearPredictors(logistic).value(
        family, eta, Linear(X, Y, jnp.asarray(further)), None
    )
    expected = 0.0
    for x, y, v in zip(np.asarray(X), np.asarray(Y), further, strict=True):
        law = stats.norm(x @ m, np.sqrt(x @ s @ x + v))
        integrand = lambda f, y=y, law=law: law.pdf(f) * -np.logaddexp(0, -y * f)
        expected += integrate.quad(integrand, -30, 30, epsabs=1e-12)[0]
    np.testing.assert_allclose(value, expected, rtol=tolerance("oracle"))


def test_closed_predictors_are_the_quadrature_of_the_same_likelihood(tolerance):
    """E[y f − e^f] = y m − e^{m + v/2}, value and gradient."""
    data = Linear(X, Y, jnp.full(5, 0.1))
    closed = ClosedPredictors(lambda m, v, y: y * m - jnp.exp(m + v / 2))
    nodes = LinearPredictors(lambda f, y: y * f - jnp.exp(f))
    both = jax.jit(
        lambda: [r.value_and_gradient(FULL, ETA, data, None) for r in (closed, nodes)]
    )
    (value, gradient), (value2, gradient2) = both()
    np.testing.assert_allclose(value, value2, rtol=tolerance("oracle"))
    np.testing.assert_allclose(gradient, gradient2, rtol=tolerance("oracle"))


@functools.cache
def along_predictors(family):
    eta, rule = (ETA if family is FULL else ETA_DIAGONAL), LinearPredictors(logistic)
    exact = lambda: rule.value_and_gradient(family, eta, Linear(X, Y), None)
    return jax.jit(exact)()


@pytest.mark.parametrize("family", [FULL, DIAGONAL], ids=["full", "diagonal"])
@pytest.mark.parametrize("rule", [Sampling, ScoreFunction, BonnetPrice])
def test_draws_agree_with_quadrature(family, rule):
    eta, data = (ETA if family is FULL else ETA_DIAGONAL), Linear(X, Y)
    value, gradient = along_predictors(family)
    values, gradients = repeated(rule(of_weights, 4), family, eta, data)
    assert abs(z_scores(values, value)) < 4.5
    assert np.max(np.abs(z_scores(gradients, gradient))) < 4.5


def bent(w, _):
    """Not a polynomial in any family's statistics."""
    return jnp.tanh(w)


SCIPY = {  # family, η, the law in scipy
    "normal": (Normal(), [0.3, -0.5], stats.norm(0.3, 1)),
    "log-normal": (LogNormal(), [0.3, -2.0], stats.lognorm(0.5, scale=np.exp(0.075))),
    "exponential": (Exponential(), -1.5, stats.expon(scale=1 / 1.5)),
    "gamma": (Gamma(), [1.5, -2.0], stats.gamma(2.5, scale=0.5)),
    "inverse gamma": (InverseGamma(), [-6.0, -2.0], stats.invgamma(5.0, scale=2.0)),
    "beta": (Beta(), [0.5, 1.0], stats.beta(1.5, 2.0)),
    "bernoulli": (Bernoulli(), 0.4, stats.bernoulli(expit(0.4))),
    "binomial": (Binomial(7), 0.4, stats.binom(7, expit(0.4))),
}


@pytest.mark.parametrize("name", SCIPY)
def test_quadrature_against_scipy(name):
    family, eta, law = SCIPY[name]
    rule = Quadrature(bent)
    value = jax.jit(lambda: rule.value(family, jnp.asarray(eta), None, None))()
    if isinstance(law.dist, stats.rv_discrete):
        expected = law.expect(np.tanh)
    else:
        integrand = lambda w: np.tanh(w) * law.pdf(w)
        pieces = [*law.ppf([0, 1e-7, 0.1, 0.5, 0.9, 1 - 1e-7]), law.ppf(1)]
        expected = sum(
            integrate.quad(integrand, a, b, epsabs=1e-12, epsrel=1e-10, limit=200)[0]
            for a, b in itertools.pairwise(pieces)
        )
    np.testing.assert_allclose(value, expected, rtol=1e-7)


@pytest.mark.parametrize("name", ["normal", "gamma"])
def test_draws_of_other_laws_agree_with_their_nodes(name):
    family, eta, _ = SCIPY[name]
    eta = jnp.asarray(eta)
    rule = Quadrature(bent)
    exact = jax.jit(lambda: rule.value_and_gradient(family, eta, None, None))
    value, gradient = exact()
    values, gradients = repeated(Sampling(bent, 4), family, eta, None)
    assert abs(z_scores(values, value)) < 4.5
    assert np.max(np.abs(z_scores(gradients, gradient))) < 4.5


def test_draws_of_a_dirichlet_law_have_the_right_derivatives():
    """E[y_i] = a_i/a₀, differentiated in closed form through a function of η."""
    family, eta, c = (
        Dirichlet(),
        jnp.array([1.0, 0.3, 2.0]),
        jnp.array([1.0, -2.0, 0.5]),
    )
    exact = lambda eta: jnp.vdot(c, (eta + 1) / jnp.sum(eta + 1))
    value, gradient = value_and_dual_gradient(family, exact, eta)
    values, gradients = repeated(Sampling(lambda w, _: c @ w, 4), family, eta, None)
    assert abs(z_scores(values, value)) < 4.5
    assert np.max(np.abs(z_scores(gradients, gradient))) < 4.5


def test_draws_of_a_discrete_law_by_the_score():
    """E[(y − 1)²] of a Poisson law is (λ − 1)² + λ: its derivative in λ is 2λ − 1."""
    rate = 1.7
    rule = ScoreFunction(lambda w, _: (w - 1.0) ** 2, 8)
    values, gradients = repeated(rule, Poisson(), jnp.log(rate), None)
    assert abs(z_scores(values, (rate - 1) ** 2 + rate)) < 4.5
    assert abs(z_scores(gradients, 2 * rate - 1)) < 4.5


@pytest.mark.parametrize("family", [FULL, DIAGONAL], ids=["full", "diagonal"])
def test_gradients_in_the_mean_are_those_of_a_solve(family, tolerance):
    """Through moments, and by F_η⁻¹ with F_η from autodiff of A twice."""
    eta = ETA if family is FULL else ETA_DIAGONAL
    function = lambda eta: jnp.sum(jnp.sin(jnp.arange(eta.size) + eta) * eta)
    _, gradient = jax.jit(lambda: value_and_dual_gradient(family, function, eta))()
    fisher = jax.jit(jax.hessian(family.log_normalizer))(eta)
    solved = np.linalg.solve(fisher, jax.grad(function)(eta))
    np.testing.assert_allclose(gradient, solved, rtol=tolerance("solve"))


def test_the_elbo_by_its_definition(tolerance):
    """E_q[log p(D, w) − log q(w)] on a dense grid of w."""
    prior = FULL.from_mean_and_covariance(jnp.zeros(2), 2 * jnp.eye(2))
    rule = LearningRule(FULL, LinearPredictors(logistic))
    value = elbo(rule, ETA, prior, Linear(X, Y))
    m, s = map(np.asarray, FULL.mean_and_covariance(ETA))
    q, p = stats.multivariate_normal(m, s), stats.multivariate_normal([0, 0], 2)
    steps = np.linspace(-9, 9, 401)
    grid = np.stack(np.meshgrid(steps, steps, indexing="ij"), -1).reshape(-1, 2)
    w = m + grid @ np.linalg.cholesky(s).T
    margins = np.asarray(Y) * (w @ np.asarray(X).T)
    log_joint = -np.logaddexp(0, -margins).sum(1) + p.logpdf(w)
    weights = stats.norm.pdf(grid).prod(1)
    expected = weights @ (log_joint - q.logpdf(w)) / weights.sum()
    np.testing.assert_allclose(value, expected, rtol=tolerance("oracle"))


def test_batches_are_unbiased(tolerance):
    """The mean over all batches of two of five examples, value and gradient."""
    rule = LinearPredictors(logistic)

    def bound(rows):
        batch = Linear(X[rows], Y[rows])
        value, gradient = rule.value_and_gradient(FULL, ETA, batch, None)
        return jnp.append(gradient, value) * (5 / rows.size)

    rows = jnp.asarray(list(itertools.combinations(range(5), 2)))
    batches, whole = jax.jit(lambda: (jax.vmap(bound)(rows), bound(jnp.arange(5))))()
    np.testing.assert_allclose(batches.mean(0), whole, rtol=tolerance("identity"))


def test_steps_on_batches_have_the_posterior_for_mean():
    """Conjugate, from anywhere, ρ = 1: the mean of η over batches is the posterior."""
    y = jnp.array([0.3, 2.0, -1.0, 4.0, 1.2])
    rule = LearningRule(
        Normal(), ClosedForm(lambda mu, y: jnp.sum(y * mu[0] - mu[1] / 2)), halvings=0
    )
    prior = jnp.array([0.5, -0.25])
    run = lambda key: fit_batches(rule, prior, prior, y, 1, 1.0, key, 2).state.natural
    etas = jax.jit(jax.vmap(run))(jax.random.split(jax.random.key(0), REPEATS))
    assert abs(z_scores(etas[:, 0], 0.5 + jnp.sum(y))) < 4.5
    np.testing.assert_allclose(etas[:, 1], -0.25 - 5 / 2, rtol=1e-12)


def test_bad_input_is_refused():
    eta = jnp.array(0.3)
    with pytest.raises(ValueError, match="have no derivative"):
        Sampling(jnp.add).value(Bernoulli(), eta, 1.0, jax.random.key(0))
    with pytest.raises(ValueError, match="key is None"):
        Sampling(jnp.add).value(Normal(), jnp.array([0.0, -0.5]), 1.0, None)
    with pytest.raises(ValueError, match="no nodes for Poisson"):
        Quadrature(jnp.add).value(Poisson(), eta, 1.0, None)
    with pytest.raises(ValueError, match="one factor"):
        Quadrature(jnp.add).value(Bernoulli(), eta[None], 1.0, None)
    with pytest.raises(ValueError, match="at least 2"):
        ScoreFunction(jnp.add, 1).value(Bernoulli(), eta, 1.0, jax.random.key(0))
    one, rule = jnp.array([1.0, -1.0]), BonnetPrice(lambda w, _: w**2)
    with pytest.raises(ValueError, match="BonnetPrice is for"):
        rule.value_and_gradient(Gamma(), one, None, jax.random.key(0))
    with pytest.raises(ValueError, match="points"):
        LinearPredictors(logistic, 2)
    rule, prior = LearningRule(Normal(), Quadrature(jnp.add)), jnp.array([0.0, -0.5])
    for data, size in (((jnp.ones(3), jnp.ones(2)), 1), (jnp.ones(3), 4)):
        with pytest.raises(ValueError, match="fit_batches"):
            fit_batches(rule, prior, prior, data, 1, 1.0, jax.random.key(0), size)


def test_predictors_of_other_shapes_are_refused():
    x, y = jnp.ones((4, 2)), jnp.ones(4)
    eta = jnp.array([0.0, 0.0, -0.5, 0.0, -0.5])
    closed = ClosedPredictors(lambda m, v, y: y * m - jnp.exp(m + v / 2))
    wrong = {
        r"x has shape \(4, 3\); expected \[N, 2\]": Linear(jnp.ones((4, 3)), y),
        r"x has shape \(4,\)": Linear(y, y),
        r"y has shape \(3,\).*the 4 rows": Linear(x, {"of": y[:3]}),
        r"variance has shape \(1,\)": Linear(x, y, y[:1]),
        r"has shape \(1,\); expected \(\)": Linear(x, y[:, None]),
    }
    for words, data in wrong.items():
        for expectation in LinearPredictors(logistic, 9), closed:
            rule = LearningRule(MultivariateNormal(), expectation)
            with pytest.raises(ValueError, match=words):
                elbo(rule, eta, eta, data)


def test_steps_that_cannot_be_are_refused():
    rule, prior = LearningRule(Normal(), Quadrature(jnp.add)), jnp.array([0.0, -0.5])
    state = init(rule, prior)
    for number in 0.0, -1.0, jnp.nan, jnp.ones(2):
        with pytest.raises(ValueError, match="rho must be"):
            step(rule, state, prior, 1.0, number)
        with pytest.raises(ValueError, match="scale must be"):
            step(rule, state, prior, 1.0, 1.0, number)
    for rho in -1.0, jnp.array([1.0, 0.0]), jnp.ones(3):
        with pytest.raises(ValueError, match=r"rho must be positive, one or \[steps\]"):
            fit(rule, prior, prior, 1.0, 2, rho)
    for steps in -1, 2.0:
        with pytest.raises(ValueError, match="steps must be an integer >= 0"):
            fit(rule, prior, prior, 1.0, steps)
