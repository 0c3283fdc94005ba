"""Parts of the examples, each against an independent computation."""

from __future__ import annotations

import chex
import jax
import jax.numpy as jnp
import numpy as np
import pytest
from loading import load

import natgrad as ng
from benchmarks import pinn_problems


@pytest.fixture(autouse=True)
def relaxed():
    """Strictness is for the library."""
    with jax.numpy_rank_promotion("allow"):
        yield


def test_the_pinn_sees_the_laplacian_of_its_network():
    pinn = load("08_pinn")
    params = pinn.initial_params(jax.random.key(0))
    x = jnp.array([[0.3, 0.6], [0.0, 0.2]])
    inputs = {"x": x, "boundary": jnp.array([False, True])}
    found = jax.jit(pinn.residuals)(params, inputs)

    w1, b1, w2, b2 = (np.asarray(params[name]) for name in ("w1", "b1", "w2", "b2"))
    hidden = np.tanh(np.asarray(x) @ w1 + b1)
    curved = -2 * hidden * (1 - hidden**2) * np.sum(w1**2, axis=0)
    source = 2 * np.pi**2 * np.sin(0.3 * np.pi) * np.sin(0.6 * np.pi)
    expected = [curved[0] @ w2[:, 0] + source, hidden[1] @ w2[:, 0] + b2[0]]
    np.testing.assert_allclose(found, expected, rtol=1e-12)


def test_a_pinn_step_is_taken_only_downhill():
    pinn = load("08_pinn")
    inputs = jax.tree.map(lambda leaf: leaf[::20], pinn.collocation())
    params = pinn.initial_params(jax.random.key(0))
    loss = jax.jit(pinn.half_mean_square)
    step = jax.jit(pinn.step)

    (same, damping, growth), taken = step(params, 1e-9, 4.0, inputs, 0.0)
    assert not taken
    chex.assert_trees_all_equal(same, params)
    assert (damping, growth) == (4e-9, 8.0)

    (moved, damping, growth), taken = step(params, 10.0, 4.0, inputs, 0.75)
    assert taken
    assert loss(moved, inputs) < loss(params, inputs)
    np.testing.assert_allclose(damping, 10 / 3, rtol=1e-6)  # nearly linear: ρ = 1
    assert growth == 2.0


def test_the_exact_solutions_of_the_pinns_solve_their_equations():
    """Differences of the formulas, and Burgers' start −sin πx."""
    (*_, heat, _), (*_, burgers, _) = pinn_problems.heat(), pinn_problems.burgers()
    x, h = np.array([[0.3, 0.4], [0.7, 0.15]]), 1e-3
    t_step, x_step = h * np.eye(2)

    def parts(u):
        u_t = (u(x + t_step) - u(x - t_step)) / (2 * h)
        u_x = (u(x + x_step) - u(x - x_step)) / (2 * h)
        u_xx = (u(x + x_step) - 2 * u(x) + u(x - x_step)) / h**2
        return u(x), u_t, u_x, u_xx

    _, u_t, _, u_xx = parts(heat)
    np.testing.assert_allclose(u_t, u_xx / 10, rtol=1e-4)
    u, u_t, u_x, u_xx = parts(burgers)
    np.testing.assert_allclose(u_t + u * u_x, u_xx / 20, atol=1e-4)
    start = burgers(np.array([[0.0, 0.4]]))
    np.testing.assert_allclose(start, -np.sin(0.4 * np.pi), rtol=1e-12)


@pytest.fixture(scope="module")
def chain():
    """(example, parameters far from 0, H) of a chain of 4 spins."""
    vmc, spins = load("09_variational_monte_carlo"), 4
    params = vmc.initial_params(jax.random.key(0), spins)
    params = jax.tree.map(lambda p: 40 * p, params)
    flip, sign = np.array([[0, 1], [1, 0]]), np.diag([1, -1])

    def product(operators):
        # Site 0 is the lowest bit of a configuration's number, hence the last factor.
        whole = np.eye(1)
        for site in reversed(range(spins)):
            whole = np.kron(whole, operators.get(site, np.eye(2)))
        return whole

    hamiltonian = np.zeros((2**spins, 2**spins))
    for i in range(spins):
        hamiltonian -= product({i: flip})
        hamiltonian -= product({i: sign, (i + 1) % spins: sign})
    return vmc, params, hamiltonian


def test_a_step_of_the_wave_function_is_its_natural_gradient(chain):
    """Energy: the Rayleigh quotient of H; F: that of one categorical law of all s."""
    vmc, params, hamiltonian = chain
    s = vmc.configurations(4)
    law = ng.Model(
        lambda params, _: 2 * vmc.log_amplitude(params, s)[None],
        ng.families.Categorical(),
    )

    def quotient(params):
        psi = jnp.exp(vmc.log_amplitude(params, s))
        return psi @ hamiltonian @ psi / (psi @ psi)

    @jax.jit
    def expect(params):
        energy, gradient = jax.value_and_grad(quotient)(params)
        fisher = ng.curvature.KLHessian(law).at(params, None)
        return energy, fisher.solve(gradient, vmc.DAMPING)

    @jax.jit
    def find(params):
        weight = jax.nn.softmax(2 * vmc.log_amplitude(params, s))
        updated, _, energy = vmc.step(params, vmc.tx.init(params), s, weight)
        return energy, jax.tree.map(lambda p, q: (p - q) / vmc.RATE, params, updated)

    (found, direction), (energy, expected) = find(params), expect(params)
    np.testing.assert_allclose(found, energy, rtol=1e-12)
    for name in params:
        np.testing.assert_allclose(
            direction[name], expected[name], rtol=1e-8, atol=1e-10
        )
    ground = np.linalg.eigvalsh(hamiltonian)[0]
    np.testing.assert_allclose(vmc.ground_energy(4), ground, rtol=1e-12)


def test_a_sweep_keeps_the_law_of_the_wave_function(chain):
    """Chains that start from ψ² are distributed like ψ² after it, and have moved."""
    vmc, params, _ = chain
    s, chains = vmc.configurations(4), 20_000
    p = np.asarray(jax.nn.softmax(2 * vmc.log_amplitude(params, s)))
    start = np.random.default_rng(0).choice(16, size=chains, p=p)
    end = jax.jit(vmc.sweep)(jax.random.key(1), params, s[start])
    end = np.asarray(end < 0) @ 2 ** np.arange(4)
    counts = np.bincount(end, minlength=16)
    z = (counts - chains * p) / np.sqrt(chains * p * (1 - p))
    assert np.max(np.abs(z)) < 4
    assert np.mean(end != start) > 0.2


def test_advantages_are_discounted_sums_of_errors():
    policy = load("10_trust_region_policy")
    rng = np.random.default_rng(0)
    params = policy.initial_network(jax.random.key(0))
    params = jax.tree.map(lambda p: jnp.asarray(rng.normal(size=p.shape)), params)
    seen, last = rng.normal(size=(5, 2, 3)), rng.normal(size=(2, 3))
    rewards = rng.normal(size=(5, 2))
    found, returns = jax.jit(policy.advantages)(params, seen, rewards, last)

    value = lambda x: np.asarray(policy.network(params, x))[..., 0]
    values = np.concatenate([value(seen), value(last)[None]])
    gamma, trace = policy.DISCOUNT, policy.TRACE
    errors = rewards / policy.VALUE_UNIT + gamma * values[1:] - values[:-1]
    expected = [
        sum((gamma * trace) ** (u - t) * errors[u] for u in range(t, 5))
        for t in range(5)
    ]
    np.testing.assert_allclose(found, expected, rtol=1e-10)
    np.testing.assert_allclose(returns, found + values[:-1], rtol=1e-10)
