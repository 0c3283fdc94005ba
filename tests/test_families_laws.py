"""Laws that every family of the table in `laws` obeys, in double precision.

All that is tested at the points of one family is computed by one compiled function.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from law_oracles import derivatives, exact_kl, numbers
from laws import EXPONENTIAL, LAWS, NAMES
from test_families_oracles import assert_matrices_agree

import natgrad.families as nf


def outer_products(family, z):
    ys, weights = family.nodes(z)
    scores = jax.vmap(family.score, (None, 0))(z, ys).reshape(weights.shape[0], -1)
    products = jnp.einsum("k,ki,kj->ij", weights, scores, scores)
    return products, weights @ scores, weights


def quantities(family, z):
    """What the tests look at, at one point."""
    matrix = lambda f: f.reshape(z.size, z.size)
    v = jnp.cos(jnp.arange(z.size, dtype=z.dtype)).reshape(z.shape)
    products, mean_score, weights = outer_products(family, z)
    out = {
        "derivative of fisher": matrix(jax.jvp(family.fisher, (z,), (v,))[1]),
        "fisher": matrix(family.fisher(z)),
        "product": family.fisher_product(z, v).ravel(),
        "nodes": products,
        "kl": matrix(jax.hessian(lambda z2: family.kl(z, z2))(z)),
        "mean score": mean_score,
        "weights": weights,
    }
    if isinstance(family, nf.ExponentialFamily):
        mu = family.mean(z)
        out |= {
            "mean": mu.ravel(),
            "gradient of A": jax.grad(family.log_normalizer)(z).ravel(),
            "A": family.log_normalizer(z),
            "natural": family.natural(mu),
            "jacobian of natural": matrix(jax.jacfwd(family.natural)(mu)),
            "conjugate": family.conjugate(mu),
            "entropy": family.entropy(z),
        }
        if hasattr(family, "mean_complement"):
            complement = family.mean_complement(z)
            out["from complement"] = family.natural_from_complement(mu, complement)
    return out


@functools.cache
def computed(name):
    law = LAWS[name]
    of_points = jax.jit(jax.vmap(functools.partial(quantities, law.family)))
    return jax.device_get(of_points(jnp.asarray(law.points)))


@functools.cache
def fisher_of(name):
    return jax.jit(jax.vmap(LAWS[name].family.fisher))


@functools.cache
def kl(name):
    return jax.jit(jax.vmap(LAWS[name].family.kl))


def in_natural_coordinates(law, source):
    """The closed form in source coordinates, by the Jacobian of source -> z."""
    jacobian = np.asarray(jax.jacfwd(law.to_z)(jnp.asarray(source)))
    inverse = np.linalg.inv(jacobian.reshape(source.size, source.size))
    return inverse.T @ law.fisher(source) @ inverse


@functools.cache
def fisher_oracle(name):
    law = LAWS[name]
    return [in_natural_coordinates(law, np.asarray(s, float)) for s in law.sources]


@functools.cache
def normalizer_oracle(name):
    """A and its derivatives at each point."""
    law = LAWS[name]
    return [derivatives(law.oracle, numbers(z)) for z in law.points]


@pytest.mark.parametrize("how", ["fisher", "nodes", "kl"])
@pytest.mark.parametrize("name", NAMES)
def test_the_fisher_information_is_the_closed_form(name, how, tolerance):
    for actual, expected in zip(computed(name)[how], fisher_oracle(name), strict=True):
        assert_matrices_agree(actual, expected, tolerance("identity"))


@pytest.mark.parametrize("name", EXPONENTIAL)
def test_it_is_the_hessian_of_the_log_normalizer(name, tolerance):
    for expected, (_, _, hessian) in zip(
        fisher_oracle(name), normalizer_oracle(name), strict=True
    ):
        assert_matrices_agree(hessian.astype(float), expected, tolerance("identity"))


@pytest.mark.parametrize("name", NAMES)
def test_the_fisher_product_is_the_matrix_times_the_vector(name, tolerance):
    values = computed(name)
    for product, expected in zip(values["product"], fisher_oracle(name), strict=True):
        v = np.cos(np.arange(product.size))
        scale = np.abs(expected) @ np.abs(v)
        np.testing.assert_allclose(
            product / scale, expected @ v / scale, 0, tolerance("identity")
        )


@pytest.mark.parametrize("name", NAMES)
def test_the_nodes_are_a_law_under_which_the_score_has_mean_zero(name, tolerance):
    values = computed(name)
    np.testing.assert_allclose(values["weights"].sum(1), 1, tolerance("identity"))
    assert np.all(values["weights"] >= 0)
    assert values["weights"].shape[1] <= 100
    for mean, fisher in zip(values["mean score"], fisher_oracle(name), strict=True):
        np.testing.assert_allclose(mean / np.sqrt(np.diag(fisher)), 0, atol=1e-9)


@pytest.mark.parametrize("name", EXPONENTIAL)
def test_mean_and_log_normalizer_are_accurate(name, tolerance):
    values = computed(name)
    for i, (value, gradient, _) in enumerate(normalizer_oracle(name)):
        gradient = np.array([float(g) for g in gradient])
        np.testing.assert_allclose(values["mean"][i], gradient, tolerance("oracle"))
        np.testing.assert_allclose(values["A"][i], float(value), tolerance("oracle"))
        scale = np.sqrt(np.diag(fisher_oracle(name)[i])) + np.abs(gradient)
        error = (values["gradient of A"][i] - gradient) / scale
        np.testing.assert_allclose(error, 0, atol=1e-8)


@pytest.mark.parametrize("name", EXPONENTIAL)
def test_natural_inverts_mean_and_its_derivative_inverts_the_information(name):
    values, z = computed(name), LAWS[name].points
    # Rounding of μ moves η by F⁻¹ times as much.
    for i, fisher in enumerate(fisher_oracle(name)):
        inverse = np.linalg.inv(fisher)
        blur = np.abs(inverse) @ np.abs(values["mean"][i]).reshape(-1) * 2e-15
        error = np.abs(values["natural"][i] - z[i]).reshape(-1)
        assert np.all(error <= 100 * blur + 1e-11 * np.abs(z[i]).reshape(-1) + 1e-14)
        if i < 2:
            product = fisher @ values["jacobian of natural"][i] @ fisher
            assert_matrices_agree(product, fisher, 1e-8)
    if "from complement" in values:
        np.testing.assert_allclose(values["from complement"], z, 1e-9, 1e-14)


@pytest.mark.parametrize("name", EXPONENTIAL)
def test_the_conjugate_is_the_legendre_transform(name, tolerance):
    for i in range(2):
        value, gradient, _ = normalizer_oracle(name)[i]
        z = numbers(LAWS[name].points[i])
        terms = [a * b for a, b in zip(z, gradient, strict=True)]
        conjugate = computed(name)["conjugate"][i]
        np.testing.assert_allclose(
            conjugate, float(sum(terms) - value), tolerance("oracle"), 1e-9
        )


@pytest.mark.parametrize("name", EXPONENTIAL)
def test_the_entropy_is_that_of_scipy(name):
    law = LAWS[name]
    for i in range(2):
        source = np.asarray(law.sources[i], float)
        expected = float(law.scipy(source).entropy())
        np.testing.assert_allclose(computed(name)["entropy"][i], expected, 1e-8, 1e-9)


@pytest.mark.parametrize("name", NAMES)
def test_kl_is_the_oracle_in_both_orientations(name, tolerance):
    law = LAWS[name]
    z = law.points
    # Between ordinary points, and from each extreme one to one nearby.
    rows = [(z[0], z[1]), (z[1], z[0])]
    for point, fisher in zip(z[2:], fisher_oracle(name)[2:], strict=True):
        move = 0.1 / np.sqrt(np.diag(fisher)).reshape(point.shape)
        near = point + np.minimum(move, np.where(point == 0, move, np.abs(point)) / 2)
        rows += [(point, near), (near, point)]
    first, second = (np.stack(side) for side in zip(*rows, strict=True))
    actual = kl(name)(jnp.asarray(first), jnp.asarray(second))
    expected = [float(exact_kl(law, a, b)) for a, b in rows]
    assert abs(expected[0] - expected[1]) > 1e-3 * expected[0] or name == "cauchy"
    np.testing.assert_allclose(actual, expected, tolerance("oracle"))


@pytest.mark.parametrize("name", NAMES)
def test_kl_is_half_the_fisher_norm_to_third_order(name):
    z, fisher = LAWS[name].points[0], fisher_oracle(name)[0]
    direction = np.linspace(1.0, 0.6, z.size)
    unit = direction / np.sqrt(direction @ fisher @ direction)
    sizes = np.array([0.004, 0.002])
    points = jnp.asarray(z + (sizes[:, None] * unit).reshape((2, *z.shape)))
    base = jnp.broadcast_to(jnp.asarray(z), points.shape)
    for first, second in ((base, points), (points, base)):
        rest = np.abs(np.asarray(kl(name)(first, second)) - sizes**2 / 2)
        assert abs(np.log2(rest[0] / rest[1]) - 3) < 0.05, rest


@pytest.mark.parametrize("name", NAMES)
def test_the_derivatives_are_those_that_differences_show(name):
    family, step = LAWS[name].family, 1e-5
    z, z2 = LAWS[name].points[:2]
    v = np.cos(np.arange(z.size)).reshape(z.shape)
    sides = jnp.asarray([z + step * v, z - step * v])
    ahead, behind = np.reshape(fisher_of(name)(sides), (2, z.size, z.size))
    derivative = computed(name)["derivative of fisher"][0]
    scale = np.abs(derivative).max() + np.abs(ahead).max()
    np.testing.assert_allclose(
        derivative / scale, (ahead - behind) / (2 * step) / scale, 0, 1e-7
    )
    gradients = jax.jit(jax.grad(family.kl, (0, 1)))(jnp.asarray(z), jnp.asarray(z2))
    other = jnp.broadcast_to(jnp.asarray(z2), sides.shape)
    for first, gradient in ((True, gradients[0]), (False, gradients[1])):
        moved = sides if first else jnp.asarray([z2 + step * v, z2 - step * v])
        fixed = other if first else jnp.broadcast_to(jnp.asarray(z), sides.shape)
        pair = (moved, fixed) if first else (fixed, moved)
        ahead, behind = np.asarray(kl(name)(*pair))
        expected = (ahead - behind) / (2 * step)
        np.testing.assert_allclose(np.vdot(gradient, v), expected, 1e-6, 1e-7)
