"""Outputs that are parameters of no law: NaN everywhere, and an error in words."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from laws import LAWS, NAMES, each, ordinary

import natgrad as ng
import natgrad.families as nf
from natgrad.geometry import charts, whole_space

KEY = jax.random.PRNGKey(1)


def margins(family):
    """Concave functions that are positive on the natural domain; None for all of R."""
    if not isinstance(family, nf.ExponentialFamily):
        return None
    chart = charts(family)["natural"]
    return None if chart.margins is whole_space else chart.margins


@each(NAMES)
def test_outside_of_the_domain_nothing_is_finite(name):
    """Nor is the divergence from a law inside: no step that leaves looks short.

    Points on all sides of the origin; the geometry's table of domains is the oracle.
    """
    family, inside_point = LAWS[name].family, ordinary(name)[0]
    domain = margins(family)
    assert (domain is None) == (family.domain == "")
    y = family.sample(KEY, inside_point)

    @jax.jit
    @jax.vmap
    def at(z):
        normalizer = getattr(family, "log_normalizer", lambda z: 0.0)(z)
        values = family.log_prob(z, y), normalizer, family.kl(inside_point, z)
        inside = True if domain is None else jnp.all(domain(z) > 0)
        return jnp.isfinite(jnp.stack(values)), inside

    finite, inside = at(2 * jax.random.normal(KEY, (200, *inside_point.shape)))
    np.testing.assert_array_equal(finite, np.broadcast_to(inside[:, None], (200, 3)))
    assert inside.any()
    assert domain is None or not inside.all()


def exponential(weights=None):
    """(model, params): raw outputs as the rates of a law that takes negative ones."""
    model = ng.Model(lambda p, x: x["x"] @ p, nf.Exponential(), weights=weights)
    return model, jnp.ones((1, 1))


def test_the_loss_says_which_outputs_and_what_is_expected():
    model, params = exponential()
    x, y = {"x": jnp.array([[-1.0], [0.5], [2.0]])}, jnp.ones((3, 1))
    for function in (model.loss, model.log_prob):
        with pytest.raises(ValueError, match=r"2 of 3 examples: z\[1\] = \[0.5\]") as e:
            function(params, x, y)
        assert nf.Exponential().domain in str(e.value)
    assert jnp.isnan(jax.jit(model.loss)(params, x, y))
    with pytest.raises(ValueError, match="no law at the outputs of 2 of 3"):
        ng.doctor(model, params, x, y)


def test_what_has_weight_0_may_be_anywhere():
    model, params = exponential(lambda batch: batch["weights"])
    x = {"x": jnp.array([[-1.0], [0.5]]), "weights": jnp.array([1.0, 0.0])}
    assert jnp.isfinite(model.loss(params, x, jnp.ones((2, 1))))


def test_outputs_that_are_not_finite_are_not_the_domain_s_fault():
    model, params = exponential()
    assert jnp.isnan(
        model.loss(params, {"x": jnp.full((2, 1), jnp.nan)}, jnp.ones((2, 1)))
    )
