"""The steps that K-FAC with one γ proposes for a batch, and M at each of them.

    u = (A + π γ_b I)⁻¹ V (G + γ_b/π I)⁻¹,     d = α u + μ d₀

γ_b = γ, or γ √((Λ_b + η)/mean(Λ + η)) where damping is by layer. M and the groups of
layers, each with its α and μ, are the same for every γ.
"""

from __future__ import annotations

import dataclasses
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Float, Int

from natgrad.curvature.base import Curvature
from natgrad.curvature.sub_batch import SubBatch
from natgrad.metrics.base import Metric
from natgrad.metrics.kronecker import FactoredTikhonov, KroneckerMetric
from natgrad.model.batch import input_count
from natgrad.solvers.damping import (
    DampingLike,
    OfMetric,
    mean_damping,
    resolve_damping,
)
from natgrad.transforms.adaptive.damping_search import SOLVER
from natgrad.transforms.adaptive.learning_rates import QuadraticModelState
from natgrad.transforms.adaptive.quadratic_forms import (
    EXACT,
    grouped_forms,
    merged,
    of_successive_blocks,
)
from natgrad.transforms.adaptive.quadratic_model import Minimum, QuadraticModel
from natgrad.transforms.state import ScaleByCurvatureState
from natgrad.transforms.validation import Step
from natgrad.tree import Layout
from natgrad.typing import Array, ArrayLike, Params, Statistics

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

    count: Int[Array, ""]
    gamma: Float[Array, ""]
    heading: Float[Array, ""]
    solve: ScaleByCurvatureState
    step: QuadraticModelState


@dataclasses.dataclass(frozen=True)
class Proposals:
    """The steps d of one batch at θ, by the inverses and γ that they are made with.

    Attributes:
        step: the arguments of the update: curvature, θ, batch, g, λ.
        metric: of the statistics so far, in which inverses are applied.
        solver: of g, which may be given as rows.
        model: M, over groups of layers.
        group_of: for each group of the state, its group in M.
        previous: d₀.
    """

    step: Step
    metric: KroneckerMetric
    solver: FactoredTikhonov
    model: QuadraticModel
    group_of: tuple[int, ...]
    previous: Params

    @classmethod
    def of(
        cls, step: Step, state: FactoredState, groups: int, weight_decay: ArrayLike
    ) -> Proposals:
        """Those of a batch; M is of the part of it that a `SubBatch` takes.

        Args:
            step: the arguments of the update.
            state: before the step.
            groups: how many groups of layers at most.
            weight_decay: η.

        Returns:
            The proposals.

        Raises:
            ValueError: the curvature keeps no Kronecker factors.
        """
        curvature, (params, inputs, targets, _) = step.curvature, step.batch
        model = curvature.model
        metric = curvature.metric(state.solve.statistics, params, inputs, targets)
        metric = as_kronecker(metric, curvature)
        damping = resolve_damping(step.damping, metric)
        examples = input_count(inputs, model.in_axes) or 1
        layers = of_successive_blocks(metric, groups)
        leaves, group_of = merged(layers, max(1, examples // EXAMPLES_A_GROUP))
        if isinstance(curvature, SubBatch):
            inputs, _ = curvature.subsample(inputs, None, state.step.count)
        forms = grouped_forms(model, params, inputs, EXACT, leaves)
        rows = step.rows
        return cls(
            step=step,
            metric=metric,
            solver=SOLVER if rows is None else SOLVER.with_row_factors(rows),
            model=QuadraticModel(forms, leaves, step.gradient, damping, weight_decay),
            group_of=group_of,
            previous=state.step.update,
        )

    def metric_of(self, statistics: Statistics) -> KroneckerMetric:
        """F of these statistics."""
        curvature, (params, inputs, targets, _) = self.step.curvature, self.step.batch
        metric = curvature.metric(statistics, params, inputs, targets)
        return as_kronecker(metric, curvature)

    def factor_damping(self, metric: KroneckerMetric, gamma: Float[Array, ""]) -> Any:
        """γ², or γ_b² of each layer.

        Args:
            metric: F, which some dampings are relative to.
            gamma: γ.
        """
        if isinstance(self.step.damping, jax.Array):
            return gamma**2
        total, mean = self._total(metric)
        scale = gamma**2 / jnp.where(mean > 0, mean, 1)
        return jax.tree.map(
            lambda own: jnp.where(mean > 0, scale * own, gamma**2), total
        )

    def first_gamma(
        self, metric: KroneckerMetric, gamma: Float[Array, ""]
    ) -> Float[Array, ""]:
        """√ mean(Λ + η) of a Λ that F decides, which was not known before.

        Args:
            metric: the first F.
            gamma: γ where that is 0.
        """
        _, mean = self._total(metric)
        root = jnp.sqrt(jnp.where(mean > 0, mean, 1))
        return jnp.where(mean > 0, root, gamma).astype(gamma.dtype)

    def _total(self, metric: KroneckerMetric) -> tuple[Any, Array]:
        """(Λ + ηI, its mean)."""
        own = resolve_damping(self.step.damping, metric)
        total = jax.tree.map(lambda own: own + self.model.weight_decay, own)
        return total, mean_damping(total, metric.layout)

    def propose(self, pieces: tuple, gamma: Float[Array, ""]) -> Minimum:
        """The step by inverses and their γ.

        Args:
            pieces: the inverses of each block.
            gamma: γ.

        Returns:
            M at its minimum, with coefficients [groups of the state, 2].
        """
        gradient = self.step.gradient
        damping = self.factor_damping(self.metric, gamma)
        u = self.solver.solve(self.metric, pieces, gradient, damping).value
        minimum = self.model.minimum(u, self.previous)
        coefficients = minimum.coefficients[jnp.array(self.group_of)]
        return minimum._replace(coefficients=coefficients)


def first_mean(damping: DampingLike, params: Params) -> Any:
    """tr Λ / P of a damping by layer; 1 where F or the parameters are not known yet.

    Args:
        damping: Λ.
        params: θ.
    """
    if not jax.tree.leaves(params):
        return 1
    layout = Layout.of(params)
    own = resolve_damping(damping, layout)
    return 1 if isinstance(own, OfMetric) else mean_damping(own, layout)


def as_kronecker(metric: Metric, curvature: Curvature) -> KroneckerMetric:
    """The metric, if it is one of Kronecker products.

    Args:
        metric: F.
        curvature: whose metric, for the error.

    Returns:
        The same metric.

    Raises:
        ValueError: the curvature keeps no Kronecker factors.
    """
    if not isinstance(metric, KroneckerMetric):
        raise ValueError(
            "scale_by_factored_curvature inverts Kronecker factors: give it "
            "natgrad.curvature.KFAC(model, labels), or a SubBatch of it, got "
            f"{type(curvature).__name__}."
        )
    return metric
