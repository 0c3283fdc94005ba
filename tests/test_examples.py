"""Each example runs, and its numbers are what it claims."""

from __future__ import annotations

from pathlib import Path

import jax
import numpy as np
import pytest
from loading import EXAMPLES, load


@pytest.fixture(autouse=True)
def relaxed():
    """Strictness is for the library."""
    with jax.numpy_rank_promotion("allow"):
        yield


@pytest.fixture
def run():
    """run(name, *arguments, **constants) -> what main() returns; a script's results."""

    def run_main(name, *arguments, **constants):
        module = load(name)
        for constant, value in constants.items():
            assert hasattr(module, constant)
            setattr(module, constant, value)
        return module.main(*arguments) if hasattr(module, "main") else module.results

    return run_main


def test_every_example_is_tested():
    names = {path.stem for path in EXAMPLES.glob("[0-9]*.py")}
    source = Path(__file__).read_text()
    assert names
    assert all(f'run("{name}"' in source for name in names)


@pytest.mark.slow
def test_natural_gradient_needs_fewer_steps_than_adam(run):
    best = {"natural_gradient": (0.3,), "adam": (0.03,)}  # of their grids
    results = run("01_quickstart", RATES=best)
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
    fewer = {"SEEDS": 2, "STEPS": 100, "LIMITS": {"accelerated": 0.75}}
    errors = run("08_pinn", picture, **fewer)
    assert errors["accelerated"].shape == (2, 100)
    assert np.all(errors["accelerated"][:, -1] <= 1e-5)
    assert is_picture(picture)


@pytest.mark.slow
def test_a_bar_cools_as_its_equation_says(run):
    errors = run("25_pinns", 1)
    assert len(errors) == 1
    assert max(errors) <= 1e-4


@pytest.mark.slow
def test_the_diffusivity_of_a_rod_is_found_in_any_unit(run):
    errors = run("26_inverse_pinn", 1, STEPS=100)
    assert len(errors) == 6
    for (damping, unit), found in errors.items():
        lost = (damping, unit) == ("λ I", "mm²/day")
        assert lost == (max(found) > 1)
        assert damping != "λ I, κ/κ₀" or max(found) <= 1e-4


@pytest.mark.slow
def test_variational_monte_carlo_finds_the_ground_energy(run, tmp_path):
    picture = tmp_path / "energy.png"
    smaller = {"CHAINS": 512, "SAMPLED_STEPS": 80, "MEASUREMENTS": 20, "SEEDS": 1}
    results = run("09_variational_monte_carlo", picture, **smaller)
    energies, exact = results["summed"], -12.78491
    assert len(energies) == 101
    assert abs(energies[-1] - exact) <= 1e-4 * abs(exact)
    assert abs(results["errors"][0]) <= 1e-3
    assert is_picture(picture)


@pytest.mark.slow
def test_the_frustrated_chain_finds_its_ground_energy(run, tmp_path):
    """Majumdar and Ghosh's, and that of the 252 x 252 matrix."""
    picture = tmp_path / "chain.png"
    errors = run("27_frustrated_chain", picture, SEEDS=2)
    assert np.all(errors[:, -1] <= 1e-4)
    assert np.all(errors >= -1e-12)  # variational
    assert is_picture(picture)


@pytest.mark.slow
def test_helium_finds_its_ground_energy(run, tmp_path):
    picture = tmp_path / "helium.png"
    found = run("28_helium", picture)
    assert abs(found["energy"] + 2.903724) <= min(4 * found["error"], 3e-3)
    assert found["error"] <= 1e-3
    assert is_picture(picture)


@pytest.mark.slow
def test_the_policy_learns_inside_its_trust_region(run, tmp_path):
    picture = tmp_path / "policy.png"
    results = run("10_trust_region_policy", picture, ITERATIONS=20)
    returns = results["returns"]
    assert np.mean(returns[-3:]) > np.mean(returns[:3]) / 3
    assert np.all(results["kl"] <= results["radius"])
    assert np.all(results["kl"] > results["radius"] / 10)
    assert np.all(results["whole_step_kl"] <= 1.001 * results["radius"])
    assert is_picture(picture)


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
    fewer = {"BATCH_STEPS": 60, "TUNING": 3}
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
    assert is_picture(picture)


@pytest.mark.slow
def test_a_network_of_laws_sees_digits(run, tmp_path):
    picture = tmp_path / "network.png"
    results = run("13_variational_network", picture, STEPS=400)
    assert results["IVON, 64 draws"]["accuracy"] > 0.85
    assert is_picture(picture)


@pytest.mark.slow
def test_metagradients_foresee_retraining_and_curvature_helps(run):
    found = run("19_data_attribution")
    assert found["metagradient"] > 0.95
    assert found["dense"] > found["none"] + 0.1


@pytest.mark.slow
def test_both_ways_of_many_devices_take_the_same_steps(run, tolerance):
    results = run("12_data_parallel")
    jitted, mapped = results["under_jit"], results["under_shard_map"]
    assert jitted[-1] < jitted[0] / 20
    np.testing.assert_allclose(mapped, jitted, rtol=tolerance("solve", "float32"))


@pytest.mark.slow
@pytest.mark.parametrize(
    "train",
    [
        lambda run: run("14_nnx_cnn", EPOCHS=3),
        lambda run: run("15_equinox_transformer", EPOCHS=6),
        lambda run: run("16_linen_batchnorm_dropout", EPOCHS=3)["kfac"],
        lambda run: run("17_haiku", EPOCHS=3),
        lambda run: run("18_keras", EPOCHS=3),
    ],
    ids=["nnx", "equinox", "linen", "haiku", "keras"],
)
def test_networks_of_frameworks_learn_digits(run, train, single_precision):
    results = train(run)
    assert np.mean(results["losses"][-12:]) < results["losses"][0] / 4
    assert results["accuracy"] > 0.7


@pytest.mark.slow
def test_the_fisher_per_example_keeps_the_first_task(run):
    results = run("20_elastic_weight_consolidation")
    first = {name: accuracy for name, (accuracy, _) in results.items()}
    assert first["square of the mean gradient"] < first["nothing held"] + 0.05 < 0.7
    assert first["diagonal Fisher"] > 0.85
    assert first["K-FAC"] > 0.85
    assert results["K-FAC"][1] > results["diagonal Fisher"][1] + 0.05


@pytest.mark.slow
def test_networks_merged_by_their_fishers_know_both_halves(run):
    losses = {name: loss for name, (loss, _) in run("21_fisher_merging").items()}
    alone = min(losses["the first alone"], losses["the second alone"])
    assert losses["plain mean"] < alone / 2
    assert losses["K-FAC"] < 0.9 * losses["plain mean"]
    assert losses["exact Fisher"] < 0.9 * losses["plain mean"]


@pytest.mark.slow
def test_pruning_by_the_fisher_costs_less_than_by_magnitude(run):
    results = {name: losses[2] for name, losses in run("22_pruning").items()}
    assert results["damage"] < results["magnitude"]
    assert results["damage, others follow"] < 0.9 * results["damage"]
    assert results["surgeon, others follow"] < 0.9 * results["damage"]


@pytest.mark.slow
def test_sandwich_errors_are_whites(run):
    results = run("23_sandwich_errors")
    np.testing.assert_allclose(
        results["sandwich"], results["White's formula (HC0)"], rtol=1e-9
    )
    slope = results["spread of 2000 fits"][1]
    assert results["sandwich"][1] == pytest.approx(slope, rel=0.15)
    assert results["inverse Fisher"][1] < 0.7 * slope


@pytest.mark.slow
def test_preconditioned_langevin_dynamics_has_the_posterior(run):
    results = run("24_preconditioned_langevin")
    assert results["preconditioned"][0] < 0.05
    assert results["preconditioned"][1] == pytest.approx(1, abs=0.15)
    assert results["Langevin"][1] < 0.1
