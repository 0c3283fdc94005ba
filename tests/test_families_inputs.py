"""Constants and shapes that are refused."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np
import pytest

import natgrad.families as nf


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
