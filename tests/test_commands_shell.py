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

from natgrad import __main__
from natgrad.__main__ import main
from natgrad.cli import commands, parsing, terminal


@pytest.mark.parametrize(
    ("typed", "expected"),
    [
        ("natgrad sp", ["spectrum"]),
        ("natgrad compare --da", ["--data", "--damping"]),
        ("natgrad race --data w", ["wine"]),
        ("natgrad report --approximations dense ek", ["ekfac"]),
        ("natgrad race --optimizers sgd --steps 3 ek", []),
        ("natgrad completion b", ["bash"]),
    ],
)
def test_a_shell_completes(capsys, monkeypatch, typed, expected):
    monkeypatch.setenv("_NATGRAD_COMPLETE", "complete_bash")
    monkeypatch.setenv("COMP_WORDS", typed)
    monkeypatch.setenv("COMP_CWORD", str(len(typed.split()) - 1))
    assert main([]) == 0
    assert capsys.readouterr().out.split() == expected


def test_bash_takes_the_completion_script(capsys):
    assert main(["completion", "bash"]) == 0
    script = capsys.readouterr().out
    done = subprocess.run(
        ["bash", "-c", f"{script}\ncomplete -p natgrad"],
        capture_output=True,
        text=True,
        check=True,
    )
    assert done.stdout.endswith("natgrad\n")
    assert done.stderr == ""
    assert main(["completion", "tcsh"]) == 2
    assert "'bash', 'zsh', 'fish'" in capsys.readouterr().err


@pytest.mark.parametrize(
    ("typed", "spelled", "current"),
    [
        ("--hidden 2 3 --x64", "--hidden 2 --hidden 3 --x64", None),
        ("--x64 --along 0 -1", "--along 0 --along -1 --x64", "--along"),
        ("--hidden 2 --hidden 3", "--hidden 3", "--hidden"),
        ("--hidden --steps 3", "--steps 3 --hidden", None),
        ("--steps 3 4", "--steps 3 4", None),
    ],
)
def test_list_options_take_the_words_up_to_the_next_option(typed, spelled, current):
    words = parsing.spell_out(typed.split(), {"--hidden", "--along"})
    assert words == (spelled.split(), current)


def test_kunstner_says_where_it_is_now(capsys):
    assert main(["kunstner", "--data", "Wine"]) == 2
    shown = capsys.readouterr().err
    assert "python -m benchmarks.kunstner" in shown
    assert shown.count("\n") == 1


def test_devices_says_how_precise_a_solve_is(capsys):
    assert main(["devices"]) == 0
    shown = capsys.readouterr().out
    assert "cpu" in shown
    assert shown.count("(fine)") == 2
    assert 1e-9 < commands.solve_error("float32", 0) < 1e-4
    assert commands.solve_error("float64", 0) < 1e-12


def test_devices_fails_where_a_solve_is_wrong(capsys, monkeypatch):
    monkeypatch.setattr(commands, "solve_error", lambda dtype, seed: 1e-2)
    assert main(["devices"]) == 1
    assert "TOO LARGE" in capsys.readouterr().out


def test_progress_is_plain_lines_where_there_is_no_terminal(capsys, monkeypatch):
    clock = iter(np.arange(0.0, 100.0, 10.0))
    monkeypatch.setattr(terminal.time, "monotonic", lambda: next(clock))
    with terminal.progress(4) as advance:
        advance("one", 1)
        advance("two", 1)
        advance("three", 1)
    # A line at most every fifteen seconds: at 20 s with 2 of 4 parts done.
    assert capsys.readouterr().err == "50% two, about 20 s left\n"


@pytest.mark.parametrize(("code", "left"), [(130, "at once"), (2, "as usual")])
def test_after_ctrl_c_the_process_ends_at_once(monkeypatch, code, left):
    class AtOnce(Exception):
        pass

    def leave(code):
        raise AtOnce(code)

    monkeypatch.setattr(__main__, "main", lambda: code)
    monkeypatch.setattr(os, "_exit", leave)
    with pytest.raises(AtOnce if left == "at once" else SystemExit, match=str(code)):
        __main__.command()


@pytest.mark.slow
def test_ctrl_c_keeps_what_is_finished(tmp_path):
    path = os.pathsep.join([str(PACKAGE.parent), os.environ.get("PYTHONPATH", "")])
    typed = "compare --quick --data wine --hidden 2 --approximations dense --steps 400"
    command = [sys.executable, "-m", "natgrad", *typed.split()]
    record = tmp_path / "comparison.json"
    # Where Ctrl-C is ignored, as in a shell's background jobs, children ignore it too.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        process = subprocess.Popen(
            [*command, "--output", str(tmp_path)],
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
    assert "natgrad compare: interrupted, kept" in shown
    assert "Traceback" not in shown
    found = json.loads(record.read_text())
    assert found["complete"] is False
    assert [row["name"] for row in found["fidelity"]["rows"]] == ["dense"]
    assert not [path for path in tmp_path.iterdir() if path.name.startswith(".")]


def test_an_interruption_that_python_ignored_comes_again(monkeypatch):
    """Such as one within the function that JAX calls at each collection of garbage."""
    monkeypatch.setattr(sys, "unraisablehook", sys.unraisablehook)
    monkeypatch.setattr(__main__, "main", lambda: 0)
    with pytest.raises(SystemExit):
        __main__.command()

    class Lost:
        def __del__(self):
            raise KeyboardInterrupt

    # A shell starts what runs in the background with Ctrl-C ignored.
    before = signal.signal(signal.SIGINT, signal.default_int_handler)
    try:
        Lost()
        with pytest.raises(KeyboardInterrupt):
            time.sleep(10)
    finally:
        signal.signal(signal.SIGINT, before)
