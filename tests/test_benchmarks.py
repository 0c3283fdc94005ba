"""The benchmarks run, at toy size, and write what they say they write."""

from __future__ import annotations

import importlib
import json
import math

import jax
import optax
import pytest

from benchmarks import (
    conjugate_gradients,
    first_step,
    momentum,
    problems,
    sample_memory,
    sample_space,
    solvers,
    stages,
    step_cost,
    timing,
)

TASK = {"seconds", "fastest_seconds", "cpu_seconds", "compile_seconds"}


def test_solvers_writes_its_figures(tmp_path, capsys):
    path = tmp_path / "solvers.json"
    arguments = ["--sizes", "40", "70", "--rounds", "2", "--batch", "3", "4"]
    report = solvers.main([*arguments, "--json", str(path)])
    assert json.loads(path.read_text()) == report
    assert set(report) == {"environment", "dense", "batch"}
    assert report["environment"]["versions"]["jax"]

    assert set(report["dense"]["matmul"]) == TASK | {"size", "operations_per_second"}
    parameters = [row["parameters"] for row in report["dense"]["sizes"]]
    assert parameters == [37, 64]
    for row in report["dense"]["sizes"]:
        assert row["floor_seconds"] > 0
        assert set(row["tasks"]) == {"gram", "solve", "kernel", "whole"}
        for task in row["tasks"].values():
            assert set(task) == TASK | {"ratio", "cpu_ratio"}
            assert all(math.isfinite(figure) for figure in task.values())

    assert (report["batch"]["count"], report["batch"]["size"]) == (3, 4)
    assert set(report["batch"]["tasks"]) == {"vmap", "loop", "calls"}
    assert set(report["batch"]["speedup"]) == {"loop", "calls"}
    assert all(ratio["ratio"] > 0 for ratio in report["batch"]["speedup"].values())
    assert "wall/floor" in capsys.readouterr().out


def test_tasks_of_a_round_are_interleaved():
    order = []
    tasks = {name: (lambda name=name: order.append(name), 0.5) for name in "ab"}
    timings = timing.interleaved(tasks, rounds=2)
    assert order == ["a", "b"] * 3  # one round warms up
    assert [len(times) for times in timings["a"][:2]] == [2, 2]
    assert timings["a"].summary()["compile_seconds"] == 0.5


@pytest.mark.parametrize("section", ["autoencoder", "examples", "kernel"])
def test_sample_space_writes_its_figures(section, tmp_path):
    path = tmp_path / "gram.json"
    arguments = ["--scale", "0.01", "--rounds", "1", "--json", str(path)]
    with jax.numpy_rank_promotion("allow"):  # its models are spelled as users would
        report = sample_space.main([*arguments, "--sections", section])
    assert json.loads(path.read_text()) == report
    assert set(report) == {"environment", section}
    for row in report[section]:
        assert row["ratio"] > 0
        assert all(set(task) == TASK for task in row["tasks"].values())
        assert section != "autoencoder" or row["memory_ratio"] > 0


def test_the_memory_of_a_solve_is_measured(capsys):
    with jax.numpy_rank_promotion("allow"):
        arguments = ["--cases", "rows", "--examples", "6", "--width", "4", "--child"]
        found = sample_memory.main(arguments)
    assert json.loads(capsys.readouterr().out) == found
    assert (found["parameters"], found["examples"]) == (784 * 4 + 4 * 4 + 4 * 10, 6)
    assert found["finite"]
    assert found["peak"] > found["compiled"] > 4 * found["parameters"]


def test_conjugate_gradients_count_iterations(tmp_path):
    path = tmp_path / "cg.json"
    arguments = ["--models", "regression", "--steps", "0", "--dampings", "1e-1"]
    with jax.numpy_rank_promotion("allow"):
        report = conjugate_gradients.main([*arguments, "--json", str(path)])
    assert json.loads(path.read_text()) == report
    (row,) = report["rows"]
    assert row["difference"] < 0.1  # both stop at a residual of 1e-4
    assert row["kronecker"] > 0
    assert 0 < row["nystrom"] < row["identity"] / 2


def test_momentum_counts_steps_to_the_energy(tmp_path, monkeypatch):
    """One step is too few for any rule, and the page says so; a rule of each kind."""
    rules = ("rows", "parameters, unbounded", "march by scores")
    monkeypatch.setattr(momentum, "RULES", rules)
    arguments = ["--settings", "sampled 64", "--seeds", "1", "--grid", "0.9"]
    report = momentum.main([*arguments, "--steps", "1", "--output", str(tmp_path)])
    (found,) = report["settings"].values()
    assert set(found) == {"μ = 0.9", *rules}
    assert all(v["steps"] == [float("inf")] for v in found.values())
    page = (tmp_path / "momentum.md").read_text()
    assert "| rows | – | – | – | – |" in page


def test_first_steps_are_compiled_once_and_taken_outside_of_jit_each(
    tmp_path, monkeypatch
):
    x = jax.random.normal(jax.random.PRNGKey(0), (4, 12))
    toy = lambda: problems.classified(
        problems.dense_apply, problems.dense_layers([12, 10]), x
    )
    traced = []

    def counted(_):
        init, update = optax.adam(1e-3)

        def counting(gradient, state, params, **given):
            traced.append(isinstance(given["value"], jax.core.Tracer))
            return update(gradient, state, params)

        return optax.GradientTransformationExtraArgs(init, counting)

    monkeypatch.setattr(first_step, "MODELS", {"toy": toy})
    monkeypatch.setitem(first_step.OPTIMIZERS, "adam", counted)
    arguments = ["--models", "toy", "--against", "--rounds", "2"]
    with jax.numpy_rank_promotion("allow"):
        report = first_step.main([*arguments, "--output", str(tmp_path)])
    # XLA's start and the program; the first, one to fill caches, two rounds.
    assert traced == [True] * 2 + [False] * 4
    assert json.loads((tmp_path / "first_step.json").read_text()) == report
    found = report["models"]["toy"]["adam"]
    assert found["first"] > found["trace"] + found["lower"] + found["compile"] > 0
    page = (tmp_path / "first_step.md").read_text()
    assert "| adam | 1 | 1 | 1 | 1 |" in page


USED = ("statistics of part", "inverse", "apply", "apply rows", "divergence")


def test_step_cost_writes_figures_and_tables(tmp_path, monkeypatch):
    x = jax.random.normal(jax.random.PRNGKey(0), (4, 12))
    toy = lambda: problems.classified(
        problems.dense_apply, problems.dense_layers([12, 9, 10]), x
    )
    monkeypatch.setattr(step_cost, "MODELS", {"toy": toy})
    monkeypatch.setattr(step_cost, "RESULTS", tmp_path)
    arguments = ["--against", "kfac rows", "--rounds", "1", "--write"]
    with jax.numpy_rank_promotion("allow"):
        report = step_cost.main(arguments)
    assert json.loads((tmp_path / "step_cost.json").read_text()) == report
    found = report["models"]["toy"]
    assert set(found["stages"]) == set(stages.PARTS)
    for stage in found["stages"].values():
        assert stage["operations"] > 0
        rate = found["operations_per_cpu_second"]
        assert math.isclose(stage["floor_seconds"], stage["operations"] / rate)
    factors = 13**3 + 9**3 + 10**3 + 10**3  # with the biases' rows
    assert found["stages"]["inverse"]["operations"] == factors
    seconds = [s["floor_seconds"] for s in map(found["stages"].get, USED)]
    floor = seconds[0] / 5 + seconds[1] / 10 + min(seconds[2:4]) + seconds[4]
    adam = found["tasks"]["adam"]["cpu_seconds"]
    assert math.isclose(found["floors_over_adam"]["kfac rows"], 1 + floor / adam)
    page = (tmp_path / "step_cost.md").read_text()
    assert "### toy: 217 parameters" in page
    assert "| kfac rows |" in page


COUNTING = "attribution convergence drop_in.__main__ first_step laplace momentum"
COUNTING += " sample_space scaling solvers step_cost"


@pytest.mark.parametrize("name", COUNTING.split())
def test_counts_are_whole_numbers_above_0(name, capsys):
    """A benchmark of no rounds or no seeds would write NaN."""
    main = importlib.import_module(f"benchmarks.{name}").main
    for count in "0", "-3", "2.5":
        for option in "--rounds", "--seeds":  # each has one of them
            with pytest.raises(SystemExit, match="2"):
                main([option, count])
        assert f">= 1, got '{count}'" in capsys.readouterr().err
