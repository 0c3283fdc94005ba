"""Labels in and out of the support, constants and shapes that are refused."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from laws import LAWS
from test_families import ordinary_points
from test_families_oracles import CASES, NAMES

import natgrad.families as nf

SUPPORTS = {
    "bernoulli": ([0, 1, 0.5], [-1, 2, np.nan]),
    "categorical": ([0, 3], [-1, 4, 0.5, np.nan]),
    "normal_mean": ([0, -1.5], [np.inf, np.nan]),
    "normal_mean_log_scale": ([0, -1.5], [np.inf, np.nan]),
    "poisson": ([0, 7, 0.5], [-1, np.inf, np.nan]),
    "exponential": ([0, 2], [-1e-9, -1, np.inf, np.nan]),
    "normal": ([0, -1.5], [np.inf, np.nan]),
    "gamma": ([1e-9, 2], [0, -1, np.inf, np.nan]),
    "student_t": ([0, -1.5], [np.inf, np.nan]),
}


@pytest.mark.parametrize("name", NAMES)
def test_the_support_holds_the_labels_with_a_log_probability_and_no_others(name):
    z = ordinary_points(name)[0]
    for labels, expected in zip(SUPPORTS[name], (True, False), strict=True):
        for y in labels:
            for label in (jnp.asarray(y), jnp.asarray(float(y))):
                assert bool(CASES[name].family.in_support(z, label)) is expected, y


PROPORTIONS = ([[0.2, 0.3, 0.5], [1e-30, 0.5, 0.5]], [[0.2, 0.3, 0.6], [0, 0.5, 0.5]])
POSITIVE = ([1e-9, 2], [0, -1, np.inf, np.nan])
REAL = ([0, -1.5], [np.inf, np.nan])
COUNTS = ([0, 7, 0.5], [-1, np.inf, np.nan])
VECTORS = ([[0, -1.5]], [[0, np.inf], [np.nan, 1]])
SUPPORTS_OF_LAWS = {
    "binomial": ([0, 7, 0.5], [-1, 8, np.nan]),
    "geometric": COUNTS,
    "negative_binomial": COUNTS,
    "weibull": POSITIVE,
    "inverse_gamma": POSITIVE,
    "log_normal": POSITIVE,
    "inverse_gaussian": POSITIVE,
    "beta": ([1e-9, 0.7], [0, 1, -0.2, np.nan]),
    "dirichlet": PROPORTIONS,
    "multivariate_normal": VECTORS,
    "multivariate_normal_diag": VECTORS,
    "von_mises": ([0, -9.5], [np.inf, np.nan]),
    "laplace": REAL,
    "logistic": REAL,
    "cauchy": REAL,
}


@pytest.mark.parametrize("name", LAWS)
def test_the_supports_of_the_second_table(name):
    z = jnp.asarray(LAWS[name].points[0])
    in_support = jax.jit(jax.vmap(LAWS[name].family.in_support, (None, 0)))
    for labels, expected in zip(SUPPORTS_OF_LAWS[name], (True, False), strict=True):
        assert np.all(in_support(z, jnp.array(labels, float)) == expected), labels


@pytest.mark.parametrize(
    ("call", "message"),
    [
        (lambda: nf.NormalMean(0.0), "scale is 0.0; expected one positive finite"),
        (lambda: nf.NormalMean(np.nan), "scale is nan"),
        (lambda: nf.NormalMean("1"), "scale is '1'"),
        (lambda: nf.NormalMean(np.ones(2)), "NormalMeanLogScale"),
        (lambda: nf.StudentT(-1), "nu is -1"),
        (lambda: nf.Binomial(2.5), "n is 2.5; expected one positive integer"),
        (lambda: nf.NegativeBinomial(0), "r is 0"),
        (lambda: nf.Weibull(-1.0), "k is -1.0"),
        (lambda: nf.Beta().mean(jnp.zeros(3)), r"\(a − 1, b − 1\)"),
        (lambda: nf.Dirichlet().mean(jnp.zeros(1)), r"use Beta\(\)"),
        (lambda: nf.VonMises().mean(jnp.zeros(3)), "cos m, sin m"),
        (lambda: nf.MultivariateNormal().mean(jnp.zeros(4)), r"d\(d \+ 3\)/2"),
        (lambda: nf.MultivariateNormalDiag().mean(jnp.zeros(3)), "even length 2d"),
        (lambda: nf.Categorical(1), "num_classes is 1"),
        (lambda: nf.Categorical().sufficient_statistics(0), r"num_classes=C"),
        (lambda: nf.Categorical().kl(jnp.zeros(1), jnp.zeros(1)), "use Bernoulli"),
        (lambda: nf.Categorical().log_prob(jnp.zeros(()), 0), "use Bernoulli"),
        (lambda: nf.Categorical(3).mean(jnp.zeros(4)), "num_classes=3"),
        (lambda: nf.Gamma().mean(jnp.zeros(3)), r"\(shape − 1, −rate\)"),
        (lambda: nf.StudentT(3).fisher(jnp.zeros(())), r"\(location, log scale\)"),
    ],
)
def test_an_error_says_what_was_given_and_what_to_do(call, message):
    with pytest.raises(ValueError, match=message):
        call()


def test_families_compare_and_hash_by_value():
    assert nf.NormalMean(2.0) == nf.NormalMean(2.0) != nf.NormalMean(3.0)
    assert len({nf.Categorical(), nf.Categorical(3), nf.Categorical()}) == 2


def test_labels_out_of_range_do_not_crash():
    z = jnp.zeros(3)
    for y in (-1, 3):
        assert nf.Categorical().log_prob(z, jnp.array(y)).shape == ()
    assert nf.Poisson().log_prob(z[0], jnp.array(-1)).shape == ()


def test_every_family_has_a_line_in_the_table_of_supports():
    assert SUPPORTS.keys() == CASES.keys()
