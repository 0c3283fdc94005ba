"""Runners that take turns on one problem, and what their curves amount to.

A runner trains from a seed on batches it is told, and says how long that took and what
the loss is. `Local` runs in this process; `benchmarks.peers` has one in another.
"""

from __future__ import annotations

import time
from collections.abc import Iterable
from typing import Any, Protocol

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks.optimizers import Entry
from benchmarks.training import Pick, Problem
from natgrad.curvature import KFAC

EVALUATED = 1024
CLOCKS = ("step", "wall", "cpu")


class Runner(Protocol):
    """Attributes: compile_wall and compile_cpu, in seconds; 0 where none is known."""

    compile_wall: float
    compile_cpu: float

    def start(self, seed: int) -> float:
        """Back to the parameters of this seed; their loss."""

    def turn(self, picks: list[Pick]) -> tuple[float, float, float]:
        """A step for each batch: wall seconds, CPU seconds, loss after them."""


class Local:
    """An optax optimizer with one setting of its grid, compiled ahead of time."""

    def __init__(self, problem: Problem, entry: Entry, measured):
        self.problem, self.measured, self.setting = problem, measured, entry.grid[0]
        self.rows, self.evaluated = entry.rows, entry.evaluated
        self.make = lambda hyper: optax.with_extra_args_support(
            entry.make(problem.model, *hyper)
        )
        arguments = self.begun(0)
        batch = problem.examples(next(problem.picks(0)))
        wall, cpu = time.perf_counter(), time.process_time()
        lowered = jax.jit(self.step, donate_argnums=(1, 2)).lower(*arguments, *batch)
        self.program = lowered.compile()
        self.compile_wall = time.perf_counter() - wall
        self.compile_cpu = time.process_time() - cpu
        self.carry = None

    def step(self, hyper, params, state, x, y):
        """New parameters and state; hands over all that any optimizer asks for."""
        loss = lambda params: self.problem.loss(params, x, y)

        def value_fn(params, inputs=None, targets=None, obj_fn=None):
            del inputs, targets, obj_fn  # optax's line search insists on handing them
            return loss(params)

        given = {}
        if self.rows:
            curvature = KFAC(self.problem.model)
            value, gradient, given["rows"] = curvature.value_grad_and_rows(params, x, y)
        else:
            value, gradient = jax.value_and_grad(loss)(params)
        updates, state = self.make(hyper).update(
            gradient,
            state,
            params,
            inputs=self.problem.inputs(params, x),
            targets=y,
            value=value,
            grad=gradient,
            value_fn=value_fn,
            obj_fn=loss,
            **given,
        )
        return optax.apply_updates(params, updates), state

    def begun(self, seed: int):
        """Setting, parameters and state before the first step."""
        hyper = tuple(jnp.asarray(value, float) for value in self.setting)
        params = self.problem.initial(seed)
        carry = params, self.make(hyper).init(params)
        return hyper, *jax.tree.map(jnp.copy, carry)  # each buffer is donated once

    def start(self, seed: int) -> float:
        """Back to the parameters of this seed; their loss."""
        self.carry = jax.block_until_ready(self.begun(seed))
        return self.measured(self.carry[1])

    def turn(self, picks: list[Pick]) -> tuple[float, float, float]:
        """A step for each batch: wall seconds, CPU seconds, loss after them."""
        batches = jax.block_until_ready([self.problem.examples(p) for p in picks])
        hyper, params, state = self.carry
        wall, cpu = time.perf_counter(), time.process_time()
        for x, y in batches:
            params, state = self.program(hyper, params, state, x, y)
        jax.block_until_ready((params, state))
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        self.carry = hyper, params, state
        return wall, cpu, self.measured(self.evaluated(state, params))


def measure(problem: Problem):
    """params -> loss of the first examples, or of all where a step takes all."""
    loss = jax.jit(problem.loss)
    some = problem.x, problem.y
    if problem.batch is not None:
        some = jax.tree.map(lambda leaf: leaf[:EVALUATED], some)
    return lambda params: float(loss(params, *some))


def together(
    problem: Problem, runners: dict[str, Runner], seed: int, steps: int, every: int
) -> dict[str, dict[str, Any]]:
    """A curve of each runner; they take turns, `every` steps each, on equal batches.

    A runner whose loss is no longer finite runs no further.
    """
    curves = {}
    for name, runner in runners.items():
        first = runner.start(seed)
        curves[name] = {"step": [0], "wall": [0.0], "cpu": [0.0], "loss": [first]}
    picks = problem.picks(seed)
    for done in range(0, steps, every):
        count = min(every, steps - done)
        chunk = [next(picks) for _ in range(count)]
        for name, runner in runners.items():
            curve = curves[name]
            if np.isfinite(curve["loss"][-1]):
                wall, cpu, loss = runner.turn(chunk)
                curve["step"].append(done + count)
                curve["wall"].append(curve["wall"][-1] + wall)
                curve["cpu"].append(curve["cpu"][-1] + cpu)
                curve["loss"].append(loss)
    return {name: {"seed": seed, **curve} for name, curve in curves.items()}


def raced(
    problem: Problem, runners: dict[str, Runner], found: dict[str, Any], options: Any
) -> dict[str, Any]:
    """The record of a race over `options.seeds` seeds.

    `found` holds an entry by name, to whose "runs" the curves are added.
    """
    for seed in range(1, options.seeds + 1):
        runs = together(problem, runners, seed, options.steps, options.every)
        for name, run in runs.items():
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


def summarise(found: dict[str, Any]) -> None:
    """Adds last losses, when Adam's was reached, and both clocks over Adam's.

    `found` holds by name an entry with its curves under "runs", seed by seed.
    """
    adam = found["adam"]["runs"]
    goal = float(np.median([run["loss"][-1] for run in adam]))
    for entry in found.values():
        runs = entry["runs"]
        entry["last"] = spread(run["loss"][-1] for run in runs)
        for clock in ("wall", "cpu"):
            entry[f"{clock}_per_step"] = spread(
                seconds for run in runs for seconds in rates(run, clock)
            )
        entry["reached"] = {
            clock: spread(reached(run, goal, clock) for run in runs) for clock in CLOCKS
        }
        entry["over_adam"] = {
            clock: spread(
                reached(run, goal, clock) / other[clock][-1]
                for run, other in zip(runs, adam, strict=True)
            )
            for clock in CLOCKS
        }
    for entry in found.values():
        entry["step_over_adam"] = {
            clock: spread(
                mine / his
                for run, other in zip(entry["runs"], adam, strict=True)
                for mine, his in zip(rates(run, clock), rates(other, clock))  # noqa: B905
            )
            for clock in ("wall", "cpu")
        }


def rates(run: dict[str, Any], clock: str) -> np.ndarray:
    """Seconds a step, turn by turn, without the first turn where there are others."""
    each = np.diff(run[clock]) / np.diff(run["step"])
    return each[1:] if len(each) > 1 else each


def reached(run: dict[str, Any], goal: float, clock: str) -> float:
    """What the clock showed at the first loss at or below the goal, or infinity."""
    found = (run[clock][i] for i, loss in enumerate(run["loss"]) if loss <= goal)
    return float(next(found, np.inf))


def spread(values: Iterable[float]) -> dict[str, float]:
    """Median and quartiles, each one of the values, so that some may be infinite."""
    values = [v if np.isfinite(v) else np.inf for v in values]
    low, median, high = np.quantile(values, [0.25, 0.5, 0.75], method="inverted_cdf")
    return {"median": float(median), "low": float(low), "high": float(high)}
