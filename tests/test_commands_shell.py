"""Completion, devices, progress and Ctrl-C of the `natgrad` command."""

from __future__ import annotations

import json
import os
import signal
import subprocess
import sys
import time

import numpy as np
import pytest
from modules import PACKAGE

from natgrad.__main__ import main
from natgrad.cli import devices, progress


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        ("natgrad sp", ["spectrum"]),
        ("natgrad compare --da", ["--data", "--damping"]),
        ("natgrad race --data w", ["wine"]),
        ("natgrad kunstner --data Wine Br", ["BreastCancer"]),
        ("natgrad report --approximations dense ek", ["ekfac"]),
        ("natgrad completion b", ["bash"]),
    ],
)
def test_bash_completes(capsys, typed, expected):
    assert main(["completion", "bash"]) == 0
    script = capsys.readouterr().out
    words = typed.split()
    program = (
        f"{script}\nCOMP_WORDS=({typed}); COMP_CWORD={len(words) - 1}\n"
        '_natgrad\nprintf "%s\\n" "${COMPREPLY[@]}"'
    )
    done = subprocess.run(
        ["bash", "-c", program], capture_output=True, text=True, check=True
    )
    assert done.stdout.split() == expected
    assert done.stderr == ""


def test_devices_says_how_precise_a_solve_is(capsys):
    assert main(["devices"]) == 0
    shown = capsys.readouterr().out
    assert "cpu" in shown
    assert shown.count("(fine)") == 2
    assert 1e-9 < devices.solve_error("float32", 0) < 1e-4
    assert devices.solve_error("float64", 0) < 1e-12


def test_devices_fails_where_a_solve_is_wrong(capsys, monkeypatch):
    monkeypatch.setattr(devices, "solve_error", lambda dtype, seed: 1e-2)
    assert main(["devices"]) == 1
    assert "TOO LARGE" in capsys.readouterr().out


def test_progress_is_plain_lines_where_there_is_no_terminal(capsys, monkeypatch):
    clock = iter(np.arange(0.0, 100.0, 10.0))
    monkeypatch.setattr(progress.time, "monotonic", lambda: next(clock))
    with progress.progress(4) as advance:
        advance("one", 1)
        advance("two", 1)
        advance("three", 1)
    # A line at most every fifteen seconds: at 20 s with 2 of 4 parts done.
    assert capsys.readouterr().err == "50% two, about 20 s left\n"


@pytest.mark.slow
def test_ctrl_c_keeps_what_is_finished(tmp_path):
    path = os.pathsep.join([str(PACKAGE.parent), os.environ.get("PYTHONPATH", "")])
    command = [sys.executable, "-m", "natgrad", "kunstner", "--output", str(tmp_path)]
    record = tmp_path / "kunstner.json"
    # Where Ctrl-C is ignored, as in a shell's background jobs, children ignore it too.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        process = subprocess.Popen(
            command,
            stdout=subprocess.DEVNULL,
            stderr=subprocess.PIPE,
            text=True,
            env={**os.environ, "PYTHONPATH": path, "JAX_PLATFORMS": "cpu"},
        )
    finally:
        signal.signal(signal.SIGINT, before)
    try:
        patience = time.monotonic() + 240
        while not record.exists() and time.monotonic() < patience:
            time.sleep(0.2)
        process.send_signal(signal.SIGINT)
        _, shown = process.communicate(timeout=120)
    finally:
        process.kill()
    assert process.returncode == 130
    assert "natgrad kunstner: interrupted, kept" in shown
    assert "Traceback" not in shown
    found = json.loads(record.read_text())
    assert found["complete"] is False
    assert "vector_field" in found
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]
