"""Comparisons along a run, repetitions of a race, and their pictures."""

from __future__ import annotations

import io
import json
import sys
import types

import jax.numpy as jnp
import numpy as np
import optax
import pytest

import natgrad as ng
from natgrad.compare import (
    Budget,
    ComparisonSetup,
    RaceSettings,
    Repeated,
    Run,
    along,
    comparisons_along,
    plots,
    race,
    repeated,
)

QUICK = Budget(repeats=1, charts=0, draws=9)
RATE = 0.2


def apply(params, inputs):
    return inputs @ params["w"] + params["b"][None]


@pytest.fixture(scope="module")
def problem():
    draw = np.random.default_rng(0)
    inputs = draw.normal(size=(24, 2))
    targets = inputs @ np.array([[1.0], [-0.5]]) + 0.3 * draw.normal(size=(24, 1))
    params = {"w": np.zeros((2, 1)), "b": np.zeros(1)}
    return ng.Model(apply, ng.families.NormalMean()), params, inputs, targets


@pytest.fixture(scope="module")
def trace(problem):
    model, *batch = problem
    setup = ComparisonSetup(model, ("dense", "empirical"), budget=QUICK)
    return along(setup, *batch, optimizer=optax.sgd(RATE), steps=(3, 0, 1))


def test_comparisons_come_as_they_are_finished(problem):
    model, *batch = problem
    setup = ComparisonSetup(model, "diagonal", budget=QUICK)
    stream = comparisons_along(setup, *batch, optimizer=optax.sgd(1e200), steps=(0, 2))
    step, comparison = next(stream)
    assert step == 0
    assert comparison["diagonal"].relative_error > 0
    with pytest.raises(ValueError, match="After 2 steps"):
        next(stream)


@pytest.mark.slow
def test_a_trace_is_taken_where_the_optimizer_passes(problem, trace):
    """Gradient descent in NumPy; parameters in the order b, w."""
    _, _, x, y = problem
    rows = np.concatenate([np.ones((24, 1)), x], axis=1)
    theta, errors, losses = np.zeros(3), [], []
    exact = rows.T @ rows / 24
    for _ in range(4):
        residual = rows @ theta - y[:, 0]
        empirical = (rows * residual[:, None] ** 2).T @ rows / 24
        errors.append(np.linalg.norm(empirical - exact) / np.linalg.norm(exact))
        losses.append(np.mean(residual**2) / 2 + np.log(2 * np.pi) / 2)
        theta = theta - RATE * rows.T @ residual / 24
    assert trace.steps == (0, 1, 3)
    assert trace.losses == pytest.approx(np.array(losses)[[0, 1, 3]], rel=1e-10)
    found = trace.series("empirical", "relative_error")
    assert found == pytest.approx(np.array(errors)[[0, 1, 3]], rel=1e-8)
    assert trace.series("dense", "relative_error") == pytest.approx(0, abs=1e-12)
    assert trace.names == ("dense", "empirical")


@pytest.mark.slow
def test_a_trace_is_plain_data(trace):
    record = json.loads(json.dumps(trace.to_dict()))
    assert record["steps"] == [0, 1, 3]
    rows = trace.records()
    # All parameters and one block, for two approximations, at three steps.
    assert len(rows) == 12
    assert {row["step"] for row in rows} == {0, 1, 3}
    blocks = [row for row in rows if row["block"]]
    assert all(set(row) <= set(rows[0]) for row in blocks)


@pytest.mark.slow
def test_pandas_gets_the_records_where_it_is_installed(trace, monkeypatch):
    frame = types.SimpleNamespace(from_records=lambda rows: ("frame", rows))
    pandas = types.SimpleNamespace(DataFrame=frame)
    comparison = trace.comparisons[0]
    monkeypatch.setitem(sys.modules, "pandas", pandas)
    assert trace.to_pandas() == ("frame", trace.records())
    assert comparison.to_pandas() == ("frame", comparison.records())
    monkeypatch.setitem(sys.modules, "pandas", None)
    with pytest.raises(ImportError, match="pip install pandas"):
        comparison.to_pandas()


@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"steps": ()}, "steps must be"),
        ({"steps": (-1,)}, "steps must be"),
        ({"batch_size": 25}, "from 1 to the 24 examples"),
        ({"optimizer": optax.sgd(1e200), "steps": (2,)}, "After 2 steps: .*finite"),
    ],
)
def test_impossible_runs_are_refused(problem, arguments, message):
    model, *batch = problem
    given = {"optimizer": optax.sgd(RATE)} | arguments
    with pytest.raises(ValueError, match=message):
        along(ComparisonSetup(model, ["dense"], budget=QUICK), *batch, **given)


@pytest.fixture(scope="module")
def repetitions(problem):
    model, params, inputs, targets = problem
    data, score = (inputs, targets), lambda z, y: -jnp.mean((z - y) ** 2)
    settings = RaceSettings(steps=4, rates=7, batch_size=8)
    first = race(
        model, params, data, data, score=score, names=["sgd"], settings=settings
    )
    start = lambda seed: {"w": np.full((2, 1), 0.1 * seed), "b": np.zeros(1)}
    return repeated(model, start, data, data, first, score=score, seeds=(1, 2, 3))


def test_repetitions_start_elsewhere_at_the_tuned_rate(problem, repetitions):
    _, _, x, y = problem
    (sgd,) = repetitions
    assert sgd.name == "sgd"
    assert sgd.learning_rate in {0.1, 0.3, 1.0}
    assert {run.learning_rate for run in sgd.runs} == {sgd.learning_rate}
    losses = [run.train_loss[0] for run in sgd.runs]
    of = lambda seed: np.mean((x.sum(1) * 0.1 * seed - y[:, 0]) ** 2) / 2
    expected = [of(seed) + np.log(2 * np.pi) / 2 for seed in (1, 2, 3)]
    assert losses == pytest.approx(expected)
    json.dumps(sgd.to_dict())


def test_quartiles_count_a_failed_run_as_the_worst():
    run = lambda *losses: Run(0.1, [0.0, 1.0], list(losses), [], [])
    runs = (run(1.0, 2.0), run(2.0, float("nan")), run(3.0, 1.0))
    low, middle, high = Repeated("sgd", 0.1, runs).quartiles("train_loss")
    assert middle.tolist() == [2.0, 2.0]
    assert low[1] == 1.0
    assert high[1] == np.inf


def written(figure) -> bytes:
    file = io.BytesIO()
    plots.save(figure, file)
    return file.getvalue()


@pytest.mark.slow
def test_pictures_show_the_figures(trace, repetitions):
    comparison = trace.comparisons[-1]
    row = comparison["empirical"]
    heat = plots.blocks(comparison)
    texts = {text.get_text() for text in heat.axes[0].texts}
    assert texts == {f"{row.relative_error:#.3g}"}
    ranges = plots.spectra(comparison).axes[1]
    ends = [line.get_xdata() for line in ranges.lines if len(line.get_xdata()) == 2]
    assert any(np.allclose(x, [row.lowest_ratio, row.highest_ratio]) for x in ends)
    panel = plots.quadratic(comparison).axes[1]
    actual = next(line for line in panel.lines if "actual" in line.get_label())
    assert actual.get_ydata() == pytest.approx([point.actual_kl for point in row.path])
    cosines = plots.along(trace).axes[0].lines[1]
    assert cosines.get_ydata() == pytest.approx(
        trace.series("empirical", "step_cosine")
    )
    bands = plots.bands(repetitions)
    middle = repetitions[0].quartiles("train_loss")[1]
    assert bands.axes[0].lines[0].get_ydata() == pytest.approx(middle)
    for figure in (heat, bands):
        assert all(axis.get_title() or axis.get_label() for axis in figure.axes)
        assert written(figure).startswith(b"\x89PNG")
