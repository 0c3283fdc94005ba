"""When K-FAC's averages of factors and their inverses are renewed.

Only a step that is taken renews them: so a step that is undone has changed nothing, and
nothing has to be copied to undo it.

Source: Martens & Grosse (2015), sections 6.6 and 8.
"""

from __future__ import annotations

import dataclasses
import math

import jax.numpy as jnp
from jaxtyping import Bool, Float

from natgrad import tree
from natgrad.control_flow import cond_in_place
from natgrad.curvature.base import Curvature
from natgrad.metrics.kronecker.factored_tikhonov import Inverted
from natgrad.solvers.damping import OfMetric
from natgrad.transforms.adaptive.damping_search import SOLVER, Trials, best_inverses
from natgrad.transforms.adaptive.proposals import FactoredState, Proposals
from natgrad.transforms.inverse_cache import Refresh, shapes_of_pieces
from natgrad.transforms.statistics_update import add_to_average
from natgrad.transforms.validation import Step
from natgrad.typing import Array, Params, Statistics


@dataclasses.dataclass(frozen=True)
class FactorSchedule:
    """How often averages, inverses and γ are renewed.

    Attributes:
        refresh: averages and inverses; not staggered.
        trials: γ.
    """

    refresh: Refresh
    trials: Trials

    @property
    def period(self) -> int:
        """Steps after which all that is due comes round again."""
        refresh = self.refresh
        return math.lcm(refresh.statistics, refresh.period, self.trials.period)

    def tries_gamma(self, count: Array, accepted: Array) -> Array:
        """Is γ tried after a step that is accepted, and how many steps before it?"""
        return accepted & (count > 0) & (count % self.trials.period == 0)

    def update_statistics(
        self, step: Step, state: FactoredState, accepted: Bool[Array, ""]
    ) -> tuple[Statistics, Array]:
        """The averages of the statistics, with those of this batch where they are due.

        Args:
            step: the arguments of the update.
            state: before the step.
            accepted: is the step taken?

        Returns:
            (averages, how many statistics are in them).
        """
        solve = state.solve

        def add_batch(averages):
            before = solve._replace(statistics=averages[0], estimates=averages[1])
            statistics = step.statistics
            if statistics is None:
                curvature = step.curvature.with_previous(before.statistics)
                statistics = curvature.estimate(*step.batch)
            usable = accepted & tree.all_finite(statistics)
            after = add_to_average(step.curvature, before, statistics, usable)
            return after.statistics, after.estimates

        due = state.count % self.refresh.statistics == 0
        due = accepted & (due | (state.count < self.refresh.warm_up))
        if step.statistics is not None:
            due = accepted
        return cond_in_place(due, add_batch, (solve.statistics, solve.estimates))

    def update_inverses(
        self,
        proposals: Proposals,
        state: FactoredState,
        statistics: Statistics,
        gamma: Float[Array, ""],
        accepted: Bool[Array, ""],
        trial: Bool[Array, ""],
    ) -> tuple[Float[Array, ""], tuple]:
        """γ and the inverses for the next step: new ones where they are due.

        Args:
            proposals: of this batch, which decide on γ in a trial.
            state: before the step.
            statistics: the averages after it.
            gamma: γ of the step.
            accepted: is the step taken?
            trial: is γ tried?

        Returns:
            (γ, inverses).
        """
        factors = jnp.stack([1.0, self.trials.factor**-state.heading])
        factors = factors.astype(gamma.dtype)

        def value_of(pieces, gamma):
            return -proposals.propose(pieces, gamma).decrease

        def renew(so_far):
            metric = proposals.metric_of(statistics)

            def invert(gamma):
                damping = proposals.factor_damping(metric, gamma)
                blocks = range(SOLVER.num_blocks(metric))
                return tuple(SOLVER.factorize(metric, damping, blocks))

            if isinstance(proposals.step.damping, OfMetric):
                first = proposals.first_gamma(metric, so_far[0])
                gamma = jnp.where(state.count == 0, first, so_far[0])
                so_far = gamma, so_far[1]
            return best_inverses(invert, factors, value_of, accepted, trial, so_far)

        due = trial | (accepted & self.refresh.renews_inverses(state.count))
        return cond_in_place(due, renew, (gamma, state.solve.inverse.pieces))


def identities(curvature: Curvature, params: Params) -> tuple:
    """The inverses where F is 0, times γ, which the step's length makes good: I.

    In float16 a gradient over γ² overflows.

    Args:
        curvature: of K-FAC.
        params: θ.

    Returns:
        An inverse of each block, shaped as `FactoredTikhonov` makes them.
    """

    def inverse(shape, diagonal):
        one = jnp.ones(()) if diagonal else jnp.eye(shape.shape[-1])
        return jnp.broadcast_to(one.astype(shape.dtype), shape.shape)

    return tuple(
        Inverted(inverse(a, a.ndim < g.ndim), inverse(g, False), jnp.array(False))
        for a, g, _ in shapes_of_pieces(SOLVER, curvature, params)
    )
