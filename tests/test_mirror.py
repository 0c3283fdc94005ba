"""Mirror descent: both identities with the natural gradient, at finite step."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from manifolds import MANIFOLDS, NAMES, coordinates

import natgrad.families as nf
from natgrad import geometry
from natgrad.transforms.mirror_descent import (
    dual_mirror_descent,
    mirror_descent,
    scale_by_dual,
)


def start(name, dtype=jnp.float64):
    """η of two factors, each with its own law."""
    manifold = MANIFOLDS[name]
    at = lambda i: geometry.Point(manifold.family, manifold.chart, coordinates(name, i))
    return jnp.stack([at(0).natural, at(1).natural]).astype(dtype)


def loss(family, eta):
    """Of the law, and not a divergence."""
    mu = family.mean(eta)
    weights = jnp.cos(jnp.arange(mu.size, dtype=mu.dtype)).reshape(mu.shape)
    return jnp.sum(weights * mu) + 0.1 * jnp.sum(jnp.sin(mu))


def stepped(tx, value, x):
    """One update of the gradient of `value`, compiled."""

    @jax.jit
    def step(x):
        gradient = jax.grad(value)(x)
        updates, _ = tx.update(gradient, tx.init(x), x)
        return optax.apply_updates(x, updates), gradient

    return step(x)


@pytest.mark.parametrize("name", NAMES)
def test_mirror_descent_is_the_natural_gradient_in_the_mean(name):
    """μ' = μ − h ∇_η L, and = μ − h F_μ⁻¹ ∇_μ L by `natural_step`, factor by factor."""
    family, eta, h = MANIFOLDS[name].family, start(name), 0.07
    value = lambda eta: loss(family, eta)
    new, gradient = stepped(mirror_descent(h, family), value, eta)
    mu = family.mean(eta)
    np.testing.assert_allclose(family.mean(new), mu - h * gradient, 1e-12, 1e-14)

    def natural(mu):
        p = geometry.Point(family, "expectation", mu)
        return geometry.natural_step(lambda q: value(q.natural), p, h).mean

    if name != "categorical":  # one factor has one constraint; here there are two
        np.testing.assert_allclose(family.mean(new), jax.jit(natural)(mu), 1e-10)


@pytest.mark.parametrize("name", NAMES)
def test_the_dual_is_the_natural_gradient_in_natural_parameters(name):
    """η' = η − h ∇_μ L: the gradient in μ taken by autodiff through natural(μ)."""
    family, eta, h = MANIFOLDS[name].family, start(name), 0.07
    new, _ = stepped(dual_mirror_descent(h, family), lambda x: loss(family, x), eta)
    in_mean = jax.grad(lambda mu: loss(family, family.natural(mu)))
    expected = eta - h * jax.jit(in_mean)(family.mean(eta))
    np.testing.assert_allclose(family.mean(new), family.mean(expected), 1e-11)


def test_scale_by_dual_composes_with_optax():
    family, eta = nf.Normal(), start("normal")
    value = lambda eta: loss(family, eta)
    chain = optax.chain(scale_by_dual(family), optax.scale_by_learning_rate(0.07))
    composed, _ = stepped(chain, value, eta)
    whole, _ = stepped(dual_mirror_descent(0.07, family), value, eta)
    np.testing.assert_allclose(composed, whole, 1e-14)


def test_the_two_are_different_iterates_that_agree_to_first_order():
    family, eta = nf.Exponential(), start("exponential")
    gaps = []
    for h in (1e-2, 5e-3):
        a, _ = stepped(mirror_descent(h, family), lambda x: loss(family, x), eta)
        b, _ = stepped(dual_mirror_descent(h, family), lambda x: loss(family, x), eta)
        gaps.append(float(jnp.max(jnp.abs(a - b))))
    assert gaps[1] > 1e-7
    np.testing.assert_allclose(np.log2(gaps[0] / gaps[1]), 2, atol=0.1)


def test_exponentiated_gradient_falls_out():
    """p' ∝ p e^{−h g}, for probabilities as parameters."""
    p = jnp.array([[0.2, 0.3, 0.5], [0.6, 0.3, 0.1]])
    costs = jnp.array([[1.0, 2.0, -1.0], [0.0, 0.5, 3.0]])
    potential = geometry.DualPotential(nf.Categorical())
    tx = mirror_descent(0.3, potential)
    new, _ = stepped(tx, lambda p: jnp.sum(costs * p), p)
    expected = p * np.exp(-0.3 * costs)
    expected /= expected.sum(-1, keepdims=True)
    np.testing.assert_allclose(new, expected, 1e-12)


def test_exponentiated_gradient_has_its_regret_bound():
    """Regret ≤ log C/h + h T/2 for any costs in [0, 1]."""
    rounds, classes, h = 200, 5, 0.1
    costs = np.random.default_rng(0).random((rounds, classes)) ** 3
    tx = mirror_descent(h, geometry.DualPotential(nf.Categorical()))
    p = jnp.full(classes, 1 / classes)

    def play(carry, cost):
        p, state = carry
        updates, state = tx.update(cost, state, p)
        return (optax.apply_updates(p, updates), state), cost @ p

    carry, paid = jax.jit(lambda p, c: jax.lax.scan(play, (p, tx.init(p)), c))(p, costs)
    regret = paid.sum() - costs.sum(0).min()
    assert -1e-9 < regret < np.log(classes) / h + h * rounds / 2
    np.testing.assert_allclose(carry[0].sum(), 1, 1e-12)
    assert carry[1].count == rounds


def test_one_step_is_the_maximum_of_likelihood():
    """Of labels y of two factors, from anywhere."""
    family, eta = nf.Normal(), start("normal")
    y = jnp.array([[0.1, 3.0], [0.9, -1.0], [-0.4, 2.0]])
    nll = lambda eta: -jnp.mean(jax.vmap(lambda y: family.log_prob(eta, y))(y))
    new, _ = stepped(mirror_descent(1.0, family), nll, eta)
    mean, variance = np.mean(y, axis=0), np.var(y, axis=0)
    np.testing.assert_allclose(new, np.stack([mean / variance, -0.5 / variance], -1))


@pytest.mark.parametrize("name", ["bernoulli", "gamma", "normal"])
@pytest.mark.parametrize("make", [mirror_descent, dual_mirror_descent])
def test_no_step_size_leaves_the_domain(name, make):
    family, eta = MANIFOLDS[name].family, start(name, jnp.float32)
    inside = MANIFOLDS[name].inside["natural"]

    @jax.jit
    def run(eta, h):
        tx = make(h, family)
        updates, _ = tx.update(
            jax.grad(lambda x: loss(family, x))(eta), tx.init(eta), eta
        )
        return optax.apply_updates(eta, updates)

    for h in (1.0, 30.0, 1e6, -1e6):
        new = run(eta, h)
        assert new.dtype == jnp.float32
        assert all(inside(factor) for factor in np.asarray(new)), (h, new)


def test_a_factor_at_its_boundary_does_not_hold_back_another():
    family = nf.Exponential()
    eta, gradient = jnp.array([-1.0, -1.0]), jnp.array([1e3, 0.1])
    tx = mirror_descent(1.0, family)
    updates, _ = tx.update(gradient, tx.init(eta), eta)
    mu = family.mean(eta + updates)
    np.testing.assert_allclose(mu, [1e-3, 0.9], 1e-6)


def test_trees_schedules_injected_hyperparameters_and_vmap():
    family = nf.Normal()
    params = {"a": start("normal")[0], "b": start("normal")}
    rates = jnp.array([0.1, 0.2])

    @jax.jit
    def results(params):
        gradient = jax.tree.map(lambda x: 0.1 * jnp.ones_like(x), params)

        def after(tx, steps=2):
            state, x = tx.init(params), params
            for _ in range(steps):
                updates, state = tx.update(gradient, state, x)
                x = optax.apply_updates(x, updates)
            return x

        injected = optax.inject_hyperparams(mirror_descent, static_args="family")
        plain = mirror_descent(0.1, family)
        scheduled = after(mirror_descent(lambda count: 0.1 / (1 + count), family))
        return (
            jax.tree.map(family.mean, (scheduled, params)),
            (after(injected(learning_rate=0.1, family=family)), after(plain)),
            jax.vmap(lambda h: after(mirror_descent(h, family), 1)["a"])(rates),
            after(plain, 1)["a"],
        )

    (scheduled, mu), (injected, plain), many, alone = results(params)
    for got, first in zip(jax.tree.leaves(scheduled), jax.tree.leaves(mu), strict=True):
        np.testing.assert_allclose(got, first - 0.1 * 0.1 * 1.5, 1e-12)
    np.testing.assert_allclose(injected["b"], plain["b"], 1e-12)
    np.testing.assert_allclose(many[0], alone, 1e-12)


@pytest.mark.parametrize("make", [mirror_descent, dual_mirror_descent])
def test_derivatives_through_two_steps(make):
    """In the step size, against central differences."""
    family, eta = nf.Gamma(), start("gamma")

    @jax.jit
    def after(h):
        tx, x = make(h, family), eta
        for _ in range(2):
            g = jax.grad(lambda x: loss(family, x))(x)
            x = x + tx.update(g, tx.init(x), x)[0]
        return loss(family, x)

    difference = (after(0.05 + 1e-5) - after(0.05 - 1e-5)) / 2e-5
    np.testing.assert_allclose(jax.grad(after)(0.05), difference, 1e-6)


def test_bad_input_is_refused():
    with pytest.raises(ValueError, match=r"NormalMean.*expected an Exponential"):
        mirror_descent(0.1, nf.NormalMean())
    with pytest.raises(ValueError, match="expected an ExponentialFamily"):
        dual_mirror_descent(0.1, nf.NormalMean())
    tx = mirror_descent(0.1, nf.Poisson())
    with pytest.raises(ValueError, match=r"update\(gradient, state, params\)"):
        tx.update(jnp.ones(2), tx.init(jnp.ones(2)))
    with pytest.raises(ValueError, match="real floating"):
        tx.init(jnp.ones(2, int))
