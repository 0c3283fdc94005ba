"""Connections: Christoffel symbols against expectations, differences and the books."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from manifolds import CHARTS, MANIFOLDS, NAMES, coordinates

from natgrad import geometry as ng

OVERCOMPLETE = {("categorical", "natural"), ("categorical", "expectation")}
# The second derivatives of Gamma's log p through its inverse mean take long to compile.
REGULAR = [
    pair for pair in CHARTS if pair not in OVERCOMPLETE | {("gamma", "expectation")}
]


@functools.cache
def symbols(name, chart):
    """point -> (F, T, lowered Γ for α = 1, 0, −1, 0.3), compiled once."""

    def compute(x):
        manifold = MANIFOLDS[name]
        p = ng.Point(manifold.family, manifold.chart, x).to(chart)
        lowered = {a: ng.lowered_christoffel(p, a) for a in (1.0, 0.0, -1.0, 0.3)}
        return ng.fisher(p), ng.amari_chentsov(p), lowered

    return jax.jit(compute)


@functools.cache
def expectations(name, chart):
    """The same by their definitions as expectations, over quadrature nodes."""

    def compute(x):
        manifold = MANIFOLDS[name]
        p = ng.Point(manifold.family, manifold.chart, x).to(chart)
        ys, weights = nodes(p)
        log_prob = lambda x, y: p.at(x).log_prob(y)
        n = p.coordinates.size

        def terms(y):
            s = jax.grad(log_prob)(p.coordinates, y).ravel()
            h = jax.hessian(log_prob)(p.coordinates, y).reshape(n, n)
            bent = lambda a: h + (1 - a) / 2 * jnp.outer(s, s)
            third = lambda matrix: jnp.einsum("ij,k->ijk", matrix, s)
            lowered = {a: third(bent(a)) for a in (1.0, 0.0, -1.0, 0.3)}
            return jnp.outer(s, s), third(jnp.outer(s, s)), lowered

        mean = lambda values: jnp.tensordot(weights, values, axes=1)
        return jax.tree.map(mean, jax.vmap(terms)(ys))

    return jax.jit(compute)


def nodes(p):
    """Labels and weights that integrate third moments of the statistics."""
    z = p.natural
    if "Poisson" in repr(p.family):
        ys = jnp.arange(60)
        log_probs = jax.vmap(p.log_prob)(ys)
        return ys, jnp.exp(log_probs)
    if "Normal" in repr(p.family):
        roots, weights = np.polynomial.hermite_e.hermegauss(12)
        v = -0.5 / z[1]
        return z[0] * v + jnp.sqrt(v) * roots, weights / weights.sum()
    if "Exponential" in repr(p.family):
        roots, weights = np.polynomial.laguerre.laggauss(12)
        return roots / -z, jnp.asarray(weights)
    return p.family.score_nodes(z)  # finite supports; 58 points for Gamma


def close(actual, expected, p_fisher, tolerance):
    """Relative to √(F_ii F_jj F_kk), the natural size of a third-order tensor."""
    n = round(p_fisher.size**0.5)
    scale = np.sqrt(np.diag(np.reshape(p_fisher, (n, n))))
    size = np.einsum("i,j,k->ijk", scale, scale, scale)
    error = np.reshape(np.asarray(actual) - np.asarray(expected), size.shape)
    assert np.max(np.abs(error) / size) < tolerance


@pytest.mark.parametrize(("name", "chart"), REGULAR)
def test_symbols_are_the_expectations_that_define_them(name, chart, tolerance):
    x = coordinates(name)
    f, third, lowered = symbols(name, chart)(x)
    f2, third2, lowered2 = expectations(name, chart)(x)
    np.testing.assert_allclose(f.ravel(), f2.ravel(), 1e-9, 1e-9 * np.max(f))
    close(third, third2, f, tolerance("oracle"))
    for alpha in lowered:
        close(lowered[alpha], lowered2[alpha], f, tolerance("oracle"))


@pytest.mark.parametrize("name", NAMES)
def test_each_connection_is_flat_in_its_own_chart(name):
    """Γ^(e) = 0 in η and Γ^(m) = 0 in μ, and T = ∇³A is what they differ by in η."""
    x = coordinates(name)
    f, third, lowered = symbols(name, "natural")(x)
    assert np.all(np.asarray(lowered[1.0]) == 0)
    close(lowered[-1.0], third, f, 1e-12)
    f, third, lowered = symbols(name, "expectation")(x)
    mixture, exponential = (on_tangents(name, lowered[a]) for a in (-1.0, 1.0))
    close(mixture, np.zeros_like(mixture), f, 1e-12)
    close(-exponential, on_tangents(name, third), f, 1e-10)


def on_tangents(name, tensor):
    """Of expectations: those of a categorical law move on the simplex."""
    if name != "categorical":
        return tensor
    v = np.eye(3) - 1 / 3
    return np.einsum("ijk,ia,jb,kc->abc", tensor, v, v, v)


@pytest.mark.parametrize(("name", "chart"), CHARTS)
def test_connections_are_affine_in_alpha_with_slope_the_tensor(name, chart):
    """Γ^(α) = Γ^(e) + (1 − α)/2 T in every chart."""
    f, third, lowered = symbols(name, chart)(coordinates(name))
    for alpha in (0.0, -1.0, 0.3):
        close(lowered[alpha], lowered[1.0] + (1 - alpha) / 2 * third, f, 1e-10)


@pytest.mark.parametrize("alpha", [1.0, 0.0, -1.0])
def test_symbols_of_the_normal_law_are_those_of_the_books(alpha):
    """(m, s): Amari & Nagaoka (2000), example 2.5, raised by F = diag(1, 2)/s²."""
    s = 1.2
    expected = np.zeros((2, 2, 2))  # [k, i, j]
    expected[0, 0, 1] = expected[0, 1, 0] = -(1 + alpha) / s
    expected[1, 0, 0] = (1 - alpha) / (2 * s)
    expected[1, 1, 1] = -(1 + 2 * alpha) / s
    p = ng.Point(MANIFOLDS["normal"].family, "mean/sd", coordinates("normal"))
    actual = jax.jit(ng.christoffel)(p, alpha)
    np.testing.assert_allclose(actual, expected, 1e-12, 1e-12)


@pytest.mark.parametrize("name", ["normal", "gamma"])
def test_levi_civita_is_that_of_the_metric(name, tolerance):
    """Γ_ij,k = (∂_i F_jk + ∂_j F_ik − ∂_k F_ij)/2 by differences of the closed form."""
    manifold, x = MANIFOLDS[name], np.asarray(coordinates(name))
    h = 1e-5
    slopes = np.stack(
        [
            (manifold.fisher(x + d) - manifold.fisher(x - d)) / (2 * h)
            for d in h * np.eye(2)
        ]
    )
    expected = (
        np.einsum("ijk->ijk", slopes)
        + np.einsum("jik->ijk", slopes)
        - np.einsum("kij->ijk", slopes)
    ) / 2
    lowered = symbols(name, manifold.chart)(x)[2][0.0]
    np.testing.assert_allclose(lowered, expected, tolerance("differences"), 1e-8)


@pytest.mark.parametrize(
    ("name", "chart"),
    [
        ("gamma", "natural"),
        ("categorical", "probability"),
        ("normal", "natural"),
        ("categorical", "natural"),
    ],
)
def test_bending_is_the_symbols_contracted_with_the_velocity(name, chart):
    manifold = MANIFOLDS[name]
    p = ng.Point(manifold.family, manifold.chart, coordinates(name)).to(chart)
    v = p.tangent(jnp.array([0.4, -0.7, 0.3])[: p.coordinates.size])

    @jax.jit
    def both(v):
        gamma = ng.christoffel(v.point, 0.3)
        contracted = jnp.einsum("kij,i,j->k", gamma, v.components, v.components)
        return contracted, ng.christoffel_contraction(v, 0.3).components

    contracted, bent = both(v)
    np.testing.assert_allclose(bent, contracted, 1e-10, 1e-12)


def test_derivative_of_the_fisher_information():
    """∂_k F_ij = Γ^(e)_ki,j + Γ^(e)_kj,i + T_ijk; sampled labels held fixed drop T."""
    family, x = MANIFOLDS["gamma"].family, coordinates("gamma")
    f = lambda x: ng.fisher(ng.Point(family, "shape/rate", x))
    slopes = jax.jit(jax.jacfwd(f))(x)  # [i, j, k]
    _, third, lowered = symbols("gamma", "shape/rate")(x)
    e = lowered[1.0]
    expected = jnp.einsum("kij->ijk", e) + jnp.einsum("kji->ijk", e) + third
    np.testing.assert_allclose(slopes, expected, 1e-10, 1e-12)
