"""Each example runs, and its numbers are what it claims."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import natgrad as ng

EXAMPLES = Path(__file__).parent.parent / "examples"


def load(name):
    """The example as a module."""
    spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
    module = importlib.util.module_from_spec(spec)
    spec.loader.exec_module(module)
    return module


@pytest.fixture(autouse=True)
def relaxed():
    """Strictness is for the library."""
    with jax.numpy_rank_promotion("allow"):
        yield


@pytest.fixture
def run():
    """run(name, *arguments, **constants) -> what the example's main() returns."""

    def run_main(name, *arguments, **constants):
        module = load(name)
        for constant, value in constants.items():
            assert hasattr(module, constant)
            setattr(module, constant, value)
        return module.main(*arguments)

    return run_main


def test_every_example_is_tested():
    names = {path.stem for path in EXAMPLES.glob("[0-9]*.py")}
    source = Path(__file__).read_text()
    assert names
    assert all(f'run("{name}"' in source for name in names)


@pytest.mark.slow
def test_natural_gradient_needs_fewer_steps_than_adam(run):
    results = run("01_quickstart")
    assert results["natural_gradient"]["loss"] < results["adam"]["loss"] / 2
    assert results["natural_gradient"]["accuracy"] > 0.9


@pytest.mark.slow
def test_three_definitions_agree_and_the_empirical_fisher_is_another(run, tolerance):
    results = run("02_three_fishers")
    assert results["definitions"] < tolerance("identity")

    errors = results["sampled"]
    rates = [errors[n] / errors[16 * n] for n in (1, 16)]
    np.testing.assert_allclose(rates, 4, rtol=0.35)  # √16, from 8 draws

    steps = results["empirical"].values()
    for step in steps:
        assert abs(step["excess_natural"]) < tolerance("identity") * step["excess"]
        assert step["excess_empirical"] > step["excess"] / 2
        assert step["length"] < 0.2
    assert min(step["cosine"] for step in steps) < 0


@pytest.mark.slow
def test_flax_and_equinox_take_the_same_steps(run, tolerance):
    results = run("03_flax_and_equinox")
    first, *others = results["losses"].values()
    assert len(others) == 2
    assert first[-1] < first[0] / 4
    for losses in others:
        np.testing.assert_allclose(losses, first, rtol=tolerance("identity", "float32"))
    assert results["difference"] < tolerance("solve", "float32")


@pytest.mark.slow
def test_hypergradients_equal_differences_and_descend(run, tolerance):
    results = run("04_meta_learning")
    assert set(results["gradient"]) == {"log_damping", "log_learning_rate"}
    for name, value in results["gradient"].items():
        np.testing.assert_allclose(
            value, results["differences"][name], rtol=tolerance("differences")
        )
    assert results["losses"][-1] < results["losses"][0] / 2


@pytest.mark.slow
def test_kfac_lowers_the_loss_of_every_kind_of_model(run):
    results = run("05_kfac")
    assert set(results) == {"flax_cnn", "equinox_transformer", "scanned_layers"}
    for losses in results.values():
        assert losses[-1] < 0.7 * losses[0]


def is_picture(path):
    return path.read_bytes().startswith(b"\x89PNG")


@pytest.mark.slow
def test_the_pinn_solves_the_equation(run, tmp_path):
    picture = tmp_path / "pinn.png"
    fewer = {"SEEDS": 4, "STEPS": 120, "LIMITS": {"accelerated": 0.75}}
    errors = run("08_pinn", picture, **fewer)
    assert errors["accelerated"].shape == (4, 120)
    assert np.all(errors["accelerated"][:, -1] <= 1e-5)
    assert is_picture(picture)


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
    jax.tree.map(np.testing.assert_array_equal, same, params)
    assert (damping, growth) == (4e-9, 8.0)

    (moved, damping, growth), taken = step(params, 10.0, 4.0, inputs, 0.75)
    assert taken
    assert loss(moved, inputs) < loss(params, inputs)
    np.testing.assert_allclose(damping, 10 / 3, rtol=1e-6)  # nearly linear: ρ = 1
    assert growth == 2.0


@pytest.mark.slow
def test_variational_monte_carlo_finds_the_ground_energy(run, tmp_path):
    picture = tmp_path / "energy.png"
    smaller = {"CHAINS": 512, "SAMPLED_STEPS": 80, "MEASUREMENTS": 20}
    results = run("09_variational_monte_carlo", picture, **smaller)
    energies, exact = results["summed"], -12.78491
    assert len(energies) == 101
    assert abs(energies[-1] - exact) <= 1e-4 * abs(exact)
    assert abs(results["error"]) <= 1e-3
    assert is_picture(picture)


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


@pytest.mark.slow
def test_the_policy_learns_inside_its_trust_region(run, tmp_path):
    picture = tmp_path / "policy.png"
    results = run("10_trust_region_policy", picture, ITERATIONS=20)
    returns = results["returns"]
    assert np.mean(returns[-3:]) > np.mean(returns[:3]) / 3
    assert np.all(results["kl"] <= results["radius"])
    assert np.all(results["kl"] > results["radius"] / 10)
    assert np.any(results["whole_step_kl"] > results["radius"])
    assert is_picture(picture)


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


@pytest.mark.slow
def test_charts_differ_by_the_order_of_the_step_and_one_step_lands(run):
    results = run("06_manifolds")
    for value, by_hand in results["by_hand"].values():
        np.testing.assert_allclose(value, by_hand, rtol=1e-10)
    ends = np.array(list(results["one_step"].values()))
    assert np.ptp(ends, axis=0).min() > 0.1
    np.testing.assert_allclose(results["landing"]["natural"], [1, 0.5], rtol=1e-10)
    orders = results["orders"].values()
    np.testing.assert_allclose(list(orders), [1, 2, 4], rtol=0.15)
    for path in results["paths"].values():
        assert np.linalg.norm(path[-1] - [1, 0.5]) < np.linalg.norm(path[0]) / 4


@pytest.mark.slow
def test_exponentiated_gradient_finds_the_experts_and_one_step_fits(run):
    results = run("07_mirror_descent")
    losses = results["experts"]
    assert losses["best expert"] < losses["exponentiated"] < losses["projected"]
    assert max(results["identities"].values()) < 1e-10


@pytest.mark.slow
def test_inference_on_real_data(run, tmp_path):
    picture = tmp_path / "inference.png"
    fewer = {"BATCH_STEPS": 60, "NETWORK_STEPS": 400, "TUNING": 3}
    results = run("11_variational_inference", picture, **fewer)
    undamped, half, halved = results["fits"].values()
    assert undamped.state.cycle > 3
    assert half.state.cycle == halved.state.cycle == 0
    assert results["best"] - undamped.elbo[-1] > 0.1
    np.testing.assert_allclose(half.elbo[-1], results["best"], atol=1e-6)
    assert 0 < results["batches"] < 5
    assert results["poisson"]["difference"] < 1e-10
    posterior, exact = results["poisson"]["conjugate"]
    np.testing.assert_allclose(posterior, exact, rtol=1e-12)
    assert results["process"]["elbo"][-1] > results["process"]["elbo"][0] + 5
    assert results["process"]["accuracy"] > 0.93
    assert results["network"]["IVON, 64 draws"]["accuracy"] > 0.85
    assert is_picture(picture)
