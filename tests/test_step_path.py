"""How far a reader walks through one update: files entered, ways back, traces.

The files are those of each trace but the first, which finds and stores what there is to
know of a program. `python tests/test_step_path.py` prints them, by package.
"""

from __future__ import annotations

import collections
import pathlib
import sys

import jax
import jax.numpy as jnp
import pytest

import natgrad as ng
from natgrad.curvature import EKFAC, KFAC, Dense, Gram, LayerDiagonal

ROOT = pathlib.Path(ng.__file__).parent
# The five calls of `scale_by_curvature`, each with its file.
PATH = (
    "validation.py",
    "statistics_update.py",
    "solve.py",
    "trust_region.py",
    "health.py",
)
KEY = jax.random.PRNGKey(0)
X = jnp.linspace(-1, 1, 64, dtype=jnp.float32).reshape(16, 4)
Y = jnp.arange(16) % 3
# Files under natgrad/ that one traced update enters, of all packages.
MOST_FILES = {"natural_gradient": 35, "kfac": 48}


def problem():
    """(model, params, calls): a classifier of two layers that counts its traces."""
    shaped = lambda *shape: 0.1 * jnp.ones(shape, jnp.float32)
    params = {"w": shaped(4, 8), "b": shaped(8), "v": shaped(8, 3), "c": shaped(3)}
    calls = []

    def apply(params, x):
        calls.append(1)
        hidden = jnp.tanh(x @ params["w"] + params["b"][None])
        return hidden @ params["v"] + params["c"][None]

    model = ng.Model(apply, ng.families.Categorical(), example_inputs=X[:1])
    return model, params, calls


def first_update_of(name):
    """(update, calls): one update of the optimizer, traced anew at each call."""
    model, params, calls = problem()
    optimizer = getattr(ng, name)(0.1, model)
    state = optimizer.init(params)

    def update():
        step = lambda p, s: optimizer.update(p, s, p, inputs=X)
        return jax.make_jaxpr(step)(params, state)

    return update, calls


def update_of(name):
    """The same, traced once before: what is found once for a program is known."""
    update, calls = first_update_of(name)
    update()
    calls.clear()
    return update, calls


def calls_between_files(function):
    """(file that calls, file that is called) under natgrad/ -> how often."""
    found = collections.Counter()

    def file_of(frame):
        name = frame.f_code.co_filename
        inside = name.startswith(f"{ROOT}/")
        return str(pathlib.Path(name).relative_to(ROOT)) if inside else ""

    def record(frame, event, _argument):
        if event == "call" and file_of(frame):
            found[file_of(frame.f_back) if frame.f_back else "", file_of(frame)] += 1

    sys.setprofile(record)
    try:
        function()
    finally:
        sys.setprofile(None)
    return found


def files_entered(function):
    return {called for _, called in calls_between_files(function)}


@pytest.mark.parametrize("name", MOST_FILES)
def test_one_update_enters_few_files(name):
    update, _ = update_of(name)
    files = files_entered(update)
    assert len(files) <= MOST_FILES[name], sorted(files)
    steps = {f"transforms/{file}" for file in PATH}
    assert steps <= files


@pytest.mark.parametrize("name", MOST_FILES)
def test_the_five_calls_never_go_back(name):
    update, _ = update_of(name)
    places = {f"transforms/{file}": i for i, file in enumerate(PATH)}
    back = [
        (caller, called)
        for caller, called in calls_between_files(update)
        if places.get(called, 9) < places.get(caller, -1)
    ]
    assert back == []


def test_the_count_sees_a_file_that_is_entered():
    """Without this a broken count would pass every limit."""
    model, params, _ = problem()
    files = files_entered(lambda: model.loss(params, X, Y))
    assert {"model/model.py", "families/categorical.py"} <= files
    assert "curvature/kfac.py" not in files


@pytest.mark.parametrize(
    ("name", "traces"),
    [
        # Two for shapes, which say whether the batch determines F; the trace that is
        # read, the pass of the examples, and the divergence of the trust region: here
        # and after the step.
        ("natural_gradient", 2 + 1 + 1 + 2),
        # The estimate, two metrics, and the divergence.
        ("kfac", 1 + 2 + 2),
    ],
)
def test_an_update_traces_the_model_so_often(name, traces):
    update, calls = update_of(name)
    update()
    assert len(calls) == traces


@pytest.mark.parametrize(
    "form", [KFAC, EKFAC, LayerDiagonal], ids=lambda form: form.__name__
)
def test_an_estimate_from_layers_traces_the_model_once(form):
    model, params, calls = problem()
    curvature = form(model)
    jax.eval_shape(lambda p: curvature.value_and_grad(p, X, Y, KEY), params)
    calls.clear()
    jax.eval_shape(lambda p: curvature.value_and_grad(p, X, Y, KEY), params)
    assert len(calls) == 1
    calls.clear()
    jax.eval_shape(lambda p: curvature.estimate(p, X, Y, KEY), params)
    assert len(calls) == 1


def test_other_curvatures_trace_the_model_at_most_twice():
    model, params, calls = problem()
    dense, gram = Dense(model), Gram(model)
    statistics = gram.init(params)
    for function in (
        lambda p: dense.value_and_grad(p, X, Y, KEY),
        lambda p: gram.metric(statistics, p, X).diagonal(),
    ):
        jax.eval_shape(function, params)
        calls.clear()
        jax.eval_shape(lambda p, function=function: function(p), params)
        assert 1 <= len(calls) <= 2


if __name__ == "__main__":
    for each in MOST_FILES:
        first = len(files_entered(first_update_of(each)[0]))
        entered = sorted(files_entered(update_of(each)[0]))
        packages = collections.Counter(file.split("/")[0] for file in entered)
        print(f"{each}: {len(entered)} files, {dict(packages)}; {first} at first")
        print("  " + "\n  ".join(entered))
