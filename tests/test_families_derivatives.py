"""Derivatives of what the families define: right, of every order, and never stopped."""

from __future__ import annotations

import ast
import functools
import pathlib

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads
from test_families import definition, method, ordinary_points
from test_families_oracles import NAMES

import natgrad.families as nf


@functools.cache
def derivative(name, how):
    return jax.jit(jax.jacfwd(definition(name, how)))


@pytest.mark.parametrize("how", ["nodes", "kl"])
@pytest.mark.parametrize("name", NAMES)
def test_their_derivatives_agree(name, how, tolerance):
    for z in ordinary_points(name):
        expected = derivative(name, "fisher")(z)
        actual = derivative(name, how)(z)
        scale = tolerance("solve") * float(jnp.max(jnp.abs(expected)) + 1e-3)
        np.testing.assert_allclose(actual, expected, 0, scale)


@pytest.mark.parametrize("name", NAMES)
def test_kl_has_the_derivatives_that_differences_show(name):
    z, z2, _ = ordinary_points(name)
    kl = method(name, "kl")
    gradients = jax.jit(jax.grad(kl, (0, 1)))
    check_grads(kl, (z, z2), order=1, modes=("rev",), rtol=1e-5, atol=1e-5)
    check_grads(gradients, (z, z), order=1, modes=("fwd", "rev"), rtol=1e-5, atol=1e-5)


@pytest.mark.parametrize("how", ["nodes", "fisher"])
@pytest.mark.parametrize("name", NAMES)
def test_the_information_has_the_derivatives_that_differences_show(name, how):
    z = ordinary_points(name)[0]
    check_grads(
        definition(name, how), (z,), order=1, modes=("fwd", "rev"), rtol=1e-5, atol=1e-5
    )


def test_constants_may_be_traced():
    z = jnp.array([0.3, 0.1])
    by_scale = jax.jit(jax.grad(lambda scale: nf.NormalMean(scale).kl(z[0], z[1])))
    np.testing.assert_allclose(by_scale(2.0), -(0.2**2) / 8)
    log_prob = lambda nu: nf.StudentT(nu).log_prob(z, jnp.array(1.0))
    check_grads(jax.jit(log_prob), (3.0,), order=1, rtol=1e-6)
    np.testing.assert_allclose(jax.jit(log_prob)(3.0), log_prob(3.0), 1e-12)


def test_only_averages_over_draws_stop_a_gradient():
    stopping = [
        path.name
        for path in pathlib.Path(nf.__file__).parent.glob("*.py")
        if any(
            isinstance(node, ast.Attribute) and node.attr == "stop_gradient"
            for node in ast.walk(ast.parse(path.read_text()))
        )
    ]
    assert stopping == ["expectations.py"]
