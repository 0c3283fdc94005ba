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
    python -m benchmarks.convergence --problems linear logistic --optimizers sgd kfac
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks.curves import figure
from benchmarks.optimizers import OPTIMIZERS
from benchmarks.report import cell, quartiles, table, write
from benchmarks.timing import environment
from benchmarks.training import PROBLEMS, Problem

EVALUATED = 1024


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
        problem = PROBLEMS[name]()
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


def race(problem: Problem, names, options) -> dict[str, Any]:
    able = [name for name in names if name in problem.optimizers]
    measured = jax.jit(problem.loss)
    some = jax.tree.map(lambda leaf: leaf[:EVALUATED], (problem.x, problem.y))
    if problem.batch is None:
        some = problem.x, problem.y
    loss = lambda params: float(measured(params, *some))
    entrants, found = {}, {}
    for name in able:
        entrant = compiled(problem, name)
        grid = OPTIMIZERS[name].grid[: options.settings]
        tried = []
        for setting in grid if len(grid) > 1 else ():
            chosen = {name: entrant._replace(setting=setting)}
            curve = together(problem, chosen, 0, loss, options)[name]
            tried.append({"setting": list(setting), "loss": curve["loss"][-1]})
            print(f"{name} {setting}: {tried[-1]['loss']:.4g}", flush=True)
        finite = lambda run: run["loss"] if np.isfinite(run["loss"]) else np.inf
        best = min(tried, key=finite)["setting"] if tried else grid[0]
        entrants[name] = entrant._replace(setting=tuple(best))
        found[name] = {
            "tuning": tried,
            "setting": list(best),
            "compile_cpu_seconds": entrant.compile_cpu,
            "compile_seconds": entrant.compile_wall,
            "runs": [],
        }
    for seed in range(1, options.seeds + 1):
        for name, run in together(problem, entrants, seed, loss, options).items():
            found[name]["runs"].append(run)
        print(f"seed {seed} done", flush=True)
    summarise(found)
    return {
        "data": problem.about,
        "examples": len(problem.y),
        "batch": problem.batch,
        "goal": found["adam"]["last"]["median"],
        "optimizers": found,
    }


class Entrant(NamedTuple):
    """A compiled step, how long that took, how it starts, the setting it runs with."""

    step: Any
    compile_wall: float
    compile_cpu: float
    start: Any
    setting: tuple[float, ...] = ()


def compiled(problem: Problem, name: str) -> Entrant:
    make = lambda hyper: optax.with_extra_args_support(
        OPTIMIZERS[name].make(problem.model, *hyper)
    )

    def step(hyper, params, state, x, y):
        loss = lambda params: problem.loss(params, x, y)

        def value_fn(params, inputs=None, targets=None, obj_fn=None):
            del inputs, targets, obj_fn  # optax's line search insists on handing them
            return loss(params)

        value, gradient = jax.value_and_grad(loss)(params)
        updates, state = make(hyper).update(
            gradient,
            state,
            params,
            inputs=problem.inputs(params, x),
            targets=y,
            value=value,
            grad=gradient,
            value_fn=value_fn,
            obj_fn=loss,
        )
        return optax.apply_updates(params, updates), state

    def start(setting, seed):
        hyper = tuple(jnp.asarray(value, float) for value in setting)
        params = problem.initial(seed)
        carry = params, make(hyper).init(params)
        return hyper, *jax.tree.map(jnp.copy, carry)  # each buffer is donated once

    arguments = start(OPTIMIZERS[name].grid[0], 0)
    wall, cpu = time.perf_counter(), time.process_time()
    lowered = jax.jit(step, donate_argnums=(1, 2)).lower(
        *arguments, *next(problem.drawn(0))
    )
    program = lowered.compile()
    return Entrant(
        program, time.perf_counter() - wall, time.process_time() - cpu, start
    )


def together(problem, entrants: dict[str, Entrant], seed: int, loss, options):
    """A curve of each entrant; they take turns, and meet the same batches."""
    carries = {n: e.start(e.setting, seed) for n, e in entrants.items()}
    first = loss(problem.initial(seed))
    curves = {
        name: {"seed": seed, "step": [0], "wall": [0.0], "cpu": [0.0], "loss": [first]}
        for name in entrants
    }
    batches = problem.drawn(seed)
    for done in range(0, options.steps, options.every):
        count = min(options.every, options.steps - done)
        chunk = [next(batches) for _ in range(count)]
        jax.block_until_ready(chunk)
        for name, entrant in entrants.items():
            curve = curves[name]
            if not np.isfinite(curve["loss"][-1]):
                continue
            hyper, params, state = jax.block_until_ready(carries[name])
            wall, cpu = time.perf_counter(), time.process_time()
            for x, y in chunk:
                params, state = entrant.step(hyper, params, state, x, y)
            jax.block_until_ready((params, state))
            curve["wall"].append(curve["wall"][-1] + time.perf_counter() - wall)
            curve["cpu"].append(curve["cpu"][-1] + time.process_time() - cpu)
            curve["step"].append(done + count)
            curve["loss"].append(loss(params))
            carries[name] = hyper, params, state
    return curves


def summarise(found: dict[str, Any]) -> None:
    """Last losses, when the goal was reached, and both over Adam's, in place."""
    for entry in found.values():
        runs = entry["runs"]
        entry["last"] = spread(run["loss"][-1] for run in runs)
        for clock in ("wall", "cpu"):
            each = [run[clock][-1] / run["step"][-1] for run in runs]
            entry[f"{clock}_per_step"] = float(np.median(each))
    goal = found["adam"]["last"]["median"]
    for entry in found.values():
        entry["reached"] = {
            clock: spread(reached(run, goal, clock) for run in entry["runs"])
            for clock in ("step", "wall", "cpu")
        }
    for entry in found.values():
        entry["over_adam"] = {
            clock: spread(
                reached(run, goal, clock) / adam[clock][-1]
                for run, adam in zip(entry["runs"], found["adam"]["runs"], strict=True)
            )
            for clock in ("step", "wall", "cpu")
        }


def reached(run, goal: float, clock: str) -> float:
    found = (run[clock][i] for i, loss in enumerate(run["loss"]) if loss <= goal)
    return float(next(found, np.inf))


def spread(values) -> dict[str, float]:
    """Median and quartiles, each one of the values, so that some may be infinite."""
    values = [v if np.isfinite(v) else np.inf for v in values]
    low, median, high = np.quantile(values, [0.25, 0.5, 0.75], method="inverted_cdf")
    return {"median": float(median), "low": float(low), "high": float(high)}


def section(name: str, found: dict[str, Any]) -> str:
    """A problem's table."""
    heads = ("optimizer", "setting", "last loss", "steps to goal", "wall s", "CPU s")
    heads += ("wall / Adam", "CPU / Adam", "CPU ms a step", "compile CPU s")
    rows = [
        (
            optimizer,
            ", ".join(cell(value) for value in entry["setting"]) or "as it comes",
            quartiles(entry["last"]),
            *(quartiles(entry["reached"][clock]) for clock in ("step", "wall", "cpu")),
            *(quartiles(entry["over_adam"][clock]) for clock in ("wall", "cpu")),
            1e3 * entry["cpu_per_step"],
            entry["compile_cpu_seconds"],
        )
        for optimizer, entry in found["optimizers"].items()
    ]
    adam = found["optimizers"]["adam"]["runs"]
    lines = [
        f"## {name}",
        "",
        f"{found['data']}; batch {found['batch'] or 'all'}; {adam[0]['step'][-1]} "
        f"steps, {len(adam)} seeds; goal {cell(found['goal'])}. Ratios are to all of "
        "Adam's steps, seed by seed; medians (quartiles).",
        "",
        table(heads, rows),
    ]
    return "\n".join(lines)


if __name__ == "__main__":
    main()
