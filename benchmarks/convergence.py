"""Races: which optimizer reaches a loss in how many steps and seconds, and what then?

Every optimizer of a problem is tuned by the same budget: each of the five settings of
its grid in `benchmarks.optimizers` trains for all steps from seed 0; the one with the
lowest last training loss is kept. These train from further seeds, parameters and
batches the same for all, and take turns, so that all meet the same load.

A fifth of the examples is held out (`benchmarks.race_problems`). Training and held-out
losses are those of the first examples, at most 1,024 or where a model is large fewer,
taken outside the clock at 36 looks, each a seventh of the steps after the one before.
Compile time is kept apart. The goal is the median of tuned Adam's last training losses.
An optimizer reaches it at the first look at or below; a seed that does not get there
counts as infinite.

    python -m benchmarks.convergence --output benchmarks/results/races --write
    python -m benchmarks.convergence --problems diabetes --optimizers kfac muon
    python -m benchmarks.convergence --problems autoencoder --data mnist.npz
    python -m benchmarks.convergence --problems --write    # the page of what was run

All take hours. kfac-jax runs in an environment of its own, which is made where it is
missing; where it cannot be made, the race goes on without it. With `--output` each
problem is written when it is done, and with `--keep` those that are there already are
left out.
"""

from __future__ import annotations

import argparse
import math
import time
from pathlib import Path
from typing import Any

import jax
import numpy as np

import natgrad as ng
from benchmarks import peers, races, races_page
from benchmarks.optimizers import OPTIMIZERS, PEERS
from benchmarks.race_problems import LINEAR_LAYERS, RACES
from benchmarks.racing import Local, Runner, looks, measure, prepared, together
from benchmarks.timing import environment, positive
from benchmarks.training import Problem

MEMORY = 2**31  # bytes of temporary memory at most
WARM = 6  # steps before the trial of an optimizer
TRIED = 10  # steps of the trial, after which what is too slow is left out


def main(argv: list[str] | None = None) -> dict[str, Any]:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    names = [*OPTIMIZERS, *PEERS]
    parser.add_argument("--problems", nargs="*", choices=RACES, default=[*RACES])
    parser.add_argument("--optimizers", nargs="+", choices=names, default=names)
    parser.add_argument("--steps", type=positive, help="instead of the problem's own")
    parser.add_argument("--seeds", type=positive, default=5)
    parser.add_argument(
        "--settings", type=positive, default=5, help="of each grid, at most"
    )
    parser.add_argument("--batch", type=positive, help="instead of the problem's own")
    parser.add_argument("--data", type=Path, help="an .npz file with images `x`, `y`")
    parser.add_argument(
        "--limit", type=float, help="CPU seconds of a run, instead of the problem's own"
    )
    parser.add_argument("--environment", type=Path, default=peers.ENVIRONMENT)
    parser.add_argument("--output", type=Path, help="write files to this folder")
    parser.add_argument("--keep", action="store_true", help="only what is missing")
    parser.add_argument(
        "--write", action="store_true", help="docs/races.md of all in --output"
    )
    options = parser.parse_args(argv)
    wanted = ["adam", *(n for n in options.optimizers if n != "adam")]
    found, here = {}, environment()
    with peers.opened(options.environment, set(wanted) & set(PEERS)) as worker:
        for name in options.problems:
            file = options.output and options.output / f"{name}.json"
            if options.keep and file and file.exists():
                continue
            # The commit is that of the start, whose code is running.
            now = here | {"load_average": environment()["load_average"]}
            found[name] = {"environment": now}
            found[name] |= of_problem(name, wanted, worker, options)
            if file:
                races.save(file, found[name])
                races.write_tables(options.output)
            print(races.section(name, found[name]), flush=True)
    if options.write:
        races_page.write(options.output or races.FOLDER)
    return found


def of_problem(name: str, wanted: list[str], worker, options) -> dict[str, Any]:
    """The record of a problem: what was run, and all curves."""
    cpu, race = time.process_time(), RACES[name]
    problem = prepared(race.make(options.data), options.batch)
    steps, limit = options.steps or race.steps, options.limit or race.limit
    with jax.enable_x64(problem.x64):
        parameters = sum(leaf.size for leaf in jax.tree.leaves(problem.initial(0)))
        if worker and name in LINEAR_LAYERS:
            worker.give(problem, LINEAR_LAYERS[name], race.evaluated)
            problem = problem._replace(optimizers=(*problem.optimizers, *PEERS))
        measured = measure(problem, race.evaluated)
        optimizers = race_of(problem, measured, wanted, worker, steps, limit, options)
    return {
        "data": problem.about,
        "parameters": parameters,
        "examples": len(problem.y),
        "held_out": None if problem.held is None else len(problem.held[1]),
        "batch": problem.batch,
        "constant": constant(problem),
        "steps": steps,
        "evaluated": race.evaluated,
        "limit": limit,
        "cpu_seconds": time.process_time() - cpu,
        "optimizers": optimizers,
    }


def constant(problem: Problem) -> float:
    """What a density with variance 1 adds to the loss, which says nothing."""
    of_law = getattr(problem.loss, "__self__", None) is problem.model
    normal = isinstance(problem.model.family, ng.families.NormalMean)
    return 0.5 * math.log(2 * math.pi) if of_law and normal else 0.0


def race_of(
    problem: Problem, measured, wanted, worker, steps: int, limit: float, options
) -> dict[str, Any]:
    """Entries of the optimizers that can train the problem, tuned first."""
    runners, found = {}, {}
    for name in (name for name in wanted if name in problem.optimizers):
        jax.clear_caches()  # nothing is left of the optimizers before
        found[name] = {"setting": [], "tuning": [], "note": "", "runs": []}
        found[name] |= {"compile_cpu_seconds": None, "temporary_bytes": None}
        try:
            runner, grid = runner_of(name, problem, measured, worker)
            note = unfit(problem, runner, steps, limit)
            found[name] |= {
                "note": note,
                "compile_cpu_seconds": runner.compile_cpu,
                "temporary_bytes": runner.temporary,
            }
            if not note:
                tried = tuned(problem, runner, grid[: options.settings], steps)
                found[name] |= {"tuning": tried, "setting": tried[0]["setting"]}
                runner.setting, runners[name] = tuple(tried[0]["setting"]), runner
        except Exception as error:  # the record says so, and the race goes on
            said = f"{type(error).__name__}: {error}".splitlines()[0]
            found[name]["note"] = said[:200]
        print(name, found[name]["note"] or found[name]["tuning"], flush=True)
    for seed in range(1, options.seeds + 1):
        for name, run in together(problem, runners, seed, looks(steps)).items():
            found[name]["runs"].append(run)
    return found


def runner_of(name: str, problem: Problem, measured, worker) -> tuple[Runner, Any]:
    """A runner and its grid."""
    if name in PEERS:
        return peers.Remote(worker, name, problem), PEERS[name]
    entry = OPTIMIZERS[name]
    return Local(problem, entry, measured), entry.grid


def unfit(problem: Problem, runner: Runner, steps: int, limit: float) -> str:
    """Why an optimizer cannot take part, or an empty string."""
    if (runner.temporary or 0) > MEMORY:
        return f"too large: {runner.temporary / 2**30:.1f} GiB"
    runner.start(0)
    picks, spent = problem.picks(0), 0.0
    # Some compile once more in their second step, or where inverses are renewed.
    runner.turn([next(picks) for _ in range(WARM)])
    for _ in range(TRIED):
        spent += runner.turn([next(picks)])[1]
        if spent * steps > limit * TRIED:
            return f"too slow: {spent / TRIED:.2g} CPU s a step, or more"
    return ""


def tuned(problem: Problem, runner: Runner, grid, steps: int) -> list[dict[str, Any]]:
    """Each setting with its last training loss, the lowest first.

    A grid of one is not run.
    """
    if len(grid) == 1:
        return [{"setting": list(grid[0])}]
    tried = []
    for setting in grid:
        runner.setting = setting
        at = sorted(
            {max(steps // 4, 1), steps}
        )  # what diverged by then runs no further
        run = together(problem, {"": runner}, 0, at)[""]
        tried.append({"setting": list(setting), "loss": run["loss"][-1]})
    loss = lambda run: run["loss"] if np.isfinite(run["loss"]) else np.inf
    return sorted(tried, key=loss)


if __name__ == "__main__":
    main()
