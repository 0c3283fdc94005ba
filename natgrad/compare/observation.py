"""One curvature, estimated on a batch and solved with, and what that costs."""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from natgrad.compare import tables
from natgrad.compare.budget import Budget
from natgrad.curvature.base import Curvature
from natgrad.curvature.labels import Labels
from natgrad.metrics.base import Metric
from natgrad.model.errors import DoesNotFitError
from natgrad.solvers.base import Solution
from natgrad.solvers.conjugate_gradients import conjugate_gradients
from natgrad.typing import Array, Inputs, Key, Params

# (metric, gradient, λ) -> (F + λI)⁻¹ g
Solve = Callable[[Metric, Params, Array], Solution]

# Seconds after which no further run is started: so long a run varies little.
_PATIENCE = 1.0


@dataclasses.dataclass(frozen=True)
class Cost:
    """The cost of one function at one set of shapes.

    Attributes:
        compile_seconds: tracing, lowering and compiling, once.
        run_seconds: the median of repeated runs, each waited for.
        temporary_bytes: what XLA allocates beside arguments and results; None where
            the backend does not say.
    """

    compile_seconds: float
    run_seconds: float
    temporary_bytes: int | None


class Batch(NamedTuple):
    """Where to measure: θ, a batch, its labels, and a key for sampled ones."""

    params: Params
    inputs: Inputs
    targets: Array
    key: Key


class Observation(NamedTuple):
    """One curvature, estimated and solved with.

    Attributes:
        metric: A.
        direction: (A + λI)⁻¹ g.
        fallback: did the solver fall back?
        statistics_bytes: of the statistics kept.
        cost: of estimate and solve.
        labels: over which A averages.
    """

    metric: Metric
    direction: Params
    fallback: bool
    statistics_bytes: int
    cost: Cost
    labels: Labels


class CompiledCurvature:
    """A curvature and its compiled step, which later observations use again.

    Attributes:
        curvature: what is observed.
    """

    def __init__(self, name: str, curvature: Curvature, solve: Solve):
        self.curvature = curvature
        self._name, self._solve = name, solve
        self._compiled: dict = {}

    def observe(
        self, batch: Batch, gradient: Params, damping: float, budget: Budget
    ) -> Observation:
        """Estimate on a batch and solve for the damped step, timed.

        Args:
            batch: where, with a key.
            gradient: g.
            damping: λ.
            budget: timed runs, and the memory that may be taken.

        Raises:
            DoesNotFitError: before anything is allocated.
        """
        arguments = (*batch, gradient, jnp.asarray(damping))
        executable, seconds = self._executable(arguments, budget)
        (solution, kept), run = _median(executable, arguments, budget.repeats)
        return Observation(
            metric=self.curvature.metric(kept, *batch[:3]),
            direction=solution.value,
            fallback=bool(solution.fallback),
            statistics_bytes=_bytes(kept),
            cost=Cost(seconds, run, _temporary(executable)),
            labels=self.curvature.labels,
        )

    def _executable(self, arguments: tuple, budget: Budget) -> tuple[Any, float]:
        leaves, structure = jax.tree.flatten(arguments)
        shapes = tuple((leaf.shape, leaf.dtype) for leaf in map(jnp.asarray, leaves))
        if (structure, shapes) not in self._compiled:
            kept = jax.eval_shape(self.curvature.estimate, *arguments[:4])
            self._check("statistics", _bytes(kept), budget)
            executable, seconds = compiled(self._step, *arguments)
            self._check("temporary arrays", _temporary(executable) or 0, budget)
            self._compiled[structure, shapes] = executable, seconds
        return self._compiled[structure, shapes]

    def _step(self, params, inputs, targets, key, gradient, damping):
        kept = self.curvature.estimate(params, inputs, targets, key)
        metric = self.curvature.metric(kept, params, inputs, targets)
        return self._solve(metric, gradient, damping), kept

    def _check(self, what: str, needed: int, budget: Budget) -> None:
        if needed > budget.memory:
            raise DoesNotFitError(
                f"{self._name} needs {tables.size(needed)} of {what}, and "
                f"budget.memory is {tables.size(budget.memory)}. Leave it out, or "
                "allow more with budget=Budget(memory=...)."
            )


def own_solve(metric: Metric, gradient: Params, damping: Array) -> Solution:
    """The metric's own solution."""
    return metric.solution(gradient, damping)


def by_conjugate_gradients(budget: Budget) -> Solve:
    """The solution from products alone, as exact as `budget.stop` says."""

    def solve(metric: Metric, gradient: Params, damping: Array) -> Solution:
        layout = metric.layout
        damping = damping.astype(layout.dtype)
        value, iterations = conjugate_gradients(
            lambda x: layout.ravel(metric.mv(layout.unravel(x))) + damping * x,
            layout.ravel(gradient),
            lambda x: x,
            budget.stop,
        )
        fallback = jnp.zeros((), bool)
        return Solution(layout.unravel(value), fallback, iterations=iterations)

    return solve


def compiled(function: Callable, *args: Any) -> tuple[Callable, float]:
    """`function` compiled for the shapes of `args`, and the seconds that took."""
    return timed(lambda: jax.jit(function).lower(*args).compile())


def timed(function: Callable, *args: Any) -> tuple[Any, float]:
    """function(*args), finished, and the seconds it took."""
    start = time.perf_counter()
    result = jax.block_until_ready(function(*args))
    return result, time.perf_counter() - start


def _median(executable: Callable, args: tuple, repeats: int) -> tuple[Any, float]:
    """The result, and the median seconds; a slow first run is itself the time."""
    result, first = timed(executable, *args)
    seconds = [first] if first > _PATIENCE else []
    while len(seconds) < repeats and sum(seconds) < _PATIENCE:
        seconds.append(timed(executable, *args)[1])
    return result, statistics.median(seconds)


def _bytes(tree: Any) -> int:
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def _temporary(executable: Any) -> int | None:
    """The bytes that XLA allocates beside arguments and results, where it says."""
    analysis = executable.memory_analysis()
    return None if analysis is None else int(analysis.temp_size_in_bytes)
