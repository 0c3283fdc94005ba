"""Each example runs, and its numbers are what it claims."""

from __future__ import annotations

import importlib.util
from pathlib import Path

import jax
import numpy as np
import pytest

EXAMPLES = Path(__file__).parent.parent / "examples"


@pytest.fixture
def run():
    """run(name) -> what the example's main() returns."""

    def run_main(name):
        spec = importlib.util.spec_from_file_location(name, EXAMPLES / f"{name}.py")
        module = importlib.util.module_from_spec(spec)
        with jax.numpy_rank_promotion("allow"):  # strictness is for the library
            spec.loader.exec_module(module)
            return module.main()

    return run_main


def test_every_example_is_tested():
    names = {path.stem for path in EXAMPLES.glob("[0-9]*.py")}
    source = Path(__file__).read_text()
    assert names
    assert all(f'run("{name}")' in source for name in names)


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
