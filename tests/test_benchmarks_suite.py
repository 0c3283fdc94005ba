"""The suite of benchmarks runs at toy size: memory, scaling, equations."""

from __future__ import annotations

import json

import jax
import numpy as np
import pytest

import benchmarks.__main__ as suite
from benchmarks import (
    data,
    laplace,
    memory,
    pinn,
    pinn_problems,
    scaling,
    training,
)


def test_problems_repeat_by_their_seed():
    problem = training.curves(batch=4)
    assert problem.x.shape == (5000, 784)
    assert 0.02 < float(problem.x.mean()) < 0.3
    first, second = (problem.picks(seed=3) for _ in range(2))
    np.testing.assert_array_equal(next(first), next(second))
    assert not np.array_equal(next(first), next(problem.picks(seed=4)))
    text = data.library_text(2000)
    assert text.shape == (2000,)
    assert text.max() < 128


@pytest.mark.slow
@pytest.mark.parametrize(
    ("problem", "steps", "bound"),
    [
        ("poisson2", 60, 2e-6),
        ("poisson5", 30, 5e-3),
        ("heat", 60, 5e-4),
        ("burgers", 50, 5e-4),
    ],
)
def test_four_equations_are_solved(problem, steps, bound):
    """In fewer steps than the page takes, and so less well."""

    def shorter():
        *before, _, u, exact, test = getattr(pinn_problems, problem)()
        return *before, steps, u, exact, test

    with jax.numpy_rank_promotion("allow"):
        (error,) = pinn_problems.main(1, [shorter])["shorter"]
    assert error <= bound


@pytest.mark.slow
def test_a_race_of_networks_for_an_equation_measures_until_time_is_up():
    arguments = ["--problems", "poisson2", "--methods", "adam", "--seconds", "0.01"]
    with jax.numpy_rank_promotion("allow"):
        found = pinn.main(arguments)["poisson2"]["adam"]
    assert found["steps"][-1] == 500 * (len(found["error"]) - 1) > 0
    assert found["error"][-1] < found["error"][0]
    assert found["cpu"][-1] >= 0.01 > found["cpu"][-2]


def test_memory_is_explained_by_factors(tmp_path):
    arguments = ["--models", "classifier", "--optimizers", "kfac"]
    with jax.numpy_rank_promotion("allow"), jax.enable_x64(False):
        memory.main([*arguments, "--output", str(tmp_path)])
    found = json.loads((tmp_path / "memory.json").read_text())["models"]["classifier"]
    shapes = {tuple(f["shape"]): f["count"] for f in found["kfac_factors"]}
    assert shapes == {(785, 785): 2, (513, 513): 4, (512, 512): 4, (10, 10): 2}
    adam, kfac = (found["optimizers"][name] for name in ("adam", "kfac"))
    # Adam keeps θ, m and v; K-FAC θ, the last step, factors and their inverses.
    assert adam["kept"] == pytest.approx(3 * found["parameter_bytes"], rel=1e-3)
    expected = 2 * found["parameter_bytes"] + found["kfac_factor_bytes"]
    assert kfac["kept"] == pytest.approx(expected, rel=1e-3)
    assert kfac["over_adam"]["peak"] == kfac["peak"] / adam["peak"]


def test_the_suite_runs_scaling_and_reports_what_failed(tmp_path, monkeypatch):
    toy = "--sections examples --optimizers adam --widths 4 --batches 2 4 --rounds 1"
    runs = {
        "memory": (memory, None, "--models 'none such'"),
        "scaling": (scaling, None, toy),
        "laplace": (laplace, "", None),
    }
    monkeypatch.setattr(suite, "SUITE", runs)
    with jax.numpy_rank_promotion("allow"):
        memory_run, scaling_run = suite.main(["--toy", "--output", str(tmp_path)])
    assert memory_run["error"].startswith("SystemExit")
    assert scaling_run["error"] is None
    found = json.loads((tmp_path / "scaling.json").read_text())["examples"]
    assert [row["grown"] for row in found["rows"]] == [2, 4]
    assert np.isfinite(found["slopes"]["adam"])
    assert "scaling.md" in (tmp_path / "index.md").read_text()
