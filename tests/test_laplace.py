"""Laplace posteriors against linear models, where they are exact, and matrices."""

from __future__ import annotations

import dataclasses

import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from bad_input import refuses
from scipy import integrate, special, stats

import natgrad as ng

DRAW = np.random.default_rng(3)
N, SIGMA = 30, 0.4
X = {"a": DRAW.normal(size=(N, 3)), "b": DRAW.normal(size=(N, 2))}
NEW = {"a": DRAW.normal(size=(4, 3)), "b": DRAW.normal(size=(4, 2))}
Y = DRAW.normal(size=N)
PRIOR = {"a": 0.7, "b": 3.0}
FLAT = np.concatenate([X["a"], X["b"]], axis=1)
DELTA = np.repeat([PRIOR["a"], PRIOR["b"]], [3, 2])
EXACT = ("Dense", "Gram", "MatrixFree")


def linear(scale):
    def apply(params, x):
        return x["a"] @ params["a"] + x["b"] @ params["b"]

    return ng.Model(apply, ng.families.NormalMean(scale), in_axes={"a": 0, "b": 0})


def regression(name, prior=PRIOR, scale=SIGMA):
    """The posterior at the maximum for a prior, and the loss there."""
    model = linear(scale)
    delta = jnp.concatenate([jnp.full(3, prior["a"]), jnp.full(2, prior["b"])])
    precision = FLAT.T @ FLAT / scale**2 + jnp.diag(delta)
    theta = jnp.linalg.solve(precision, FLAT.T @ Y / scale**2)
    params = {"a": theta[:3, None], "b": theta[3:, None]}
    curvature = getattr(ng.curvature, name)(model)
    metric = curvature.at(params, X, Y[:, None])
    posterior = ng.laplace.Posterior(model, params, metric, N, prior)
    return posterior, model.loss(params, X, Y[:, None])


def log_evidence(prior_a, prior_b, scale):
    """log N(y; 0, σ² + X Δ⁻¹ Xᵀ)."""
    delta = np.repeat([prior_a, prior_b], [3, 2])
    covariance = FLAT / delta @ FLAT.T + scale**2 * np.eye(N)
    return stats.multivariate_normal(np.zeros(N), covariance).logpdf(Y)


@pytest.mark.parametrize("name", EXACT)
def test_evidence_and_predictions_of_a_linear_model_are_exact(name):
    y = np.array([0.3, -1.0, 2.0, 0.1])

    @jax.jit
    def said(y, key):
        posterior, loss = regression(name)
        outputs = posterior.outputs(NEW)
        drawn = outputs.log_prob(y[:, None], key, 40_000)
        return posterior.log_evidence(loss), posterior.variance(), outputs, drawn

    found, own_variance, outputs, drawn = said(y, jax.random.key(0))
    expected = log_evidence(PRIOR["a"], PRIOR["b"], SIGMA)
    np.testing.assert_allclose(found, expected, rtol=1e-10)
    inverse = np.linalg.inv(FLAT.T @ FLAT / SIGMA**2 + np.diag(DELTA))
    rows = np.concatenate([NEW["a"], NEW["b"]], axis=1)
    variance = np.einsum("ni,ij,nj->n", rows, inverse, rows)
    np.testing.assert_allclose(outputs.covariance[:, 0, 0], variance, rtol=1e-8)
    np.testing.assert_allclose(
        np.concatenate(jax.tree.leaves(own_variance)).ravel(),
        np.diagonal(inverse),
        rtol=1e-8,
    )
    # The law of a new label is normal too.
    scale = np.sqrt(variance + SIGMA**2)
    mean = np.asarray(outputs.mean)[:, 0]
    exact = stats.norm(mean, scale).logpdf(y)
    np.testing.assert_allclose(drawn, exact, atol=0.05)


def test_the_evidence_has_the_derivatives_of_that_of_a_linear_model():
    """In the priors of both layers, with θ where they put it, and in the noise."""

    def evidence(logs):
        a, b, scale = jnp.exp(logs)
        posterior, loss = regression("Dense", {"a": a, "b": b}, scale)
        return posterior.log_evidence(loss)

    logs = np.log([PRIOR["a"], PRIOR["b"], SIGMA])
    found = jax.jit(jax.grad(evidence))(jnp.asarray(logs))
    steps = 1e-5 * np.eye(3)
    expected = [
        (log_evidence(*np.exp(logs + e)) - log_evidence(*np.exp(logs - e))) / 2e-5
        for e in steps
    ]
    np.testing.assert_allclose(found, expected, rtol=1e-6)


def test_a_fitted_prior_is_where_the_evidence_has_no_slope():
    posterior, loss = regression("Dense")
    fitted, evidence = jax.jit(
        lambda posterior: ng.laplace.fit_prior(
            posterior, loss, optax.adam(0.1), num_steps=400
        )
    )(posterior)
    gradient = jax.grad(
        lambda prior: dataclasses.replace(
            posterior, prior_precision=prior
        ).log_evidence(loss)
    )(fitted.prior_precision)
    assert max(map(abs, jax.tree.leaves(gradient))) < 1e-4
    assert evidence[-1] > evidence[0]
    # MacKay's fixed point: δ |θ|² is the number of directions that the data determine.
    inverse = np.linalg.inv(
        FLAT.T @ FLAT / SIGMA**2
        + np.diag(np.repeat(jax.tree.leaves(fitted.prior_precision), [3, 2]))
    )
    for name, rows in (("a", slice(0, 3)), ("b", slice(3, 5))):
        delta = fitted.prior_precision[name]
        known = (rows.stop - rows.start) - delta * np.trace(inverse[rows, rows])
        size = jnp.sum(posterior.params[name] ** 2)
        np.testing.assert_allclose(delta * size, known, rtol=1e-4)


def network():
    draw = np.random.default_rng(5)
    params = {
        "hidden": {"w": draw.normal(size=(3, 4)), "b": draw.normal(size=(1, 4))},
        "last": {"w": draw.normal(size=(4, 3)), "b": draw.normal(size=(1, 3))},
    }

    def apply(params, x):
        h = jnp.tanh(x @ params["hidden"]["w"] + params["hidden"]["b"])
        return h @ params["last"]["w"] + params["last"]["b"]

    model = ng.Model(apply, ng.families.Categorical())
    x, y = draw.normal(size=(25, 3)), draw.integers(0, 3, size=25)
    return model, jax.tree.map(jnp.asarray, params), jnp.asarray(x), jnp.asarray(y)


@pytest.mark.parametrize("name", ["KFAC", "EKFAC", "BlockDiagonal", "Diagonal"])
def test_an_approximate_posterior_is_that_of_its_matrix(name):
    """Samples, outputs and evidence from factors, and from F + Δ/N written out."""
    model, params, x, y = network()
    prior = {"hidden": 0.5, "last": 4.0}
    flat, unravel = jax.flatten_util.ravel_pytree(params)

    @jax.jit
    def said(params, keys):
        metric = getattr(ng.curvature, name)(model).at(params, x, y)
        posterior = ng.laplace.Posterior(model, params, metric, 25, prior)
        loss = model.loss(params, x, y)
        rows = jax.jacrev(lambda t: model.outputs(unravel(t), x[:2]))(flat)
        flatten = lambda key: jax.flatten_util.ravel_pytree(posterior.sample(key))[0]
        outputs, found = posterior.outputs(x[:2]), posterior.log_evidence(loss)
        draws = jax.vmap(flatten)(keys)
        return metric.dense(), rows, loss, outputs.covariance, found, draws

    keys = jax.random.split(jax.random.key(1), 4000)
    matrix, rows, loss, *given = jax.device_get(said(params, keys))
    given_covariance, found, draws = given
    hidden = sum(leaf.size for leaf in jax.tree.leaves(params["hidden"]))
    delta, flat = np.repeat([0.5, 4.0], [hidden, flat.size - hidden]), np.asarray(flat)
    covariance = np.linalg.inv(25 * matrix + np.diag(delta))
    expected = np.einsum("nci,ij,ndj->ncd", rows, covariance, rows)
    np.testing.assert_allclose(given_covariance, expected, rtol=1e-8, atol=1e-12)
    evidence = -25 * loss - flat @ (delta * flat) / 2
    evidence += (np.log(delta).sum() + np.linalg.slogdet(covariance)[1]) / 2
    np.testing.assert_allclose(found, evidence, rtol=1e-10)
    whitened = np.linalg.solve(np.linalg.cholesky(covariance), (draws - flat).T)
    assert abs(whitened.mean(axis=1) * np.sqrt(4000)).max() < 4.5
    errors = (whitened @ whitened.T / 4000 - np.eye(len(flat))) * np.sqrt(4000)
    assert abs(errors / np.sqrt(1 + np.eye(len(flat)))).max() < 5


def test_the_last_layer_alone():
    model, params, x, y = network()
    fixed = jax.tree.map(lambda _: optax.MaskedNode(), params["hidden"])
    part = {**params, "hidden": fixed}
    last = model.with_frozen(params)
    metric = ng.curvature.KFAC(last).at(part, x, y)
    outputs = ng.laplace.Posterior(last, part, metric, 25, 2.0).outputs(x[:3])
    h = jnp.tanh(x @ params["hidden"]["w"] + params["hidden"]["b"])
    z = model.outputs(params, x)
    features = np.concatenate([h, np.ones((25, 1))], axis=1)
    p = np.asarray(jax.nn.softmax(z))
    g = (np.eye(3) * p.mean(0)) - p.T @ p / 25
    f = np.kron(features.T @ features / 25, g)
    inverse = np.linalg.inv(25 * f + 2 * np.eye(15))
    rows = np.stack([np.kron(own[:, None], np.eye(3)) for own in features[:3]])
    expected = np.einsum("nic,ij,njd->ncd", rows, inverse, rows)
    np.testing.assert_allclose(outputs.covariance, expected, rtol=1e-9, atol=1e-12)
    np.testing.assert_allclose(outputs.mean, z[:3], rtol=1e-12)


def test_probabilities_of_one_logit_are_the_integral_over_it():
    mean, variance = np.array([[0.4], [-2.0]]), np.array([[[2.5]], [[0.3]]])
    outputs = ng.laplace.Outputs(
        ng.families.Bernoulli(), jnp.asarray(mean), jnp.asarray(variance)
    )

    def averaged(mean, variance):
        law = stats.norm(mean, np.sqrt(variance))
        return integrate.quad(lambda z: special.expit(z) * law.pdf(z), -20, 20)[0]

    expected = list(map(averaged, mean[:, 0], variance[:, 0, 0]))
    drawn = outputs.probabilities(jax.random.key(0), 40_000)
    np.testing.assert_allclose(drawn[:, 0], expected, atol=0.008)
    np.testing.assert_allclose(outputs.probit()[:, 0], expected, atol=0.02)
    one = outputs.log_prob(jnp.ones((2, 1)), jax.random.key(0), 40_000)
    np.testing.assert_allclose(one, np.log(drawn[:, 0]), rtol=1e-9)


def test_what_a_family_lacks_is_said():
    outputs = ng.laplace.Outputs(
        ng.families.StudentT(3.0), jnp.zeros((2, 1)), jnp.ones((2, 1, 1))
    )
    with pytest.raises(ValueError, match="needs a family with a mean"):
        outputs.probabilities(jax.random.key(0))
    with pytest.raises(ValueError, match=r"Categorical and families\.Bernoulli"):
        outputs.probit()


def test_posteriors_that_cannot_be_are_refused():
    posterior, loss = regression("Dense")
    uses = [
        lambda of: of.sample(jax.random.key(0)),
        lambda of: of.variance(),
        lambda of: of.log_evidence(loss),
        lambda of: of.outputs(NEW),
    ]
    wrong = {
        "examples must be positive, got 0": {"examples": 0},
        "prior_precision must be positive, got -1.0": {"prior_precision": -1.0},
        "prior_precision must be positive, got 0.0": {
            "prior_precision": {"a": 0.0, "b": 1.0}
        },
        "params must be shaped like": {"params": {"a": jnp.ones((3, 1))}},
    }
    for words, fields in wrong.items():
        for use in uses:
            with refuses(words):
                use(dataclasses.replace(posterior, **fields))
    with refuses("loss must be a scalar", "(2,)"):
        posterior.log_evidence(jnp.ones(2))
    with refuses("loss must be a scalar", "(2,)"):
        ng.laplace.fit_prior(posterior, jnp.ones(2))
    with refuses("num_steps must be an integer >= 0, got -1"):
        ng.laplace.fit_prior(posterior, loss, num_steps=-1)
