"""Families of distrax, TFP and numpyro distributions."""

from __future__ import annotations

import warnings

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from test_families_custom import Z2, Z, run

import natgrad.families as nf

with warnings.catch_warnings():
    warnings.simplefilter("ignore")
    import distrax
    import numpyro.distributions as numpyro
    from tensorflow_probability.substrates import jax as tfp


NORMALS = {
    "distrax": lambda z: distrax.Normal(z[0], jnp.exp(z[1])),
    "tfp": lambda z: tfp.distributions.Normal(z[0], jnp.exp(z[1])),
    "numpyro": lambda z: numpyro.Normal(z[0], jnp.exp(z[1])),
}


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("library", NORMALS)
def test_a_distribution_with_a_divergence_is_as_good_as_our_own(
    library, dtype, tolerance
):
    family, ours = nf.from_distribution(NORMALS[library]), nf.NormalMeanLogScale()
    z, z2, y = Z.astype(dtype), Z2.astype(dtype), jnp.asarray(0.9, dtype)
    rtol = tolerance("identity", dtype)
    for which, arguments in (
        ("log_prob", (z, y)),
        ("kl", (z, z2)),
        ("score", (z, y)),
        ("fisher", (z,)),
    ):
        actual = run(getattr(family, which), *arguments)
        np.testing.assert_allclose(
            actual,
            run(getattr(ours, which), *arguments),
            rtol,
            atol=rtol,
            err_msg=which,
        )
        assert actual.dtype == dtype
    assert run(family.sample, jax.random.PRNGKey(0), z).dtype == dtype


LAWS = {
    "distrax categorical": (
        lambda z: distrax.Categorical(logits=z),
        nf.Categorical(),
        jnp.array([0.3, 1.0, -0.5]),
    ),
    "numpyro gamma": (
        lambda z: numpyro.Gamma(z[0] + 1, -z[1]),
        nf.Gamma(),
        jnp.array([1.5, -0.7]),
    ),
}


@pytest.mark.parametrize("law", LAWS)
def test_a_distribution_of_another_family_agrees_with_ours(law, tolerance):
    factory, ours, z = LAWS[law]
    theirs = nf.from_distribution(factory, parameter_ndim=1, example=z)
    assert theirs.provenance["kl"] == "given"
    zs = jnp.stack([z, z * 0.9])
    y = run(theirs.sample, jax.random.PRNGKey(0), zs)
    rtol = tolerance("solve")
    np.testing.assert_allclose(
        run(theirs.log_prob, zs, y), run(ours.log_prob, zs, y), rtol
    )
    np.testing.assert_allclose(
        run(theirs.kl, zs, zs[::-1]), run(ours.kl, zs, zs[::-1]), rtol
    )
    fisher = run(theirs.fisher, zs)
    np.testing.assert_allclose(fisher, run(ours.fisher, zs), rtol, 1e-10)


class PoissonWithoutDivergence(distrax.Distribution):
    """A distrax distribution that nobody registered a divergence for."""

    def __init__(self, log_rate):
        self.log_rate = log_rate

    @property
    def event_shape(self):
        return ()

    def _sample_n(self, key, n):
        return jax.random.poisson(key, jnp.exp(self.log_rate), (n,))

    def log_prob(self, value):
        return nf.Poisson().log_prob(self.log_rate, value)


NO_DIVERGENCE = {
    "numpyro": lambda z: numpyro.Poisson(jnp.exp(z)),
    "distrax": PoissonWithoutDivergence,
}


@pytest.mark.slow
@pytest.mark.parametrize("library", NO_DIVERGENCE)
def test_a_missing_divergence_is_estimated_and_provenance_tells(library):
    z, z2 = jnp.array(1.0), jnp.array(1.2)
    unknown = nf.from_distribution(NO_DIVERGENCE[library])
    known = nf.from_distribution(NO_DIVERGENCE[library], example=z)
    assert known.provenance["kl"] == "estimated from 256 samples"
    assert known.provenance["fisher"] == "Hessian of kl (estimated from 256 samples)"
    assert "else estimated from 256 samples" in unknown.provenance["kl"]
    assert "else estimated from 256 samples" in unknown.provenance["fisher"]
    ys, _ = run(known.score_nodes, z)
    ratios = 0.2 * ys - (jnp.exp(z2) - jnp.exp(z))
    error = jnp.std(jnp.expm1(ratios) - ratios) / 16
    for family in (known, unknown):
        assert abs(run(family.kl, z, z2) - run(nf.Poisson().kl, z, z2)) < 5 * error


def test_a_batch_of_distributions_is_one_law():
    family = nf.from_distribution(lambda z: distrax.Normal(z, 0.7), example=Z)
    y = run(family.sample, jax.random.PRNGKey(0), Z)
    ours = nf.NormalMean(0.7)
    np.testing.assert_allclose(
        run(family.log_prob, Z, y), run(ours.log_prob, Z, y), 1e-12
    )
    np.testing.assert_allclose(run(family.kl, Z, Z2), run(ours.kl, Z, Z2), 1e-12)
    np.testing.assert_allclose(run(family.fisher, Z), run(ours.fisher, Z), 1e-12)


def test_an_error_of_the_distribution_itself_is_not_taken_for_a_missing_divergence():
    class Broken(distrax.Normal):
        def kl_divergence(self, other, **kwargs):
            raise RuntimeError("broken")

    family = nf.from_distribution(lambda z: Broken(z[0], jnp.exp(z[1])))
    with pytest.raises(RuntimeError, match="broken"):
        run(family.kl, Z, Z2)
