"""Steps that must not depend on the chart: how nearly they do not."""

from __future__ import annotations

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from natgrad.geometry.atlases import Chart
from natgrad.geometry.check.measures import place, relative_error, slope
from natgrad.geometry.check.report import Check, Report
from natgrad.geometry.points import Point
from natgrad.geometry.steps import Loss
from natgrad.typing import ArrayLike

# (loss, point, step size) -> point, such as `natural_step`
Step = Callable[[Loss, Point, ArrayLike], Point]


def invariance_order(
    step: Step,
    loss: Loss,
    point: Point,
    others: Sequence[Chart | str],
    order: tuple[float, float],
    *,
    time: float = 1.0,
    counts: Sequence[int] = (16, 32, 64),
) -> Report:
    """Measures how the spread between charts of a path of steps falls with the step
    size.

    Args:
        step: such as `natural_step` (order 1), `geodesic_step` (2), `flow_step` (4).
        loss: a function of a Point, in nats.
        point: where all paths start.
        others: the charts that are compared.
        order: the least and the greatest admissible order.
        time: the sum of the step sizes of a path.
        counts: how many steps it has.

    Returns:
        One check, of the order.
    """

    def ends(chart):
        start = point.to(chart)

        @jax.jit
        def end(count):
            move = lambda _, p: step(loss, p, time / count)
            return jax.lax.fori_loop(0, count, move, start).to(point.chart).coordinates

        return jnp.stack([end(count) for count in counts])

    paths = jnp.stack([ends(chart) for chart in others])  # [charts, counts, ...]
    paths = paths.reshape(len(others), len(counts), -1)
    spread = jnp.max(jnp.ptp(paths, axis=0), axis=-1)
    measured = slope(time / np.asarray(counts), spread)
    return Report(
        f"Invariance from {place(point)}",
        (Check("order of the spread between charts", measured, *order),),
    )


def affine_exactness(
    step: Step,
    loss: Loss,
    point: Point,
    h: float,
    *,
    tolerance: float | None = None,
) -> Report:
    """Checks that a step in coordinates x' = M x + b is the same step.

    Args:
        step: such as `natural_step`.
        loss: a function of a Point, in nats.
        point: where both start.
        h: the step size.
        tolerance: of the relative difference; None for 1e-12 in float64, 1e-4 in
            float32.

    Returns:
        One check, of the difference.
    """
    x = point.coordinates
    n = x.size
    rng = np.random.default_rng(0)
    matrix = np.eye(n) + np.triu(rng.uniform(0.2, 1, (n, n)), 1)
    matrix = jnp.asarray(matrix * (10.0 ** np.linspace(-1, 1, n))[:, None], x.dtype)
    offset = jnp.asarray(rng.normal(size=n), x.dtype)
    to_x = lambda y: jnp.linalg.solve(matrix, y.ravel() - offset).reshape(x.shape)
    from_x = lambda x: (matrix @ x.ravel() + offset).reshape(x.shape)
    chart = Chart(
        f"affine in {point.chart.name}",
        lambda y: point.chart.to_natural(to_x(y)),
        lambda eta: from_x(point.chart.from_natural(eta)),
        lambda y: point.chart.margins(to_x(y)),
    )
    here, there = (
        jax.jit(lambda p: step(loss, p, h).to(point.chart).coordinates)(start)
        for start in (point, point.to(chart))
    )
    bound = 1e-12 if x.dtype == jnp.float64 else 1e-4
    bound = bound if tolerance is None else tolerance
    return Report(
        f"Affine invariance at {place(point)}",
        (
            Check(
                "difference of the steps", float(relative_error(there, here)), 0, bound
            ),
        ),
    )
