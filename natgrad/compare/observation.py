"""One curvature, estimated on a batch and solved with, and what that costs."""

from __future__ import annotations

from typing import NamedTuple

from natgrad.compare import timing
from natgrad.compare.timing import Cost
from natgrad.curvature.base import Curvature
from natgrad.curvature.labels import Labels
from natgrad.metric import Metric
from natgrad.typing import Params


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


def observe(
    curvature: Curvature, batch: tuple, gradient: Params, damping: float, repeats: int
) -> Observation:
    """Estimate `curvature` on a batch and solve for its damped step, timed.

    Args:
        curvature: what to observe.
        batch: (params, inputs, targets, key).
        gradient: g.
        damping: λ.
        repeats: timed runs.
    """
    params, inputs, targets, key = batch

    def step(params, inputs, targets, key, gradient, damping):
        statistics = curvature.estimate(params, inputs, targets, key)
        metric = curvature.metric(statistics, params, inputs, targets)
        return metric.solution(gradient, damping), statistics

    (solution, statistics), cost = timing.measure(
        step, params, inputs, targets, key, gradient, damping, repeats=repeats
    )
    return Observation(
        metric=curvature.metric(statistics, params, inputs, targets),
        direction=solution.value,
        fallback=bool(solution.fallback),
        statistics_bytes=timing.size_in_bytes(statistics),
        cost=cost,
        labels=curvature.labels,
    )
