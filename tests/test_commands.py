"""Own data, own models and --config of the `natgrad` command."""

from __future__ import annotations

import json
import os
import sys

import numpy as np
import pytest

from natgrad.__main__ import main
from natgrad.cli import data

MODELS = """\
import jax.numpy as jnp

def linear(key, inputs, outputs):
    return (lambda p, x: x @ p), jnp.zeros((inputs.shape[1], outputs), inputs.dtype)

def wide(key, inputs, outputs):
    return (lambda p, x: x @ p), jnp.zeros((inputs.shape[1], outputs + 1))

def fails(key, inputs, outputs):
    return 1 / 0

def breaks(key, inputs, outputs):
    return (lambda p, x: x @ p), jnp.zeros((inputs.shape[1] + 1, outputs))

def alone(key, inputs, outputs):
    return jnp.zeros(3)

def leaves(key, inputs, outputs):
    raise SystemExit(0)

def empty(key, inputs, outputs):
    return (lambda p, x: x), {}

number = 3
"""
DRAW = np.random.default_rng(4)
INPUTS = DRAW.normal(size=(24, 3))
CLASSES = (INPUTS[:, 0] > 0).astype(int)


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A working directory with a module of models and some data."""
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "own_models", raising=False)
    (tmp_path / "own_models.py").write_text(MODELS)
    np.savez(tmp_path / "mine.npz", inputs=INPUTS, targets=CLASSES)
    return tmp_path


def refused(capsys, *arguments, code=2):
    """The one line that a command says before it exits, having written nothing."""
    before = {path for path in os.listdir() if not path.startswith("__")}
    assert main([*arguments]) == code
    shown = capsys.readouterr().err
    assert shown.startswith(f"natgrad {arguments[0]}: error: ")
    assert shown.count("\n") == 1
    assert {path for path in os.listdir() if not path.startswith("__")} == before
    return shown


# Files and models --------------------------------------------------------------------

NANS = np.where(np.arange(24)[:, None] == 5, np.nan, INPUTS)
BAD_DATA = {
    "NaN": ({"inputs": NANS, "targets": CLASSES}, "got 3 NaN or infinite of 72"),
    "NaN targets": ({"inputs": INPUTS, "targets": NANS[:, 0]}, "targets must be finit"),
    "one class": ({"inputs": INPUTS, "targets": 0 * CLASSES}, "of one class, 0"),
    "shapes": ({"inputs": INPUTS, "targets": CLASSES[1:]}, "(24, 3) and (23,)"),
    "no targets": ({"inputs": INPUTS, "labels": CLASSES}, "arrays are inputs, labels"),
    "objects": (
        {"inputs": np.array([{}] * 24), "targets": CLASSES},
        "nothing is unpickled",
    ),
    "one axis": ({"inputs": INPUTS[:, 0], "targets": CLASSES}, "at least one more"),
    "classes": ({"inputs": INPUTS, "targets": CLASSES[:, None]}, "shape [N]"),
    "negative": ({"inputs": INPUTS, "targets": CLASSES - 1}, "counted from 0, got -1"),
    "three axes": ({"inputs": INPUTS, "targets": INPUTS[:, None]}, "[N] or [N, K]"),
    "words": ({"inputs": INPUTS, "targets": np.array(["a"] * 24)}, "real numbers"),
    "none": ({"inputs": INPUTS[:0], "targets": CLASSES[:0]}, "empty"),
    "a wrong label": (
        {"inputs": INPUTS, "targets": np.where(np.arange(24) == 7, 10**6, CLASSES)},
        "targets[7] = 1000000 makes 1,000,001 classes for 24 rows",
    ),
    "scalar": ({"inputs": np.float64(3), "targets": CLASSES}, "inputs is one number"),
    "few": ({"inputs": INPUTS[:4], "targets": CLASSES[:4]}, "at least 8 are needed"),
}


@pytest.mark.parametrize("case", BAD_DATA)
def test_bad_data_are_refused_in_one_line(folder, capsys, case):
    arrays, words = BAD_DATA[case]
    np.savez(folder / "bad.npz", **arrays)
    shown = refused(capsys, "race", "--data", "bad.npz")
    assert words in shown
    assert "bad.npz" in shown


def test_bad_files_are_refused_in_one_line(folder, capsys):
    (folder / "junk.npz").write_text("junk")
    assert "cannot be read" in refused(capsys, "compare", "--data", "junk.npz")
    assert "no file gone.npz" in refused(capsys, "report", "--data", "gone.npz")
    content = (folder / "mine.npz").read_bytes()
    (folder / "cut.npz").write_bytes(content[: len(content) // 2])
    assert "cannot be read" in refused(capsys, "spectrum", "--data", "cut.npz")
    with open(folder / "one.npz", "wb") as file:
        np.save(file, INPUTS)
    assert "a single array" in refused(capsys, "race", "--data", "one.npz")


@pytest.mark.parametrize(
    ("model", "words"),
    [
        ("own_models:gone", "no function 'gone'"),
        ("own_models:number", "no function 'number'"),
        ("own_models:", "expected module:function"),
        ("no_such_module:f", "there is no such module in /"),
        ("exits:f", "SystemExit: 0"),
        ("own_models:leaves", "SystemExit: 0"),
        ("own_models:fails", "ZeroDivisionError: division by zero"),
        ("own_models:wide", "[18, 2] for mine.npz, got [18, 3]"),
        ("own_models:breaks", "apply failed"),
        ("own_models:alone", "must return (apply, params)"),
        ("own_models:empty", "no parameters"),
    ],
)
def test_bad_models_are_refused_in_one_line(folder, capsys, model, words):
    (folder / "exits.py").write_text("import sys\nsys.exit(0)\n")
    shown = refused(capsys, "race", "--data", "mine.npz", "--model", model)
    assert words in shown


@pytest.mark.parametrize("option", ["--examples", "--batch-size"])
def test_more_examples_than_there_are_is_refused(folder, capsys, option):
    words = ("doctor", "--data", "mine.npz", "--model", "own_models:linear")
    shown = refused(capsys, *words, option, "1000")
    assert f"{option} 1000 is more than there is: mine.npz has" in shown


def test_an_unknown_optimizer_is_refused(folder, capsys):
    shown = refused(capsys, "race", "--data", "mine.npz", "--optimizers", "kfacc")
    assert "Did you mean 'kfac'" in shown


def test_own_data_are_split_and_scaled(folder):
    np.savez(folder / "two.npz", inputs=INPUTS.reshape(24, 3, 1), targets=INPUTS[:, :2])
    numbers = data.load(str(folder / "two.npz"))
    assert numbers.outputs == 2
    assert not numbers.classes
    inputs, targets = map(np.asarray, numbers.train)
    assert inputs.shape == (18, 3, 1)
    assert np.mean((inputs - inputs.mean(axis=0)) ** 2) == pytest.approx(1)
    np.testing.assert_allclose(targets.std(axis=0), 1)
    classes = data.load(str(folder / "mine.npz"))
    assert classes.classes
    assert classes.outputs == 2
    assert classes.about_targets == "2 classes"
    assert numbers.about_targets == "2 to predict as numbers"
    np.savez(folder / "whole.npz", inputs=INPUTS, targets=1.0 * CLASSES)
    whole = data.load(str(folder / "whole.npz"))
    assert not whole.classes
    assert "2 whole values: as integers they would be classes" in whole.about_targets


@pytest.mark.slow
def test_spectrum_of_an_own_model(folder, capsys):
    command = "spectrum --data mine.npz --model own_models:linear --at-step 0 --x64"
    names = ["--approximations", "dense", "diagonal", "--output", "out"]
    assert main([*command.split(), *names]) == 0
    assert "diagonal" in capsys.readouterr().out
    found = json.loads((folder / "out" / "spectrum.json").read_text())
    assert (folder / "out" / "spectra.png").read_bytes().startswith(b"\x89PNG")
    x = np.asarray(data.load("mine.npz").train[0])
    # At 0 both classes have probability ½: diag(p) − ppᵀ has eigenvalues 0 and ½.
    exact = np.linalg.eigvalsh(x.T @ x / len(x))[::-1] / 2
    values = found["fidelity"]["spectrum"]["values"]
    np.testing.assert_allclose(values[:3], exact, rtol=1e-10)
    np.testing.assert_allclose(values[3:], 0, atol=1e-12)


@pytest.mark.slow
def test_race_of_an_own_model_and_its_seed(folder, capsys):
    def losses(seed):
        command = "race --data mine.npz --model own_models:linear --steps 2 --rates 1"
        more = ["--optimizers", "sgd", "--output", "out", "--seed", str(seed)]
        assert main([*command.split(), *more]) == 0
        record = json.loads((folder / "out" / "race.json").read_text())
        assert record["complete"] is True
        assert record["fidelity"] is None
        return record["training"]["entries"][0]["runs"][0]["train_loss"]

    one = losses(1)
    assert one[0] == pytest.approx(np.log(2), rel=1e-6)
    assert one == losses(1)
    assert one != losses(2)
    assert "To train, use sgd at rate" in capsys.readouterr().out


# --config ----------------------------------------------------------------------------


def test_a_config_file_stands_before_what_is_typed(folder, capsys):
    (folder / "run.toml").write_text(
        'data = "mine.npz"\nhidden = [2]\nsteps = 7\nrates = 1\nquick = true\n'
        'optimizers = ["sgd"]\n[race]\noutput = "there"\n[compare]\nreference = "x"\n'
    )
    assert main(["race", "--config", "run.toml", "--steps", "3"]) == 0
    settings = json.loads((folder / "there" / "race.json").read_text())["settings"]
    assert settings["steps"] == 3
    assert settings["hidden"] == [2]
    assert settings["rates"] == 1


@pytest.mark.parametrize(
    ("text", "words"),
    [
        ("hiden = [2]", "Did you mean 'hidden'"),
        ("hidden = [", "is no TOML"),
        ("steps = 'many'", "--steps"),
        ("quick = 3", "quick must be true or false"),
        ("data = ['a', 'b']", "data takes one value"),
        ("[race.steps]\nx = 1", "a value or a list"),
    ],
)
def test_a_bad_config_file_is_refused_in_one_line(folder, capsys, text, words):
    (folder / "run.toml").write_text(text)
    assert main(["race", "--config", "run.toml"]) == 2
    shown = capsys.readouterr().err
    assert shown.startswith("natgrad race: error: ")
    assert shown.count("\n") == 1
    assert words in shown


def test_a_config_file_that_is_not_there(folder, capsys):
    shown = refused(capsys, "race", "--config", "gone.toml")
    assert "--config gone.toml: No such file" in shown
