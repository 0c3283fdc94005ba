"""A singular F_z is ordinary: its root exists, and so do the root's derivatives."""

from __future__ import annotations

from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from own_laws import SOFTMAX, softmax

import natgrad as ng
from natgrad.curvature import Dense
from natgrad.families.expectations import root_columns

A = jax.random.normal(jax.random.PRNGKey(1), (5, 3))
MATRICES = {
    "rank 3 of 5": A @ A.T,
    "zero": jnp.zeros((3, 3)),
    "one entry": jnp.diag(jnp.array([0.0, 2.0, 0.0])),
    "repeated eigenvalues": 3 * jnp.eye(4),
    "first pivot zero": jnp.array([[0.0, 0.0, 0.0], [0.0, 1.0, 0.5], [0.0, 0.5, 1.0]]),
    "softmax": SOFTMAX.fisher(jnp.array([0.2, -3.0, 1.0, 0.4])),
    "units": jnp.array([[1e16, 3e7], [3e7, 1.0]]),
    "1 x 1": jnp.array([[2.0]]),
}


def product_of(matrix):
    rows, weights = root_columns(matrix)
    return jnp.einsum("k,ki,kj->ij", weights, rows, rows)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", MATRICES)
def test_the_columns_have_the_matrix_as_their_outer_product(name, dtype):
    matrix = MATRICES[name].astype(dtype)
    rows, weights = root_columns(matrix)
    found = jnp.einsum("k,ki,kj->ij", weights, rows, rows)
    assert found.dtype == matrix.dtype
    diagonal = jnp.sqrt(jnp.diagonal(matrix))
    scale = diagonal[:, None] * diagonal[None, :]  # whatever the units are
    bound = 100 * jnp.finfo(dtype).eps * scale
    assert jnp.all(jnp.abs(found - matrix) <= bound)
    assert jnp.all(weights >= 0)
    rank = 2 if name == "units" else np.linalg.matrix_rank(MATRICES[name])
    assert jnp.sum(weights > 0) == rank


def test_what_is_not_finite_stays_visible():
    matrix = jnp.eye(3).at[1, 2].set(jnp.nan).at[2, 1].set(jnp.nan)
    assert jnp.any(jnp.isnan(product_of(matrix)))
    assert jnp.all(jnp.isnan(product_of(jnp.full((2, 2), jnp.nan))))


CURVES = {
    "rank 3 of 5": lambda t: jnp.tanh(t * A) @ jnp.tanh(t * A).T,
    # Of rank 1, with a zero pivot first, and of eigenvalues that meet, at t = 0.
    "through a zero": lambda t: jnp.array([[t * t, t], [t, 1.0]]),
    "through a crossing": lambda t: jnp.array([[1 + t, t], [t, 1 - t]]),
}


@pytest.mark.parametrize("at", [0.0, 0.7])
@pytest.mark.parametrize("name", CURVES)
def test_derivatives_are_those_of_the_matrix_of_second_order_too(name, at):
    curve = CURVES[name]
    if name == "through a crossing":
        at = 0.3 * at

    @jax.jit
    def derivatives(t):
        of = lambda t: product_of(curve(t))
        return jax.jacfwd(of)(t), jax.jacrev(of)(t), jax.jacfwd(jax.jacrev(of))(t)

    forward, reverse, second = derivatives(at)
    if name == "rank 3 of 5" and at == 0:  # rank 0 there
        assert jnp.all(forward == 0)
        return
    np.testing.assert_allclose(forward, jax.jacfwd(curve)(at), 1e-9, 1e-11)
    np.testing.assert_allclose(reverse, jax.jacfwd(curve)(at), 1e-9, 1e-11)
    np.testing.assert_allclose(second, jax.jacfwd(jax.jacfwd(curve))(at), 1e-8, 1e-9)


@pytest.mark.parametrize("law", ["root", "labels"])
def test_the_fisher_of_a_softmax_law_has_the_derivatives_of_ours(law):
    own = {"root": softmax(kl=SOFTMAX.kl), "labels": softmax(support=jnp.arange(3))}
    x = jax.random.normal(jax.random.PRNGKey(3), (4, 2))
    w = jax.random.normal(jax.random.PRNGKey(4), (2, 3))
    direction = jax.random.normal(jax.random.PRNGKey(5), (2, 3))
    weigh = jax.random.normal(jax.random.PRNGKey(6), (6, 6))

    def value(family):
        model = ng.Model(lambda p, x: x @ p, family)
        return lambda w: jnp.sum(weigh * Dense(model).at(w, x).dense())

    @jax.jit
    def derivatives(w):
        slopes = jax.jvp(value(own[law]), (w,), (direction,))[1]
        return slopes, jax.grad(value(own[law]))(w), jax.grad(value(SOFTMAX))(w)

    forward, reverse, expected = derivatives(w)
    np.testing.assert_allclose(reverse, expected, 1e-9, 1e-11)
    np.testing.assert_allclose(forward, jnp.vdot(expected, direction), 1e-9)
    f, h = jax.jit(value(own[law])), 1e-5
    difference = (f(w + h * direction) - f(w - h * direction)) / (2 * h)
    np.testing.assert_allclose(forward, difference, 1e-6)


def test_laws_without_information_are_finite_and_so_are_derivatives():
    @partial(jax.jit, static_argnums=0)
    def value_and_slope(family, z):
        model = ng.Model(lambda p, x: jnp.broadcast_to(p, (2, p.size)), family)
        at = lambda z: Dense(model).at(z, jnp.ones((2, 1))).dense()
        return at(z), jax.grad(lambda z: jnp.sum(at(z)))(z)

    saturated = jnp.array([60.0, -60.0, 0.0], jnp.float32)
    for family, z in (
        (softmax(kl=SOFTMAX.kl), saturated),
        (softmax(support=jnp.arange(3)), saturated),
        (softmax(support=jnp.arange(1)), saturated[:1]),
    ):
        for each in value_and_slope(family, z):
            assert jnp.all(jnp.isfinite(each))
