"""Races: equal budgets, held-out data, what curves amount to, a toy race, its page."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from benchmarks import (
    convergence,
    data,
    peers,
    profiles,
    race_problems,
    races,
    races_page,
    racing,
    radius,
    report,
)
from benchmarks.held_out import divided
from benchmarks.optimizers import OPTIMIZERS, OURS, PEERS
from benchmarks.training import Problem

RACED = ["--steps", "4", "--settings", "2", "--seeds", "2"]


def test_every_optimizer_is_tuned_over_equally_many_settings():
    grids = {name: entry.grid for name, entry in OPTIMIZERS.items()} | PEERS
    assert grids.pop("kfac_adaptive") == ((),)  # as it comes
    assert {len(set(grid)) for grid in grids.values()} == {5}
    assert set(OURS) <= set(OPTIMIZERS)


def numbered(count: int) -> Problem:
    """Examples that are their own numbers, but that the last is the first once more."""
    x = np.arange(count)
    x[-1] = 0
    nothing = lambda *_: None
    return Problem(None, nothing, {"x": jnp.array(x)}, x, 2, nothing, (), "numbers")


def test_a_fifth_is_held_out_and_no_example_is_in_both():
    found = divided(numbered(51))
    x, held = (np.asarray(some["x"]) for some in (found.x, found.held[0]))
    assert not set(x) & set(held)
    assert len(x) == 41
    assert len(held) in (9, 10)  # without the copy, if it is there
    np.testing.assert_array_equal(held, found.held[1])
    np.testing.assert_array_equal(held, divided(numbered(51)).held[1])
    last = divided(numbered(51), in_order=True)
    np.testing.assert_array_equal(last.x["x"], range(41))
    np.testing.assert_array_equal(last.held[1], range(41, 50))  # 0 is trained on


@pytest.mark.parametrize("name", ["small_autoencoder", "small_transformer", "linear"])
def test_data_that_are_held_out_are_not_trained_on(name):
    problem = race_problems.RACES[name].make(None)
    rows = lambda x: {row.tobytes() for row in np.asarray(x)}
    assert not rows(problem.x) & rows(problem.held[0])
    count = len(problem.y)
    assert 0.1 * count < len(problem.held[1]) <= 0.25 * count + 1
    if name == "small_transformer":  # in the order of the text, without copies
        text = data.library_text(problem.x.size + problem.held[0].size)
        np.testing.assert_array_equal(problem.x.ravel(), text[: problem.x.size])


def test_an_equation_is_held_out_at_other_points_of_its_domain():
    problem = race_problems.RACES["small_pinn"].make(None)
    x, held = (np.asarray(points["x"]) for points in (problem.x, problem.held[0]))
    boundary = np.asarray(problem.x["boundary"])
    on_edge = np.any((held == 0) | (held == 1), axis=1)
    np.testing.assert_array_equal(on_edge, boundary)
    assert held.dtype == x.dtype
    assert np.all((held >= 0) & (held <= 1))
    nearest = np.abs(held[:, None] - x[None]).max(axis=-1).min(axis=1)
    assert np.median(nearest) > 1e-3


@pytest.mark.parametrize("steps", [1, 4, 200, 600])
def test_looks_are_a_seventh_apart_up_to_the_last_step(steps):
    at = np.array(racing.looks(steps))
    assert at[0] == 1
    assert at[-1] == steps
    assert np.all(np.diff(at) >= 1)
    assert np.all(at[1:] <= 1.21 * at[:-1] + 1)


def curve(losses, held):
    clocks = {"step": [0, 10, 20, 30], "wall": [0.0, 5.0, 6.0, 7.0]}
    return clocks | {"cpu": [0.0, 2.0, 4.0, 6.0], "loss": losses, "held": held}


def made_up():
    """Adam ends at 2 and 3, so the goal is 2.5; both seeds are on the same clocks."""
    rising = [9.0, 5.0, 6.0, 7.0]
    runs = {
        "adam": [
            curve([9.0, 4.0, 3.0, 2.0], rising),
            curve([9.0, 5.0, 4.0, 3.0], rising),
        ],
        "kfac": [
            curve([9.0, 2.5, 1.0, 1.0], [9.0, 4.0, 3.5, 8.0]),
            curve([9.0, 8.0, 7.0, 6.0], rising),
        ],
        "gram": [],
    }
    compiled = {"adam": 1.0, "kfac": 10.0, "gram": None}
    return {
        name: {
            "runs": some,
            "note": "" if some else "too slow",
            "setting": [0.1],
            "tuning": [{"setting": [0.1], "loss": 1.0}],
            "compile_cpu_seconds": compiled[name],
            "temporary_bytes": 8,
        }
        for name, some in runs.items()
    }


def test_what_curves_amount_to():
    found = made_up()
    assert racing.summarise(found) == 2.5
    kfac, adam = found["kfac"], found["adam"]
    assert kfac["reached"]["step"] == {"median": 10, "low": 10, "high": np.inf}
    assert kfac["reached"]["wall"]["low"] == 5
    assert kfac["last"] == {"median": 1, "low": 1, "high": 6}
    assert kfac["held_at_goal"]["low"] == 4
    assert kfac["last_held"]["high"] == 8
    assert kfac["lowest_held"] == {"median": 3.5, "low": 3.5, "high": 5}
    assert adam["reached"]["step"]["median"] == 30
    assert adam["cpu_per_step"]["median"] == 0.2  # the first turn warms up
    assert found["gram"]["reached"]["step"]["low"] == np.inf  # it could not take part


def test_performance_profiles_of_made_up_costs():
    costs = {
        "adam": np.array([40.0, 40.0, 10.0, 8.0]),
        "kfac": np.array([20.0, np.inf, 15.0, 8.0]),
        "gram": np.array([np.nan, 40.0, np.nan, 30.0]),
    }
    ratios = profiles.over_best(costs)
    np.testing.assert_array_equal(ratios["adam"], [2, 1, 1, 1])
    np.testing.assert_array_equal(ratios["kfac"], [1, np.inf, 1.5, 1])
    np.testing.assert_array_equal(ratios["gram"], [np.nan, 1, np.nan, 30 / 8])
    cells = [
        [each.strip() for each in line.split("|")[1:-1]]
        for text in (profiles.summary, lambda c: profiles.of_group(c, ["kfac", "gram"]))
        for line in text({"steps": costs}).splitlines()
    ]
    assert ["`adam`", "4", "4", "3", "3"] in cells
    assert ["`kfac`", "4", "3", "2", "3"] in cells
    assert ["`gram`", "2", "2", "1", "1"] in cells
    assert ["steps", "3", "4", "4", "4"] in cells  # best on all but the third
    np.testing.assert_array_equal(
        profiles.together(costs, ["gram"])[[0, 1]], [np.inf, 40]
    )


def record(optimizers):
    return {
        "environment": {
            "device": "none",
            "processor": "none",
            "cores": 1,
            "load_average": [0.5, 0.5, 0.5],
            "versions": {},
            "threads": {},
            "commit": "0123456789",
        },
        "data": "made up",
        "parameters": 3,
        "examples": 8,
        "held_out": 2,
        "batch": None,
        "constant": 0.0,
        "steps": 30,
        "cpu_seconds": 1.0,
        "optimizers": optimizers,
    }


def test_the_page_says_where_the_library_loses(tmp_path):
    """K-FAC takes a third of Adam's steps to the goal; without it nobody gets there."""
    on_two = record(made_up())
    on_two["environment"]["cores"] = 2
    races.save(tmp_path / "races" / "first.json", on_two)
    without = {k: v for k, v in made_up().items() if k != "kfac"}
    races.save(tmp_path / "races" / "second.json", record(without))
    text = races_page.write(tmp_path / "races", tmp_path)
    assert (tmp_path / "races.md").read_text() == text
    assert "| steps | 1 | 1 | 1 | 2 |" in text
    assert "| CPU seconds with compilation | 0 | 0 | 1 | 2 |" in text  # 12 over 7
    assert "None of them reaches the goal on second." in text
    assert "`gram` too slow" in text
    assert "- 2 problems, 2 seeds" in text
    assert "- cores: 1 on second" in text
    assert "- seeds:" not in text  # equally many
    for name in ("first", "second", "profiles"):
        assert (tmp_path / "images" / "races" / f"{name}.webp").stat().st_size > 1000


def test_a_race_tunes_and_writes(tmp_path):
    arguments = ["--problems", "linear", "--optimizers", "lbfgs", "natural_gradient"]
    folder = tmp_path / "races"
    with jax.numpy_rank_promotion("allow"):
        convergence.main([*arguments, *RACED, "--output", str(folder)])
    found = races.load(folder)["linear"]
    assert list(found["optimizers"]) == ["adam", "lbfgs", "natural_gradient"]
    assert found["limit"] == race_problems.RACES["linear"].limit
    for name, entry in found["optimizers"].items():
        assert len(entry["tuning"]) == 2
        assert entry["setting"] == entry["tuning"][0]["setting"]
        assert [run["step"] for run in entry["runs"]] == [[0, 1, 2, 3, 4]] * 2, name
        assert entry["temporary_bytes"] > 0
    # Least squares: with rate 1 and no damping a step would solve them.
    problem = race_problems.RACES["linear"].make(None)
    least = lambda x, y, w: np.mean((y - x @ w) ** 2) / 2 + np.log(2 * np.pi) / 2
    w = np.linalg.lstsq(problem.x, problem.y)[0]
    best = found["optimizers"]["natural_gradient"]
    start = best["runs"][0]["loss"][0]
    lowest = least(problem.x, problem.y, w)
    assert lowest < best["last"]["median"] < lowest + 0.3 * (start - lowest)
    zero = least(*problem.held, np.zeros_like(w))
    np.testing.assert_allclose(best["runs"][0]["held"][0], zero, rtol=1e-4)
    assert "| adam |" in folder.with_suffix(".md").read_text()


@pytest.mark.parametrize("name", ["transformer", "pinn", "vmc"])
def test_problems_train(name, monkeypatch):
    few = race_problems.RACES[name]._replace(evaluated=8)
    monkeypatch.setitem(race_problems.RACES, name, few)
    arguments = ["--problems", name, "--optimizers", "adam", "--seeds", "1"]
    arguments += ["--steps", "4", "--settings", "1", "--batch", "8", "--limit", "33"]
    with jax.numpy_rank_promotion("allow"):
        found = convergence.main(arguments)[name]
    (run,) = found["optimizers"]["adam"]["runs"]
    assert run["loss"][-1] < run["loss"][0]
    assert found["batch"] == (8 if name == "transformer" else None)
    assert found["limit"] == 33
    assert np.isfinite(run["held"][0]) == (name != "vmc")


def test_a_race_goes_on_without_what_fails(monkeypatch, capsys, tmp_path):
    def refuses(model, rate):
        raise ValueError("not for this problem")

    monkeypatch.setitem(OPTIMIZERS, "muon", OPTIMIZERS["muon"]._replace(make=refuses))
    (tmp_path / "file").write_text("")
    arguments = ["--problems", "linear", "--optimizers", "muon", "kfac_jax", *RACED]
    arguments += [
        "--environment",
        str(tmp_path / "file"),
    ]  # no folder can be made there
    with jax.numpy_rank_promotion("allow"):
        found = convergence.main(arguments)["linear"]["optimizers"]
    assert found["muon"]["note"] == "ValueError: not for this problem"
    assert "kfac_jax" not in found
    assert "could not be installed" in capsys.readouterr().out


def test_an_optimizer_that_is_too_slow_is_left_out():
    class Slow:
        temporary = 0

        def start(self, seed):
            return 1.0, 1.0

        def turn(self, picks):
            return 1.0, 2.0 * len(picks), (1.0, 1.0)

    problem = numbered(10)
    assert convergence.unfit(problem, Slow(), steps=10, limit=20.0) == ""
    slow = convergence.unfit(problem, Slow(), steps=100, limit=20.0)
    assert slow == "too slow: 0.4 CPU s a step, or more"  # after two of ten steps
    Slow.temporary = 3 * 2**30
    assert convergence.unfit(problem, Slow(), 1, 20.0) == "too large: 3.0 GiB"


def test_peers_that_cannot_be_installed_are_named(tmp_path):
    (tmp_path / "file").write_text("")
    with pytest.raises(SystemExit, match=r"kfac-jax==0\.0\.8 .* package index"):
        peers.prepared(tmp_path / "file")  # no folder can be made there


def test_radii_are_compared_from_the_same_start(tmp_path):
    arguments = ["--problems", "imbalanced", "--radii", "0.01", "0.1", "--rates", "1"]
    arguments += ["--seeds", "1", "--steps", "8", "--output", str(tmp_path)]
    with jax.enable_x64(False), jax.numpy_rank_promotion("allow"):
        found = radius.main(arguments)["problems"]["imbalanced"]
    assert list(found) == ["1.0: 0.01", "1.0: 0.1"]
    # The first step is as long as its radius allows: the longer goes further down.
    short, long = (found[key]["early"][0] for key in found)
    assert long < short
    text = (tmp_path / "radius.md").read_text()
    assert f"| 1.0 | 0.1 | {report.cell(long)} |" in text
