"""`natgrad doctor`: five lines, one-line errors, nothing written."""

from __future__ import annotations

import os
import sys

import numpy as np
import pytest

from natgrad.__main__ import main

MODELS = """\
import jax.numpy as jnp

def linear(key, inputs, outputs):
    return (lambda p, x: x @ p), jnp.zeros((inputs.shape[1], outputs), inputs.dtype)
"""


@pytest.fixture
def folder(tmp_path, monkeypatch):
    """A working directory with a module of a model and some data."""
    draw = np.random.default_rng(4)
    inputs = draw.normal(size=(24, 3))
    monkeypatch.chdir(tmp_path)
    monkeypatch.setattr(sys, "path", list(sys.path))
    monkeypatch.delitem(sys.modules, "doctored", raising=False)
    (tmp_path / "doctored.py").write_text(MODELS)
    classes = (inputs[:, 0] > 0).astype(int)
    np.savez(tmp_path / "mine.npz", inputs=inputs, targets=classes)
    return tmp_path


def test_doctor_prints_five_lines_of_an_own_model(folder, capsys):
    command = "doctor --data mine.npz --model doctored:linear --at-step 0 --x64"
    assert main([*command.split(), "--batch-size", "12"]) == 0
    shown = capsys.readouterr()
    lines = [line for line in shown.out.splitlines() if not line.startswith(" ")]
    words = [line.split()[0] for line in lines]
    assert words == ["Use", "Batch:", "Layers:", "Noise:", "Curvature:"]
    assert "12 examples" in shown.out
    assert max(map(len, shown.out.splitlines())) <= 80
    assert shown.err == ""
    left = {path for path in os.listdir() if not path.startswith("__")}
    assert left == {"doctored.py", "mine.npz"}


@pytest.mark.parametrize(
    ("arguments", "words"),
    [
        ("--data digit", "'digits'"),
        ("--model doctored:gone", "no function 'gone'"),
        ("--data gone.npz", "no file gone.npz"),
        ("--batch-size 0", "--batch-size"),
        ("--damping -1", "--damping"),
        ("--config bad.toml", "Did you mean 'hidden'"),
        ("--output there", "--output"),
    ],
)
def test_doctor_refuses_in_one_line(folder, capsys, arguments, words):
    (folder / "bad.toml").write_text("hiden = [2]")
    assert main(["doctor", *arguments.split()]) == 2
    shown = capsys.readouterr()
    assert shown.err.startswith("natgrad doctor: error: ")
    assert shown.err.count("\n") == 1
    assert words in shown.err
    assert shown.out == ""
