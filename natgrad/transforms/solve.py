"""The solution of (F + λI) d = g in one step, and how good it is."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from natgrad import tree
from natgrad.control_flow import any_over_vmap, zeros_unless
from natgrad.metrics.base import Metric
from natgrad.solvers.base import (
    CachedSolver,
    Solution,
    Solver,
    Spectrum,
    StatefulSolver,
)
from natgrad.solvers.damping import (
    DampingLike,
    EntryDamping,
    LeafDamping,
    OfMetric,
    Resolved,
    by_leaf,
    mean_damping,
    resolve_damping,
)
from natgrad.solvers.filters import Filter
from natgrad.transforms.inverse_cache import InverseCache, Refresh
from natgrad.transforms.state import Health, ScaleByCurvatureState
from natgrad.transforms.validation import Step
from natgrad.typing import Array, Params


class Solved(NamedTuple):
    """A solution and how good it is; all but the direction and the cache are scalars.

    Attributes:
        direction: d, like the parameters; it counts only where it is usable.
        usable: is it finite, from finite arguments?
        fallback: did the solver's first choice of algorithm fail?
        iterations: of an iterative solver.
        slope: ⟨g, d⟩.
        residual: |(F + λI) d − g| / |g|.
        ratio: ⟨d, F d⟩ / ⟨g, d⟩.
        square: ⟨d, F d⟩.
        damping: λ; tr Λ / P where leaves have several.
        inverse: what is kept for the next step.
        spectrum: of F, where the solver found it.
    """

    direction: Params
    usable: Array
    fallback: Array
    iterations: Array | int
    slope: Array
    residual: Array
    ratio: Array
    square: Array
    damping: Array
    inverse: Any
    spectrum: Spectrum | None


def solve(
    refresh: Refresh,
    solver: Solver | None,
    step: Step,
    state: ScaleByCurvatureState,
    usable: Array,
) -> Solved:
    """(F + Λ)⁻¹ g by the solver, with the cached inverse where there is one.

    With an anchor a it is (F + Λ)⁻¹ (g + Λ a), and g below stands for g + Λ a.

    With inverses kept over several steps, the product F d that residual and ratio need
    costs as much as the solution. It is formed in few steps, of those in which the
    inverses are oldest: see `Refresh.measures`. In between they are those of the last
    measured step.

    Args:
        refresh: how often inverses are renewed.
        solver: of the transformation; None for that of the metric.
        step: the arguments of the update.
        state: with this step's statistics, and inverses renewed where they were due.
        usable: are gradient, statistics and damping finite?

    Raises:
        ValueError: the solver cannot use the rows that the step was given.
    """
    if step.rows is not None:
        solver = _with_row_factors(solver, step.rows)
    metric = step.curvature.metric(state.statistics, *step.batch[:3])
    kept = isinstance(state.inverse, InverseCache)
    step = _anchored(_resolved(step, metric, solver), metric)
    # A kept inverse reads each entry once, which can be cleared there; what else there
    # is reads gradient and solution again and again.
    clear = _cleared if kept else zeros_unless
    gradient = clear(usable, step.gradient)
    solution, inverse = _solution(solver, metric, state.inverse, gradient, step)
    if kept:  # its leaves are slices of the blocks' matrices, which are not needed now
        solution = solution._replace(value=jax.lax.optimization_barrier(solution.value))
    usable = usable & tree.all_finite(solution.value)
    if not kept:
        solution = solution._replace(value=zeros_unless(usable, solution.value))
    slope = jax.lax.cond(
        usable,
        lambda: tree.inner(step.gradient, solution.value),
        lambda: jnp.zeros((), step.layout.dtype),
    )
    damping = resolve_damping(step.damping, metric)

    def measure():
        given, found = gradient, solution
        if kept:  # cleared within the branch, for outside it is a copy in each step
            given = _cleared(usable, step.gradient)
            found = found._replace(value=_cleared(usable, found.value))
        return _measure(metric, given, found, slope, damping, usable)

    if kept:
        age = tree.increment(state.inverse.age, usable, refresh.period)
        due = usable & refresh.measures(age)
        inverse = state.inverse._replace(age=age)
        residual, ratio = _measure_if(due, measure, state.health)
    else:
        inverse = tree.where(usable, inverse, state.inverse)
        residual, ratio = measure()
    return Solved(
        direction=solution.value,
        usable=usable,
        fallback=solution.fallback & usable,
        iterations=solution.iterations,
        slope=slope,
        residual=residual,
        ratio=ratio,
        square=ratio * slope,
        damping=mean_damping(damping, step.layout),
        inverse=inverse,
        spectrum=solution.spectrum,
    )


def _resolved(step: Step, metric: Any, solver: Solver | None) -> Step:
    """The step with what F decides of its damping, found once: it may take products."""
    if isinstance(solver, StatefulSolver) or not isinstance(step.damping, OfMetric):
        return step
    found = resolve_damping(step.safe_damping, metric)
    return step._replace(damping=found, safe_damping=found)


def _anchored(step: Step, metric: Metric) -> Step:
    """The step with g + Λ a as its gradient, where it has an anchor a."""
    if step.anchor is None:
        return step
    own = by_leaf(resolve_damping(step.safe_damping, metric), step.gradient)
    gradient = jax.tree.map(
        lambda g, own, a: g + own.astype(g.dtype) * a.astype(g.dtype),
        step.gradient,
        own,
        step.anchor,
    )
    return step._replace(gradient=gradient)


def _cleared(usable: Array, values: Params) -> Params:
    """Zeros where not usable, written where the values are read."""
    return tree.zeros_where(~usable, values)


def _solution(
    solver: Solver | None,
    metric: Metric,
    inverse: Any,
    gradient: Params,
    step: Step,
) -> tuple[Solution, Any]:
    """(solution, what a solver with a state remembers of it)."""
    damping: DampingLike = step.safe_damping
    if isinstance(solver, StatefulSolver):
        tree.check_kept(inverse, jax.eval_shape(lambda: solver.init(metric.layout)))
        return solver.solution(metric, gradient, damping, inverse)
    if isinstance(inverse, InverseCache) and isinstance(solver, CachedSolver):
        solution = solver.solve(metric, inverse.pieces, gradient, damping)
    elif solver is None:
        solution = metric.solution(gradient, damping)
    elif isinstance(solver, Filter):
        solution = solver.solution(metric, gradient, damping, step.anchor)
    else:
        value = solver(metric, gradient, resolve_damping(damping, metric))
        solution = Solution(value, jnp.zeros((), bool))
    return solution, inverse


def _with_row_factors(solver: Solver | None, rows: Any) -> Solver:
    """The solver for a gradient that is known as rows of each layer too."""
    if isinstance(solver, CachedSolver):
        return solver.with_row_factors(rows)
    raise ValueError(
        "rows= are of use to solvers that keep their inverse, such as "
        f"natgrad.kronecker.FactoredTikhonov() for KFAC, got solver={solver!r}."
    )


def _measure_if(due: Array, measure: Any, health: Health) -> tuple[Array, Array]:
    """(residual, ratio), measured where due, else those of the last step."""
    return jax.lax.cond(
        any_over_vmap(due), measure, lambda: (health.residual, health.ratio)
    )


def _measure(
    metric: Metric,
    gradient: Params,
    solution: Solution,
    slope: Array,
    damping: Resolved,
    usable: Array,
) -> tuple[Array, Array]:
    """(|(F + λI) d − g| / |g|, ⟨d, F d⟩ / ⟨g, d⟩); 0 for 0."""
    direction, remainder = solution.value, solution.remainder
    own = by_leaf(damping, direction)
    if remainder is None:
        product = metric.mv(direction)
        square = tree.inner(direction, product)
        rest = jax.tree.map(
            lambda f, d, g, own: f.astype(own.dtype) + own * d - g,
            product,
            direction,
            gradient,
            own,
        )
        error = tree.inner(rest, rest)
    else:
        if isinstance(damping, LeafDamping | EntryDamping):
            length = tree.inner(direction, jax.tree.map(jnp.multiply, own, direction))
        else:
            length = damping * tree.inner(direction, direction)
        square = slope - length - remainder.inner
        error = remainder.norm**2
    ratio = jnp.where(slope == 0, 0, square / jnp.where(slope == 0, 1, slope))
    return _root_of_ratio(error, tree.inner(gradient, gradient), usable), ratio


def _root_of_ratio(square: Array, scale: Array, usable: Array) -> Array:
    """√(square / scale), with a derivative where it is 0; 0 where not usable."""
    safe = jnp.where(scale == 0, 1, scale)
    ratio = jnp.where(usable, square / safe, 0)
    return jnp.sqrt(jnp.where(ratio == 0, 1, ratio)) * (ratio != 0)
