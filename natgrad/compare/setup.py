"""What stays the same wherever one measures: curvatures and their compiled steps."""

from __future__ import annotations

import dataclasses
import math
import statistics
import time
from collections.abc import Callable, Iterable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from natgrad.compare import invariance, tables
from natgrad.compare.figures import Budget
from natgrad.control_flow import traced_once
from natgrad.curvature import CURVATURES, by_name
from natgrad.curvature.base import Curvature
from natgrad.curvature.labels import Labels
from natgrad.layers import Recombined
from natgrad.metrics.base import Metric
from natgrad.model import Model
from natgrad.model.errors import DoesNotFitError
from natgrad.solvers.base import Solution
from natgrad.solvers.conjugate_gradients import conjugate_gradients
from natgrad.tree import Layout
from natgrad.typing import Array, Inputs, Key, Params

Factory = Callable[[Model], Curvature]
Approximations = str | Iterable[str] | Mapping[str, Curvature | Factory] | None

# What counts as exact where nobody says: as a matrix, and as an operator.
_EXACT = ("dense", "matrix_free")

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
    """One curvature, estimated and solved with."""

    metric: Metric  # A
    direction: Params  # (A + λI)⁻¹ g
    fallback: bool  # did the solver fall back?
    statistics_bytes: int  # of the statistics kept
    cost: Cost  # of estimate and solve
    labels: Labels  # over which A averages


class ComparisonSetup:
    """Approximations of a model's Fisher information, and how to measure them.

    What is compiled for a comparison serves later ones of the same setup.

    Attributes:
        names: of the approximations.
        all_named: were they asked for? Otherwise those that do not fit are left out.
        model: as given, and so `damping`, `step_size`, `budget`.
    """

    def __init__(
        self,
        model: Model,
        approximations: Approximations = None,
        *,
        reference: str | None = None,
        damping: float = 1e-3,
        step_size: float = 1.0,
        budget: Budget | None = None,
    ):
        """Check the arguments; nothing is computed.

        Args:
            model: the statistical model.
            approximations: names in `natgrad.CURVATURES`; or name -> curvature, or name
                -> (model -> curvature); None for all of the registry that fit. A
                curvature is measured with `model` in place of its own.
            reference: the name of what counts as exact, in the registry or among the
                approximations; None for the exact Fisher as a matrix, or as an operator
                where a matrix would be too large.
            damping: λ >= 0.
            step_size: η, the multiple of the damped natural step that is tried.
            budget: how much a comparison may cost; None for `Budget()`.

        Raises:
            ValueError: for unknown names and impossible numbers.
        """
        self.model = model
        self.all_named = approximations is not None
        self._factories, self._reference = _factories(approximations), reference
        self.names = tuple(self._factories)
        self.damping, self.step_size = float(damping), float(step_size)
        if not 0 <= self.damping < math.inf:
            bound = "finite and at least 0"
            raise ValueError(f"damping must be {bound}, got {self.damping}.")
        if not math.isfinite(self.step_size):
            raise ValueError(f"step_size must be finite, got {self.step_size}.")
        self.budget = Budget() if budget is None else budget
        if reference is not None:
            self._factory(reference)
        self._compiled: dict = {}
        self._charts: dict = {}

    def observe(
        self, name: str, model: Model, batch: Batch, gradient: Params
    ) -> Observation:
        """Estimate a curvature on a batch and solve for the damped step, timed.

        Args:
            name: of the curvature.
            model: the statistical model, perhaps in other coordinates.
            batch: where.
            gradient: g.

        Raises:
            DoesNotFitError: before anything is allocated.
        """
        arguments = (*batch, gradient, jnp.asarray(self.damping))
        leaves, structure = jax.tree.flatten(arguments)
        shapes = tuple((leaf.shape, leaf.dtype) for leaf in map(jnp.asarray, leaves))
        place = (name, model, structure, shapes)
        if place not in self._compiled:
            self._compiled[place] = self._compile(name, model, arguments)
        curvature, executable, seconds = self._compiled[place]
        (solution, kept), run = _median(executable, arguments, self.budget.repeats)
        metric, fallback = curvature.metric(kept, *batch[:3]), bool(solution.fallback)
        cost = Cost(seconds, run, _temporary(executable))
        found = (metric, solution.value, fallback, _bytes(kept), cost)
        return Observation(*found, curvature.labels)

    def _compile(self, name: str, model: Model, arguments: tuple) -> tuple:
        """The curvature, its step compiled, and the seconds of that."""
        formed = Layout.of(arguments[0]).size <= self.budget.matrices
        by_products = not formed and name == self.reference(formed)
        curvature = self._factory(name)(model)
        estimate = traced_once(curvature.estimate)

        def step(params, inputs, targets, key, gradient, damping):
            kept = estimate(params, inputs, targets, key)
            metric = curvature.metric(kept, params, inputs, targets)
            if by_products:
                return self._by_products(metric, gradient, damping), kept
            return metric.solution(gradient, damping), kept

        def check(what: str, needed: int) -> None:
            if needed > self.budget.memory:
                raise DoesNotFitError(
                    f"{name} needs {tables.size(needed)} of {what}, and "
                    f"budget.memory is {tables.size(self.budget.memory)}. Leave it "
                    "out, or allow more with budget=Budget(memory=...)."
                )

        def make() -> Any:
            kept = jax.eval_shape(estimate, *arguments[:4])
            check("statistics", _bytes(kept))
            return jax.jit(step).lower(*arguments).compile()

        executable, seconds = timed(make)
        check("temporary arrays", _temporary(executable) or 0)
        return curvature, executable, seconds

    def _by_products(
        self, metric: Metric, gradient: Params, damping: Array
    ) -> Solution:
        """(F + λI)⁻¹ g from products alone, as exact as `budget.stop` says."""
        layout = metric.layout
        damping = damping.astype(layout.dtype)
        damped = lambda x: layout.ravel(metric.mv(layout.unravel(x))) + damping * x
        value, iterations = conjugate_gradients(
            damped, layout.ravel(gradient), lambda x: x, self.budget.stop
        )
        fallback = jnp.zeros((), bool)
        return Solution(layout.unravel(value), fallback, iterations=iterations)

    def charts(self, batch: Batch) -> list[tuple[Recombined, Model]]:
        """Random coordinates and the model in them; the same ones at any θ."""
        layout = Layout.of(batch.params)
        if layout not in self._charts:
            draws = jax.random.split(jax.random.PRNGKey(0), self.budget.charts)
            where = (self.model, batch.params, batch.inputs)
            charts = [invariance.recombination(*where, key) for key in draws]
            self._charts[layout] = [
                (chart, dataclasses.replace(self.model, apply=chart))
                for chart in charts
                if chart is not None
            ]
        return self._charts[layout]

    def reference(self, formed: bool) -> str:
        """The name of what counts as exact."""
        return self._reference or _EXACT[0 if formed else 1]

    def _factory(self, name: str) -> Factory:
        return self._factories.get(name) or by_name(name)


def _factories(approximations: Approximations) -> dict[str, Factory]:
    """name -> (model -> Curvature), each name known; None means the whole registry."""
    if approximations is None:
        approximations = CURVATURES
    elif isinstance(approximations, str):
        approximations = [approximations]
    if not isinstance(approximations, Mapping):
        approximations = {name: by_name(name) for name in approximations}
    if not approximations:
        raise ValueError("approximations is empty: there is nothing to compare.")
    return {name: _factory(name, value) for name, value in approximations.items()}


def _factory(name: str, curvature: Curvature | Factory) -> Factory:
    if isinstance(curvature, Curvature):
        return lambda model: dataclasses.replace(curvature, model=model)
    if callable(curvature):
        return curvature
    raise ValueError(
        f"approximations[{name!r}] must be a curvature or a function model -> "
        "curvature, such as natgrad.curvature.KFAC(model) or natgrad.curvature.KFAC, "
        f"got {curvature!r}."
    )


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
