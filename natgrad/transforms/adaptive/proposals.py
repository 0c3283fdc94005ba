"""The steps that K-FAC with one γ proposes for a batch, and M at each of them.

    u = (A + π γ I)⁻¹ V (G + γ/π I)⁻¹,     d = α u + μ d₀

M and the groups of layers, each with its α and μ, are the same for every γ.
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax.numpy as jnp

from natgrad.curvature.base import Curvature
from natgrad.metrics.kronecker import FactoredTikhonov, KroneckerMetric
from natgrad.transforms.adaptive.learning_rates import QuadraticModelState
from natgrad.transforms.adaptive.quadratic_model import Minimum, QuadraticModel
from natgrad.transforms.state import ScaleByCurvatureState
from natgrad.transforms.validation import MISSING
from natgrad.typing import Array, Inputs, Params, Statistics

# α and μ fit the noise of a batch, too: hardly, with as many examples for each group.
EXAMPLES_A_GROUP = 20


class FactoredState(NamedTuple):
    """State of `scale_by_factored_curvature`.

    Attributes:
        count: steps that were not skipped.
        gamma: γ.
        heading: −1 if γ ω₂ is tried next, 1 if γ/ω₂ is.
        solve: the state of `scale_by_curvature`.
        step: the state of `scale_by_quadratic_model`.
    """

    count: Array
    gamma: Array
    heading: Array
    solve: ScaleByCurvatureState
    step: QuadraticModelState


class BatchArguments(NamedTuple):
    """The batch among the extra arguments of `update`.

    Attributes:
        inputs: x, with the examples in the first axis.
        targets: labels, where the curvature needs them.
        statistics: of the batch, where the caller has estimated them.
        rows: of the gradient, by `KFAC.value_grad_and_rows`.
        model_params: all parameters, where this transformation sees a part.
    """

    inputs: Inputs = MISSING
    targets: Any = None
    statistics: Statistics = None
    rows: Any = None
    model_params: Params | None = None

    @classmethod
    def of(cls, arguments: dict[str, Any]) -> BatchArguments:
        """The batch of these; others are another transformation's of the same chain."""
        return cls(**{k: v for k, v in arguments.items() if k in cls._fields})


@dataclasses.dataclass(frozen=True)
class Proposals:
    """The steps d of one batch at θ, by the inverses and γ that they are made with.

    Attributes:
        curvature: for these parameters.
        params: θ.
        batch: the inputs and what comes with them.
        metric: of the statistics so far, in which inverses are applied.
        solver: of V, which may be given as rows.
        model: M, over groups of layers.
        group_of: for each group of the state, its group in M.
        previous: d₀.
    """

    curvature: Curvature
    params: Params
    batch: BatchArguments
    metric: KroneckerMetric
    solver: FactoredTikhonov
    model: QuadraticModel
    group_of: tuple[int, ...]
    previous: Params

    def metric_of(self, statistics: Statistics) -> KroneckerMetric:
        """F of these statistics."""
        return kronecker_metric(self.curvature, statistics, self.params, self.batch)

    def propose(self, pieces: tuple, gamma: Array) -> Minimum:
        """The step by these inverses and their γ, its coefficients for each group."""
        gradient = self.model.gradient
        u = self.solver.solve(self.metric, pieces, gradient, gamma**2).value
        minimum = self.model.minimum(u, self.previous)
        coefficients = minimum.coefficients[jnp.array(self.group_of)]
        return minimum._replace(coefficients=coefficients)


def kronecker_metric(
    curvature: Curvature, statistics: Statistics, params: Params, batch: BatchArguments
) -> KroneckerMetric:
    """F as Kronecker products; a ValueError where the curvature is none of K-FAC."""
    inputs = None if batch.inputs is MISSING else batch.inputs
    metric = curvature.metric(statistics, params, inputs, batch.targets)
    if not isinstance(metric, KroneckerMetric):
        raise ValueError(
            "scale_by_factored_curvature inverts Kronecker factors: give it "
            "natgrad.curvature.KFAC(model, labels), or a SubBatch of it, got "
            f"{type(curvature).__name__}."
        )
    return metric
