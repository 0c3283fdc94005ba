"""Labels that are means of labels: grey pixels, class probabilities, fractional counts.

Oracles: closed forms by SciPy, optax's losses, and the empirical Fisher by hand.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from bad_input import CATEGORICAL, CLASSES, MODEL, PARAMS, N, X, Y, flat, refuses
from scipy.special import gammaln

import natgrad as ng
import natgrad.families as nf

RNG = np.random.default_rng(3)
SOFT = np.asarray(RNG.dirichlet(np.ones(CLASSES), N))
GREY = RNG.uniform(size=(N, 1))
BITS = ng.Model(lambda params, x: x @ params, nf.Bernoulli())


def log_softmax(z):
    return z - np.log(np.sum(np.exp(z), axis=-1, keepdims=True))


# family, η, T = y, log p(y | η), mean(η)
LAWS = [
    (nf.Bernoulli(), 0.7, 0.3, lambda z, y: y * z - np.log1p(np.exp(z))),
    (nf.Bernoulli(), -40.0, 0.5, lambda z, y: y * z - np.log1p(np.exp(z))),
    (nf.Poisson(), 0.4, 2.5, lambda z, y: y * z - np.exp(z) - gammaln(y + 1)),
    (
        nf.Binomial(5),
        -0.3,
        1.25,
        lambda z, y: (
            y * z
            - 5 * np.log1p(np.exp(z))
            + (gammaln(6) - gammaln(y + 1) - gammaln(6 - y))
        ),
    ),
    (nf.Geometric(), -0.6, 0.5, lambda z, y: y * z + np.log(-np.expm1(z))),
    (
        nf.NegativeBinomial(3.0),
        -0.6,
        1.5,
        lambda z, y: (
            y * z
            + 3 * np.log(-np.expm1(z))
            + (gammaln(y + 3) - gammaln(3) - gammaln(y + 1))
        ),
    ),
    (nf.Exponential(), -2.0, 0.0, lambda z, y: y * z + np.log(-z)),
]


@pytest.mark.parametrize(
    ("family", "z", "y", "expected"), LAWS, ids=[type(law[0]).__name__ for law in LAWS]
)
def test_the_log_probability_of_a_soft_label_has_its_closed_form(
    family, z, y, expected
):
    z, y = jnp.asarray(z), jnp.asarray(y)
    value, score = jax.value_and_grad(family.log_prob)(z, y)
    np.testing.assert_allclose(value, expected(float(z), float(y)), rtol=1e-12)
    step = 1e-5
    slope = (expected(z + step, y) - expected(z - step, y)) / (2 * step)
    np.testing.assert_allclose(score, slope, rtol=1e-8, atol=1e-9)
    np.testing.assert_allclose(family.score(z, y), score, rtol=1e-12)
    assert bool(family.in_support(z, y))


def test_class_probabilities_give_the_cross_entropy_and_its_score():
    z, q = jnp.asarray(RNG.normal(size=CLASSES)), jnp.asarray(SOFT[0])
    value, score = jax.value_and_grad(CATEGORICAL.log_prob)(z, q)
    np.testing.assert_allclose(value, SOFT[0] @ log_softmax(np.asarray(z)), rtol=1e-12)
    expected = SOFT[0] - np.exp(log_softmax(np.asarray(z)))
    np.testing.assert_allclose(score, expected, rtol=1e-12)
    np.testing.assert_allclose(CATEGORICAL.score(z, q), expected, rtol=1e-12)


def test_a_class_of_probability_zero_may_have_a_logit_of_minus_infinity():
    z, q = jnp.array([0.3, -jnp.inf, 0.1]), jnp.array([0.4, 0.0, 0.6])
    value, score = jax.value_and_grad(CATEGORICAL.log_prob)(z, q)
    two = log_softmax(np.array([0.3, 0.1]))
    np.testing.assert_allclose(value, 0.4 * two[0] + 0.6 * two[1], rtol=1e-12)
    np.testing.assert_allclose(score, [0.4 - np.exp(two[0]), 0, 0.6 - np.exp(two[1])])
    bit = jax.value_and_grad(nf.Bernoulli().log_prob)(-jnp.inf, jnp.array(0))
    np.testing.assert_array_equal(bit, [0.0, 0.0])


def test_one_hot_vectors_of_any_dtype_are_classes():
    z, log_prob = MODEL.apply(PARAMS, X), jax.jit(CATEGORICAL.log_prob)
    for dtype in (int, bool, np.float32, float, jnp.bfloat16):
        hot = jnp.asarray(np.eye(CLASSES)[Y], dtype)
        np.testing.assert_allclose(log_prob(z, hot), log_prob(z, Y), rtol=1e-12)
        assert np.all(CATEGORICAL.in_support(z, hot))


def test_the_loss_of_soft_labels_is_that_of_optax():
    given, gradient = jax.jit(jax.value_and_grad(MODEL.loss))(PARAMS, X, SOFT)
    np.testing.assert_allclose(MODEL.loss(PARAMS, X, SOFT), given, rtol=1e-12)
    of = lambda p: optax.softmax_cross_entropy(MODEL.apply(p, X), SOFT).mean()
    np.testing.assert_allclose(given, of(PARAMS), rtol=1e-12)
    np.testing.assert_allclose(flat(gradient), flat(jax.grad(of)(PARAMS)), 1e-10, 1e-12)
    w = PARAMS["w"][:, :1]
    theirs = optax.sigmoid_binary_cross_entropy(X @ w, GREY).mean()
    np.testing.assert_allclose(jax.jit(BITS.loss)(w, X, GREY), theirs, rtol=1e-12)


def test_probabilities_of_sequences_follow_the_factors_and_their_weights():
    x, q = RNG.normal(size=(2, 3, 2)), RNG.dirichlet(np.ones(CLASSES), (2, 3))
    mask = np.array([[1.0, 1, 0], [1, 0, 0]])
    q[1, 1] = np.nan  # of weight 0
    apply = lambda p, inputs: inputs["x"] @ p["w"]
    model = ng.Model(apply, CATEGORICAL, weights=lambda inputs: inputs["mask"])
    given = jax.jit(model.loss)(PARAMS, {"x": x, "mask": mask}, q)
    each = np.sum(q * log_softmax(x @ np.asarray(PARAMS["w"])), axis=-1)
    np.testing.assert_allclose(given, -np.sum(each[mask > 0]) / 2, rtol=1e-12)


def test_the_exact_fisher_is_the_models_and_the_empirical_that_of_soft_scores():
    kinds = ng.curvature.Exact(), ng.curvature.Empirical()
    exact, empirical = (ng.curvature.Dense(MODEL, kind) for kind in kinds)
    np.testing.assert_array_equal(
        jax.jit(exact.estimate)(PARAMS, X, SOFT), jax.jit(exact.estimate)(PARAMS, X, Y)
    )
    scores = SOFT - np.exp(log_softmax(np.asarray(MODEL.apply(PARAMS, X))))
    rows = [np.r_[s, np.outer(x, s).ravel()] for x, s in zip(X, scores, strict=True)]
    expected = np.transpose(rows) @ np.array(rows) / N  # b comes before w
    given = jax.jit(lambda p, y: empirical.at(p, X, y).dense())(PARAMS, SOFT)
    np.testing.assert_allclose(given, expected, rtol=1e-10, atol=1e-12)


@pytest.mark.parametrize(
    ("family", "labels"),
    [
        (CATEGORICAL, [[0.5, 0.5, 0.1], [1.2, -0.2, 0.0], [50.0, 30.0, 20.0]]),
        (nf.Bernoulli(), [-0.1, 1.1, np.nan]),
        (nf.Binomial(4), [-0.5, 4.5]),
        (nf.Poisson(), [-0.5, np.inf]),
    ],
    ids=lambda each: type(each).__name__,
)
def test_what_no_mean_of_labels_can_be_is_refused_and_nan_under_jit(family, labels):
    z = jnp.zeros(CLASSES if family is CATEGORICAL else ())
    model = ng.Model(lambda params, x: params[None], family)
    for label in labels:
        y = jnp.array([label])
        with refuses("impossible under", "targets[0] = ", f"{np.asarray(y)[0]}"):
            model.loss(z, None, y)
        assert np.isnan(jax.jit(model.loss)(z, None, y)), label
