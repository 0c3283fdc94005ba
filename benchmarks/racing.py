"""Runners that take turns on one problem, and what their curves amount to.

A runner trains from a seed on batches it is told, and says how long that took and what
the loss is. `Local` runs in this process; `benchmarks.peers` has one in another.
"""

from __future__ import annotations

import functools
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

LOOKS = 36  # at the losses, of a run
CLOCKS = ("step", "wall", "cpu")

Losses = tuple[float, float]  # of training and held-out examples; NaN where none are


class Runner(Protocol):
    """An optimizer on one problem.

    Attributes:
        setting: of its grid.
        compile_cpu: CPU seconds of the state and of trace and compilation of a step.
        temporary: bytes of memory that XLA takes for a step; None where not known.
    """

    setting: tuple[float, ...]
    compile_cpu: float
    temporary: int | None

    def start(self, seed: int) -> Any:
        """Back to the parameters of this seed; their losses."""

    def turn(self, picks: list[Pick]) -> tuple[float, float, Any]:
        """A step for each batch: wall seconds, CPU seconds, losses after them."""


class Local:
    """An optax optimizer, compiled ahead of time for all settings of its grid.

    Args:
        problem: whose data it trains on; another of the same shapes may be set.
        entry: its optimizer.
        measured: parameters -> what `start` and `turn` say of them.
    """

    def __init__(self, problem: Problem, entry: Entry, measured):
        self.problem, self.measured, self.setting = problem, measured, entry.grid[0]
        self.rows, self.evaluated = entry.rows, entry.evaluated
        self.make = lambda hyper: optax.with_extra_args_support(
            entry.make(problem.model, *hyper)
        )
        params = jax.block_until_ready(problem.initial(0))
        batch = problem.examples(next(problem.picks(0)))
        wall, cpu = time.perf_counter(), time.process_time()
        arguments = self.begun(params)
        lowered = jax.jit(self.step, donate_argnums=(1, 2)).lower(*arguments, *batch)
        self.program = lowered.compile()
        self.compile_wall = time.perf_counter() - wall
        self.compile_cpu = time.process_time() - cpu
        memory = self.program.memory_analysis()
        self.temporary = memory.temp_size_in_bytes if memory else 0
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

    def begun(self, params):
        """Setting, parameters and state before the first step."""
        hyper = tuple(jnp.asarray(value, float) for value in self.setting)
        carry = params, self.make(hyper).init(params)
        return hyper, *jax.tree.map(jnp.copy, carry)  # each buffer is donated once

    def start(self, seed: int) -> Any:
        """Back to the parameters of this seed; their losses."""
        self.carry = jax.block_until_ready(self.begun(self.problem.initial(seed)))
        return self.measured(self.carry[1])

    def turn(self, picks: list[Pick]) -> tuple[float, float, Any]:
        """A step for each batch: wall seconds, CPU seconds, losses after them."""
        batches = jax.device_put([self.problem.examples(p) for p in picks])
        jax.block_until_ready(batches)
        hyper, params, state = self.carry
        wall, cpu = time.perf_counter(), time.process_time()
        for x, y in batches:
            params, state = self.program(hyper, params, state, x, y)
        jax.block_until_ready((params, state))
        wall, cpu = time.perf_counter() - wall, time.process_time() - cpu
        self.carry = hyper, params, state
        return wall, cpu, self.measured(self.evaluated(state, params))


def prepared(problem: Problem, batch: int | None = None) -> Problem:
    """The problem as it is raced, with another batch where that is not None.

    Starts are made once; batches are picked from NumPy's arrays, which is faster.
    """
    problem = problem._replace(initial=functools.cache(problem.initial))
    if problem.batch is None:
        return problem
    x, y = jax.tree.map(np.asarray, (problem.x, problem.y))
    return problem._replace(x=x, y=y, batch=batch or problem.batch)


def measure(problem: Problem, count: int):
    """params -> losses of the first training and held-out examples, `count` at most.

    Of all training examples where a step takes all.
    """
    some = lambda data: jax.tree.map(lambda leaf: leaf[:count], data)
    whole = problem.x, problem.y
    data = [whole if problem.batch is None else some(whole)]
    if problem.held is not None:
        data.append(some(problem.held))

    def losses(params, data):
        return [problem.loss(params, *each) for each in data]

    program = jax.jit(losses).lower(problem.initial(0), data).compile()

    def measured(params) -> Losses:
        found = [float(loss) for loss in program(params, data)]
        return found[0], found[1] if len(found) > 1 else np.nan

    return measured


def looks(steps: int) -> list[int]:
    """After which steps the losses are taken: each a seventh above the one before."""
    return sorted({round(each) for each in np.geomspace(1, steps, LOOKS)})


def together(
    problem: Problem, runners: dict[str, Runner], seed: int, at: list[int]
) -> dict[str, dict[str, Any]]:
    """A curve of each runner; they take turns on equal batches, from look to look.

    A runner whose training loss is no longer finite runs no further.
    """
    curves = {}
    for name, runner in runners.items():
        loss, held = runner.start(seed)
        curves[name] = {"step": [0], "wall": [0.0], "cpu": [0.0]}
        curves[name] |= {"loss": [loss], "held": [held]}
    picks = problem.picks(seed)
    for before, now in zip([0, *at], at, strict=False):
        chunk = [next(picks) for _ in range(now - before)]
        for name, runner in runners.items():
            curve = curves[name]
            if np.isfinite(curve["loss"][-1]):
                wall, cpu, (loss, held) = runner.turn(chunk)
                curve["step"].append(now)
                curve["wall"].append(curve["wall"][-1] + wall)
                curve["cpu"].append(curve["cpu"][-1] + cpu)
                curve["loss"].append(loss)
                curve["held"].append(held)
    return {name: {"seed": seed, **curve} for name, curve in curves.items()}


def summarise(found: dict[str, Any]) -> float:
    """Adds what the curves amount to, and returns the goal.

    The goal is the median of Adam's last training losses. To each entry of `found`,
    which has its curves under "runs", seed by seed, this adds as medians and quartiles
    "last" and "last_held", the losses after all steps; "reached", by clock, what it
    showed at the first training loss at or below the goal; "held_at_goal", the held-out
    loss then; "lowest_held", the lowest of a run; "cpu_per_step", without the first
    turn. An entry without runs needs for ever.
    """
    goal = float(np.median([run["loss"][-1] for run in found["adam"]["runs"]]))
    for entry in found.values():
        runs = entry["runs"]
        entry["last"] = spread(run["loss"][-1] for run in runs)
        entry["last_held"] = spread(run["held"][-1] for run in runs)
        entry["lowest_held"] = spread(lowest(run["held"]) for run in runs)
        entry["cpu_per_step"] = spread(per_step(run) for run in runs)
        entry["reached"] = {
            clock: spread(reached(run, goal, clock) for run in runs) for clock in CLOCKS
        }
        entry["held_at_goal"] = spread(reached(run, goal, "held") for run in runs)
    return goal


def lowest(values: list[float]) -> float:
    """The least that is a number; infinity where there is none."""
    return min((v for v in values if np.isfinite(v)), default=np.inf)


def per_step(run: dict[str, Any]) -> float:
    """CPU seconds of a step, without the first turn where there are others."""
    first = 1 if len(run["step"]) > 2 else 0
    steps = run["step"][-1] - run["step"][first]
    return (run["cpu"][-1] - run["cpu"][first]) / steps


def reached(run: dict[str, Any], goal: float, what: str) -> float:
    """A value of the curve at the first loss at or below the goal, or infinity."""
    found = (run[what][i] for i, loss in enumerate(run["loss"]) if loss <= goal)
    return float(next(found, np.inf))


def spread(values: Iterable[float]) -> dict[str, float]:
    """Median and quartiles, each one of the values, so that some may be infinite.

    A value that is not a number counts as infinite, and so does no value at all.
    """
    values = [v if np.isfinite(v) else np.inf for v in values] or [np.inf]
    low, median, high = np.quantile(values, [0.25, 0.5, 0.75], method="inverted_cdf")
    return {"median": float(median), "low": float(low), "high": float(high)}
