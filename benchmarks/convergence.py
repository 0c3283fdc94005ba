"""Which optimizer reaches a training loss in how many steps, seconds, CPU seconds?

Every optimizer of a problem is tuned by the same budget: each setting of its grid in
`benchmarks.optimizers` (or its first `--settings`) trains for all steps from seed 0;
the one with the lowest last loss is kept. These train from further seeds, parameters
and batches the same for all. Optimizers of one seed take turns, `--every` steps at a
time, so that all meet the same load.

The loss is that of the first 1,024 examples, taken outside the clock. Compile time is
kept apart. The goal is the median of tuned Adam's last losses. An optimizer reaches it
at the first evaluation at or below; medians and quartiles are over seeds, and a seed
that does not get there counts as infinite.

    python -m benchmarks.convergence --problems autoencoder --steps 600 --output results
    python -m benchmarks.convergence --problems linear logistic --optimizers sgd gram
    python -m benchmarks.convergence --problems autoencoder --data mnist.npz
"""

from __future__ import annotations

import argparse
from pathlib import Path
from typing import Any

import jax
import numpy as np

from benchmarks.curves import figure
from benchmarks.optimizers import OPTIMIZERS
from benchmarks.racing import Local, measure, raced, together
from benchmarks.report import cell, quartiles, table, write
from benchmarks.timing import environment
from benchmarks.training import OF_IMAGES, PROBLEMS, Problem


def main(argv: list[str] | None = None) -> dict[str, Any]:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--problems", nargs="+", choices=PROBLEMS, default=[*PROBLEMS])
    parser.add_argument(
        "--optimizers", nargs="+", choices=OPTIMIZERS, default=[*OPTIMIZERS]
    )
    parser.add_argument("--steps", type=int, default=600)
    parser.add_argument("--every", type=int, default=10, help="steps between losses")
    parser.add_argument("--seeds", type=int, default=3)
    parser.add_argument("--settings", type=int, default=6, help="of each grid, at most")
    parser.add_argument("--batch", type=int, help="instead of the problem's own")
    parser.add_argument("--data", type=Path, help="an .npz file with images `x`, `y`")
    parser.add_argument("--output", type=Path, help="write files to this folder")
    options = parser.parse_args(argv)
    names = ["adam", *(n for n in options.optimizers if n != "adam")]
    report: dict[str, Any] = {
        "environment": environment(),
        "options": {k: getattr(options, k) for k in ("steps", "seeds", "settings")},
        "problems": {},
    }
    text, figures = [f"# {__doc__.splitlines()[0]}", ""], {}
    for name in options.problems:
        own_data = name in OF_IMAGES and options.data is not None
        problem = PROBLEMS[name](options.data) if own_data else PROBLEMS[name]()
        if options.batch is not None and problem.batch is not None:
            problem = problem._replace(batch=options.batch)
        with jax.enable_x64(problem.x64):
            found = race(problem, names, options)
        report["problems"][name] = found
        figures[name] = figure(name, found)
        text += [section(name, found), ""]
        print(text[-2], flush=True)
        # Each problem is written when it is done: long runs can be cut short.
        write(options.output, "convergence", report, "\n".join(text), figures)
    return report


def race(problem: Problem, names: list[str], options) -> dict[str, Any]:
    """Curves and figures of the optimizers that can train the problem, tuned first."""
    measured, runners, found = measure(problem), {}, {}
    for name in names:
        if name not in problem.optimizers:
            continue
        entry = OPTIMIZERS[name]
        runner = runners[name] = Local(problem, entry, measured)
        tried = tuned(problem, name, runner, entry.grid[: options.settings], options)
        runner.setting = tuple(tried[0]["setting"])
        found[name] = {
            "tuning": tried,
            "setting": tried[0]["setting"],
            "compile_cpu_seconds": runner.compile_cpu,
            "compile_seconds": runner.compile_wall,
            "runs": [],
        }
    return raced(problem, runners, found, options)


def tuned(problem, name: str, runner: Local, grid, options) -> list[dict[str, Any]]:
    """Each setting with its last loss, the lowest first; a grid of one is not run."""
    if len(grid) == 1:
        return [{"setting": list(grid[0])}]
    tried = []
    for setting in grid:
        runner.setting = setting
        curves = together(problem, {name: runner}, 0, options.steps, options.every)
        tried.append({"setting": list(setting), "loss": curves[name]["loss"][-1]})
        print(f"{name} {setting}: {tried[-1]['loss']:.4g}", flush=True)
    return sorted(
        tried, key=lambda run: run["loss"] if np.isfinite(run["loss"]) else np.inf
    )


def section(name: str, found: dict[str, Any]) -> str:
    """A title, what was run, and a table."""
    heads = ("optimizer", "setting", "last loss", "steps to goal", "wall s", "CPU s")
    heads += ("wall / Adam", "CPU / Adam", "CPU ms a step", "step / Adam's, CPU")
    heads += ("compile CPU s",)
    rows = [
        (
            optimizer,
            ", ".join(cell(value) for value in entry["setting"]) or "–",
            quartiles(entry["last"], 5),
            *(quartiles(entry["reached"][clock]) for clock in ("step", "wall", "cpu")),
            *(quartiles(entry["over_adam"][clock]) for clock in ("wall", "cpu")),
            1e3 * entry["cpu_per_step"]["median"],
            entry["step_over_adam"]["cpu"]["median"],
            entry["compile_cpu_seconds"],
        )
        for optimizer, entry in found["optimizers"].items()
    ]
    adam = found["optimizers"]["adam"]["runs"]
    lines = [
        f"## {name}",
        "",
        f"{found['data']}; batch {found['batch'] or 'all'}; {adam[0]['step'][-1]} "
        f"steps, {len(adam)} seeds; goal {cell(found['goal'], 5)}. Ratios are to all "
        "of Adam's steps, seed by seed; medians (quartiles).",
        "",
        table(heads, rows),
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
