"""Runs the benchmarks and writes their figures, tables and pictures.

    python -m benchmarks                         # a subset: two minutes on two cores
    python -m benchmarks --full                  # everything
    python -m benchmarks --device gpu --full     # the suite of an accelerator
    python -m benchmarks --toy --output /tmp/toy # all of it at toy size: a rehearsal
    python -m benchmarks --only memory scaling --output results

Each NAME leaves NAME.json (figures with versions and device; races a folder of them),
NAME.md (tables) and pictures in `--output`, benchmarks/results/ unless told otherwise,
and `index.md` lists them with the seconds each took. A benchmark that fails does not
stop the others; its error is in the list, and the exit status is 1.
"""

from __future__ import annotations

import argparse
import shlex
import time
import traceback
from pathlib import Path
from typing import Any

import jax

from benchmarks import (
    attribution,
    conjugate_gradients,
    convergence,
    first_step,
    laplace,
    memory,
    momentum,
    sample_space,
    scaling,
    solvers,
    step_cost,
)
from benchmarks.report import RESULTS, cell, table, write
from benchmarks.timing import environment

# name -> (module, arguments of the subset, of toy size), as one would type them; None
# where it has no part in it.
SUITE = {
    "memory": (
        memory,
        "--models classifier transformer",
        "--models classifier --optimizers adam kfac",
    ),
    "first_step": (
        first_step,
        "--models classifier --against muon kfac",
        "--models classifier --against kfac --rounds 1",
    ),
    "step_cost": (
        step_cost,
        "--models classifier --against kfac 'kfac rows' --rounds 3",
        "--models classifier --against kfac --rounds 1",
    ),
    "races": (
        convergence,
        "--problems logistic classifier --steps 60 --settings 2 --seeds 2 "
        "--optimizers adam muon kfac natural_gradient",
        "--problems linear classifier --steps 4 --settings 1 --seeds 1 "
        "--optimizers adam kfac natural_gradient",
    ),
    "scaling": (
        scaling,
        "--widths 128 256 512 --batches 64 256 --rounds 3",
        "--optimizers adam kfac --widths 16 --batches 8 16 --rounds 1",
    ),
    "solvers": (
        solvers,
        "--sizes 500 1000 --rounds 3",
        "--sizes 200 400 --rounds 1 --batch 8 8",
    ),
    "sample_space": (sample_space, None, "--scale 0.05 --rounds 1"),
    "conjugate_gradients": (
        conjugate_gradients,
        None,
        "--models classifier --steps 0 2 --dampings 0.1",
    ),
    "attribution": (
        attribution,
        None,
        "--seeds 1 --training 20 --steps 10 --width 16 --examples 16",
    ),
    "laplace": (laplace, None, "--seeds 1 --data 'breast cancer'"),
    "momentum": (momentum, None, "--seeds 1 --grid 0.9 --settings sampled 64"),
}
# These write one file where they are told to, and no Markdown.
ONE_FILE = ("step_cost", "solvers", "sample_space", "conjugate_gradients")


def main(argv: list[str] | None = None) -> list[dict[str, Any]]:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--device", choices=("cpu", "gpu"), default="cpu")
    size = parser.add_mutually_exclusive_group()
    size.add_argument("--full", action="store_true", help="all, at full size")
    size.add_argument("--toy", action="store_true", help="all, at toy size")
    parser.add_argument("--only", nargs="+", choices=SUITE, default=[*SUITE])
    parser.add_argument("--output", type=Path, default=RESULTS)
    options = parser.parse_args(argv)
    choose(options.device)
    options.output.mkdir(parents=True, exist_ok=True)
    done = []
    for name in options.only:
        module, subset, toy = SUITE[name]
        typed = "" if options.full else toy if options.toy else subset
        if typed is None:
            continue
        print(f"== {name}", flush=True)
        done.append(finished(name, module, shlex.split(typed), options.output))
        index(done, options.output)
    return done


def choose(device: str) -> None:
    """JAX on that kind of device.

    Raises:
        SystemExit: where there is none.
    """
    if device == "cpu":
        jax.config.update("jax_platforms", "cpu")
    elif jax.default_backend() != "gpu":
        raise SystemExit(
            "--device gpu: JAX sees no GPU here, only "
            f"{', '.join(map(str, jax.devices()))}. Install a JAX with GPU support."
        )


def finished(name: str, module, arguments: list[str], folder: Path) -> dict[str, Any]:
    """How long it took, and its error, if any."""
    wall, cpu, error = time.perf_counter(), time.process_time(), None
    try:
        if name in ONE_FILE:
            file = folder / f"{name}.json"
            report = module.main([*arguments, "--json", str(file)])
            if module is step_cost:
                (folder / "step_cost.md").write_text(step_cost.page(report))
        else:
            where = folder / name if module is convergence else folder
            module.main([*arguments, "--output", str(where)])
    except (Exception, SystemExit) as raised:  # the others are still worth running
        traceback.print_exc()
        error = f"{type(raised).__name__}: {raised}".splitlines()[0]
    wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
    return {"name": name, "seconds": wall, "cpu_seconds": cpu, "error": error}


def index(done: list[dict[str, Any]], folder: Path) -> None:
    """The list of what was run."""
    rows = []
    for run in done:
        page = f"{run['name']}.md"
        file = page if (folder / page).exists() else f"{run['name']}.json"
        clocks = (cell(run[clock]) for clock in ("seconds", "cpu_seconds"))
        rows.append((f"[{run['name']}]({file})", *clocks, run["error"] or ""))
    heads = ("benchmark", "seconds", "CPU seconds", "error")
    found = {"environment": environment(), "runs": done}
    write(folder, "index", found, f"# Benchmarks\n\n{table(heads, rows)}")


if __name__ == "__main__":
    raise SystemExit(any(run["error"] for run in main()))
