"""Laws that every family obeys, at the ordinary points of the table in `laws`.

All that is tested of one family is computed by a few compiled functions of one point,
which take less time to compile than functions of a batch of points.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from laws import (
    EXPONENTIAL,
    LAWS,
    NAMES,
    assert_matrices_agree,
    each,
    ordinary,
    root_squared,
    special,
)

import natgrad.families as nf

DEFINITIONS = ["fisher", "nodes", "kl", "root"]
STEP = 1e-5  # of differences
# ν = 4 goes the way of 1/2, 2.5 and 1000.
every = each([name for name in NAMES if name != "student_t_4"])
every_exponential = each(EXPONENTIAL)


def nodes_of(family, z):
    """E[s sᵀ], and what it is made of: the nodes, their weights and their scores."""
    ys, weights = family.score_nodes(z)
    scores = jax.vmap(family.score, (None, 0))(z, ys).reshape(weights.shape[0], -1)
    fisher = jnp.einsum("k,ki,kj->ij", weights, scores, scores)
    return fisher, (ys, weights, scores)


def hessian_of_kl(family, z):
    """The Hessian of KL in its second argument at z, and the gradient."""
    both = lambda z2: (jax.grad(family.kl, 1)(z, z2),) * 2
    matrix, gradient = jax.jacfwd(both, has_aux=True)(z)
    return matrix.reshape(z.size, z.size), gradient


def with_slopes(family, z, z2, move):
    """KL, its gradients, and how these change as the pair moves."""
    with_gradients = jax.value_and_grad(family.kl, (0, 1))
    (value, gradients), (_, second) = jax.jvp(with_gradients, (z, z2), move)
    return value, gradients, second


def quantities(family, z, z2, move):
    """What is looked at once, at a point z or at a pair of points."""
    v = move[0]
    along = lambda f: jax.jvp(f, (z,), (v,))
    (by_nodes, (ys, weights, scores)), (nodes_slope, _) = along(
        functools.partial(nodes_of, family)
    )
    by_kl, kl_slope = along(lambda z: hessian_of_kl(family, z)[0])
    out = {
        "nodes": by_nodes,
        "kl": by_kl,
        "root": root_squared(family, z),
        "slopes": {"nodes": nodes_slope, "kl": kl_slope},
        "product": family.fisher_product(z, v).ravel(),
        "mean score": weights @ scores,
        "weights": weights,
        "score, log_prob": (
            scores[0].reshape(z.shape),
            jax.grad(family.log_prob)(z, ys[0]),
        ),
        "second, reversed": jax.vjp(jax.grad(family.kl, (0, 1)), z, z2)[1](move),
    }
    return out | (of_exponential(family, z, z2) if is_exponential(family) else {})


def is_exponential(family):
    return isinstance(family, nf.ExponentialFamily)


def of_exponential(family, z, z2):
    mu = family.mean(z)
    normalizer, gradient = jax.value_and_grad(family.log_normalizer)(z)
    natural, pull = jax.vjp(family.natural, mu)
    rows = jax.vmap(pull)(jnp.eye(z.size, dtype=z.dtype).reshape(-1, *z.shape))[0]
    conjugate, slope = jax.value_and_grad(family.conjugate)(mu)
    out = {
        "mean": mu,
        "gradient of A": gradient,
        "A": normalizer,
        "natural": natural,
        "jacobian of natural": rows.reshape(z.size, z.size),
        "conjugate": conjugate,
        "gradient of conjugate": slope,
        "bregman": jax.vmap(family.bregman)(jnp.stack([z2, z]), jnp.stack([z, z2])),
    }
    if hasattr(family, "mean_complement"):
        complement = family.mean_complement(z)
        out["from complement"] = family.natural_from_complement(mu, complement)
    return out


def stacked(results):
    """One tree of arrays [number of results, ...]."""
    return jax.tree.map(lambda *leaves: np.stack(leaves), *jax.device_get(results))


@functools.cache
def computed(name):
    """At each ordinary point, paired with the next of the first three."""
    family, points = LAWS[name].family, ordinary(name)
    fisher = jax.jit(lambda z, v: jax.jvp(family.fisher, (z,), (v,)))
    at_pair = jax.jit(functools.partial(with_slopes, family))
    once = jax.jit(functools.partial(quantities, family))
    v = jnp.cos(jnp.arange(points[0].size, dtype=points.dtype)).reshape(points[0].shape)
    move = (v, 0.7 * v)
    beside = lambda x, u: [x + STEP * u, x - STEP * u]

    def at(z, z2):
        fishers, slopes = stacked([fisher(x, v) for x in [z, *beside(z, v)]])
        # At the pair, at z twice, and on both sides of the pair.
        pairs = zip([z, z, *beside(z, v)], [z2, z, *beside(z2, move[1])], strict=True)
        values, gradients, second = stacked([at_pair(*pair, move) for pair in pairs])
        out = once(z, z2, move)
        out["slopes"]["fisher"] = slopes[0].reshape(z.size, z.size)
        return out | {
            "fisher": fishers[0].reshape(z.size, z.size),
            "fisher beside": fishers[1:],
            "divergence": values[:2],
            "gradients": [side[1:] for side in gradients],
            "second": [side[0] for side in second],
        }

    return stacked([at(z, points[(i + 1) % 3]) for i, z in enumerate(points)])


@functools.cache
def in_single_precision(name):
    family = LAWS[name].family

    @jax.jit
    def at(z):
        by_kl, gradient = hessian_of_kl(family, z)
        matrices = {
            "fisher": family.fisher(z).reshape(z.size, z.size),
            "nodes": nodes_of(family, z)[0],
            "kl": by_kl,
            "root": root_squared(family, z),
        }
        return matrices, family.kl(z, z), gradient

    return stacked([at(z) for z in ordinary(name, "float32")])


@pytest.mark.parametrize("how", DEFINITIONS)
@every
def test_four_definitions_of_the_fisher_information_are_that_of_mpmath(
    name, how, tolerance
):
    for actual, exact in zip(computed(name)[how], special(name, "fisher"), strict=True):
        assert_matrices_agree(actual, exact, tolerance("identity"))
    singles = in_single_precision(name)[0][how]
    for actual, exact in zip(singles[:3], special(name, "fisher")[:3], strict=True):
        assert_matrices_agree(actual, exact, tolerance("identity", "float32"))


@every
def test_the_fisher_product_is_the_matrix_times_the_vector(name, tolerance):
    products = computed(name)["product"]
    for product, exact in zip(products, special(name, "fisher"), strict=True):
        v = np.cos(np.arange(product.size))
        scale = np.abs(exact) @ np.abs(v)
        np.testing.assert_allclose(
            product / scale, exact @ v / scale, 0, tolerance("identity")
        )


@every
def test_the_nodes_are_a_law_under_which_the_score_has_mean_zero(name, tolerance):
    values = computed(name)
    np.testing.assert_allclose(values["weights"].sum(1), 1, tolerance("identity"))
    assert np.all(values["weights"] >= 0)
    assert values["weights"].shape[1] <= 100
    for mean, exact in zip(values["mean score"], special(name, "fisher"), strict=True):
        np.testing.assert_allclose(mean / np.sqrt(np.diag(exact)), 0, atol=1e-9)


@every
def test_the_score_is_the_gradient_of_log_prob(name, tolerance):
    score, gradient = (a[:3] for a in computed(name)["score, log_prob"])
    np.testing.assert_allclose(score, gradient, tolerance("identity"), 1e-12)


@every
def test_the_divergence_of_a_law_from_itself_is_zero(name):
    values = computed(name)
    value, gradients = values["divergence"][:, 1], values["gradients"]
    _, single, single_gradient = in_single_precision(name)
    np.testing.assert_array_equal(value, 0)
    np.testing.assert_array_equal(single, 0)
    np.testing.assert_array_equal(single_gradient, 0)
    for gradient in gradients:
        np.testing.assert_array_equal(gradient[:, 0], 0)


def differentiable(name):
    """Those of the first three points that a step of differences leaves in its place.

    Beside the others, near the boundary, the law is another one STEP further on.
    """
    fisher = np.asarray(special(name, "fisher"))[:3]
    largest = np.abs(fisher).reshape(len(fisher), -1).max(1)
    points = np.flatnonzero(STEP * np.sqrt(largest) < 1e-2)
    assert len(points) >= 2
    return points


@every
def test_derivatives_of_the_definitions_agree(name, tolerance):
    """Also with differences of the Fisher information."""
    values = computed(name)
    slopes = {how: slope[:3] for how, slope in values["slopes"].items()}
    scale = np.abs(slopes["fisher"]).max((1, 2), keepdims=True) + 1e-3
    for how in ("nodes", "kl"):
        error = (slopes[how] - slopes["fisher"]) / scale
        np.testing.assert_allclose(error, 0, atol=tolerance("solve"))
    beside = values["fisher beside"][:3].reshape(len(scale), 2, -1)
    ahead, behind = beside[:, 0], beside[:, 1]
    exact = slopes["fisher"].reshape(ahead.shape)
    scale = np.abs(exact).max(1, keepdims=True) + np.abs(ahead).max(1, keepdims=True)
    error = (exact - (ahead - behind) / (2 * STEP)) / scale
    np.testing.assert_allclose(error[differentiable(name)], 0, atol=1e-7)


@every
def test_second_derivatives_of_the_divergence_agree(name):
    """Forward over reverse, reverse over reverse, and differences of gradients."""
    values, points = computed(name), set(differentiable(name))
    pairs = [i for i in sorted(points) if (i + 1) % 3 in points]
    assert pairs
    for i in (0, 1):
        second, reverse = (
            values[which][i][:3] for which in ("second", "second, reversed")
        )
        ahead, behind = (values["gradients"][i][:3, side] for side in (1, 2))
        difference = (ahead - behind) / (2 * STEP)
        scale = np.abs(second).max() + np.abs(ahead).max()
        np.testing.assert_allclose(reverse / scale, second / scale, 0, 1e-10)
        error = (difference - second)[pairs] / scale
        np.testing.assert_allclose(error, 0, atol=1e-6)


@every_exponential
def test_the_mean_is_the_gradient_of_the_log_normalizer(name, tolerance):
    values = computed(name)
    mean, gradient = values["mean"][:3], values["gradient of A"][:3]
    np.testing.assert_allclose(mean, gradient, tolerance("identity"))


@every_exponential
def test_natural_inverts_the_mean_and_its_derivative_the_information(name):
    values, z = computed(name), np.asarray(ordinary(name))
    # Rounding of μ moves η by F⁻¹ times as much; the categorical F is singular.
    least = 1e-14 if name == "categorical" else 0.0
    for i, exact in enumerate(special(name, "fisher")):
        inverse = np.linalg.pinv(exact, least)
        blur = np.abs(inverse) @ np.abs(values["mean"][i]).reshape(-1) * 2e-15
        error = np.abs(values["natural"][i] - z[i]).reshape(-1)
        assert np.all(error <= 100 * blur + 1e-11 * np.abs(z[i]).reshape(-1) + 1e-14)
        if i < 3:
            product = exact @ values["jacobian of natural"][i] @ exact
            assert_matrices_agree(product, exact, 1e-8)
    if "from complement" in values:
        np.testing.assert_allclose(values["from complement"], z, 1e-9, 1e-14)


@every_exponential
def test_the_conjugate_is_the_legendre_transform(name, tolerance):
    values, z = computed(name), np.asarray(ordinary(name))[:3]
    inner = (z * values["mean"][:3]).reshape(3, -1).sum(1)
    conjugate = inner - values["A"][:3]
    np.testing.assert_allclose(
        values["conjugate"][:3], conjugate, tolerance("identity"), 1e-12
    )
    gradient = values["gradient of conjugate"][:3]
    np.testing.assert_allclose(gradient, z, tolerance("identity"), 1e-9)


@every_exponential
def test_kl_is_the_bregman_divergence_with_its_arguments_swapped(name, tolerance):
    values = computed(name)
    kl, (swapped, straight) = values["divergence"][:, 0], values["bregman"].T
    np.testing.assert_allclose(swapped[:3], kl[:3], tolerance("oracle"))
    assert np.any(np.abs(straight - kl)[:3] > 1e-4 * kl[:3])
