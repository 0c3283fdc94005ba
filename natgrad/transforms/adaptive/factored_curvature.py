"""K-FAC steps with the factored damping γ adapted, and rescaled with momentum.

    u = (A + π γ_b I)⁻¹ V (G + γ_b/π I)⁻¹,     d = α u + μ d₀

The factors are damped by γ, the quadratic model by λ; where damping is by layer, by

    γ_b² = γ² (Λ_b + η) / mean(Λ + η)

and Λ. (α, μ) minimise the model (`scale_by_quadratic_model`), for each layer or group
of layers its own. Every T₂ steps γ is compared with γ ω₂ or γ/ω₂, each with inverses of
its own, and that with the lower value of the model stays: the direction that was better
last, and after a failure the other. (Martens & Grosse compare all three, for half as
many inverses again.)

A step uses the inverses of the steps before it. `accept=` of `levenberg_marquardt` then
decides whether it is taken, and only if it is, factors and inverses are renewed: so a
step that is undone has changed nothing, and nothing has to be copied to undo it. Before
the first factors F is taken to be 0: the first step is one of steepest descent, and
dampings that F decides are 0 in its model. The first factors decide on their first γ.

Source: Martens & Grosse (2015), sections 6.4, 6.6, 7 and 8.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax

from natgrad import tree
from natgrad.arguments import check_weight_decay
from natgrad.curvature.base import Curvature
from natgrad.eager import call
from natgrad.solvers.damping import DampingLike, is_by_layer, mean_damping
from natgrad.transforms.adaptive.damping_search import Trials
from natgrad.transforms.adaptive.factor_schedule import FactorSchedule, identities
from natgrad.transforms.adaptive.learning_rates import advance, no_step_yet
from natgrad.transforms.adaptive.proposals import (
    FactoredState,
    Proposals,
    as_kronecker,
    first_mean,
)
from natgrad.transforms.adaptive.quadratic_forms import (
    check_batch,
    of_successive_blocks,
)
from natgrad.transforms.adaptive.quadratic_model import Minimum
from natgrad.transforms.damping import Damping, as_damping, first_damping
from natgrad.transforms.health import first_failure
from natgrad.transforms.inverse_cache import InverseCache, Refresh
from natgrad.transforms.scale_by_curvature import scale_by_curvature
from natgrad.transforms.state import Health
from natgrad.transforms.validation import MISSING, Step, transformation, validate_step
from natgrad.tree import of_pairs
from natgrad.typing import Array, ArrayLike, Params

# (step, the decrease of M in nats) -> (the part of the step to return, is it taken?)
Accept = Callable[[Params, Array], tuple[Params, Array]]


TWENTY = Refresh(statistics=5, inverses=20, warm_up=20)
TRIALS = Trials()


def scale_by_factored_curvature(
    curvature: Curvature,
    *,
    damping: DampingLike | Damping = 1.0,
    weight_decay: ArrayLike = 0.0,
    decay: ArrayLike = 0.95,
    refresh: Refresh = TWENTY,
    trials: Trials = TRIALS,
    groups: int = 8,
    seed: ArrayLike = 0,
) -> optax.GradientTransformationExtraArgs:
    """Replace the gradient by the whole update d of K-FAC with γ adapted.

    `update` takes `inputs=x`, and `rows=` or `statistics=` as `scale_by_curvature`
    does; `damping=` instead of the rule's λ, or to multiply what is by layer; `accept=`
    as `levenberg_marquardt` gives
    it. `health.residual` and `health.ratio` of the state are not measured.

    Args:
        curvature: `natgrad.curvature.KFAC(model, labels)`, or a `SubBatch` of it: then
            the quadratic model has the F of such a part of the batch too.
        damping: λ, or a schedule of it, by layer too; γ starts from √(λ + η), by the
            mean of λ over the parameters.
        weight_decay: η, if the loss has ½ η |θ|² beside the model's.
        decay: β of the moving averages of A and G.
        refresh: how often, in steps, factors and inverses are renewed; not staggered.
        trials: how often γ is tried.
        groups: G: α and μ for each of so many groups of successive layers, or for each
            layer where there are fewer; at most one group for 20 examples of a batch.
        seed: of the key for sampled labels.

    Returns:
        The transformation; its update is to be added to the parameters as it is.

    Raises:
        ValueError: for impossible arguments, a staggered refresh, and a curvature that
            keeps no Kronecker factors; in `update`, where `inputs=` or `params` is
            missing, and in both where the damping does not fit the parameters.
    """
    rule = as_damping(damping)
    if not isinstance(groups, int) or groups < 1:
        raise ValueError(
            f"groups must be an integer >= 1, got {groups!r}. Under "
            "optax.inject_hyperparams name it in static_args."
        )
    if not refresh.renewal.together:
        raise ValueError(
            "scale_by_factored_curvature renews all inverses with one γ: give it a "
            f"Refresh by count that is not staggered, got {refresh}."
        )
    check_weight_decay(weight_decay)
    curvature = refresh.of_part(curvature)
    solve = scale_by_curvature(curvature, decay=decay, seed=seed)
    schedule = FactorSchedule(refresh, trials)
    method = _Method(curvature, solve, rule, weight_decay, schedule, groups)
    return transformation(*of_pairs(method.init, method.update))


@dataclasses.dataclass(frozen=True)
class _Method:
    """The arguments of the transformation, and an update as a path of steps."""

    curvature: Curvature
    solve: optax.GradientTransformationExtraArgs
    damping: Damping
    weight_decay: ArrayLike
    schedule: FactorSchedule
    groups: int

    def init(self, params: Params) -> FactoredState:
        solve: Any = self.solve.init(params)
        number_of_groups, own = 0, first_damping(self.damping)
        if is_by_layer(own):
            own = first_mean(own, params)
        gamma = jnp.sqrt(jnp.asarray(own + self.weight_decay, solve.decay.dtype))
        if jax.tree.leaves(params):
            curvature = self.curvature.specialize(params)
            metric = curvature.metric(solve.statistics, params)
            metric = as_kronecker(metric, curvature)
            number_of_groups = len(of_successive_blocks(metric, self.groups))
            pieces = identities(curvature, params)
            inverse = InverseCache(jnp.full((), -1, jnp.int32), pieces)
            solve = solve._replace(inverse=inverse)
        return FactoredState(
            count=jnp.zeros((), jnp.int32),
            gamma=gamma,
            heading=jnp.array(-1.0, gamma.dtype),
            solve=solve,
            step=no_step_yet(params, number_of_groups),
        )

    def update(
        self,
        updates: Params,
        state: FactoredState,
        params: Params | None = None,
        *,
        accept: Accept | None = None,
        **extra_args: Any,
    ) -> tuple[Params, FactoredState]:
        inputs = extra_args.get("inputs", MISSING)
        check_batch("scale_by_factored_curvature", params, inputs)
        step = validate_step(
            self.curvature,
            lambda _: call(self.damping, state.step.count),
            updates,
            state.solve,
            params,
            extra_args,
        )
        tree.check_kept(state.step.update, params)
        proposals = Proposals.of(step, state, self.groups, self.weight_decay)
        return self.step(proposals, state, self.gamma(state, proposals), accept)

    def step(
        self,
        proposals: Proposals,
        state: FactoredState,
        gamma: Array,
        accept: Accept | None,
    ) -> tuple[Params, FactoredState]:
        """The update and the next state, by the inverses so far and their γ."""
        step, solve = proposals.step, state.solve
        minimum = proposals.propose(solve.inverse.pieces, gamma)
        minimum, accepted = _ask(accept, minimum)
        # From here on the state changes, and only if the step is taken.
        counted = jnp.array(True) if accept is None else accepted
        statistics, estimates = self.schedule.update_statistics(step, state, accepted)
        trial = self.schedule.tries_gamma(state.count, accepted)
        next_gamma, pieces = self.schedule.update_inverses(
            proposals, state, statistics, gamma, accepted, trial
        )
        health = _health(solve.health, step, minimum, gamma)
        turned = trial & (next_gamma == gamma)
        solve = solve._replace(
            count=tree.increment(solve.count, counted),
            key=tree.where(counted, step.batch.key, solve.key),
            statistics=statistics,
            estimates=estimates,
            inverse=InverseCache(tree.increment(solve.inverse.age, accepted), pieces),
            health=tree.where(counted, health, solve.health),
        )
        return minimum.step, FactoredState(
            count=tree.increment(state.count, accepted, self.schedule.period),
            gamma=jnp.where(counted, next_gamma, state.gamma),
            heading=jnp.where(turned, -state.heading, state.heading),
            solve=solve,
            step=advance(state.step, minimum, accepted, counted),
        )

    def gamma(self, state: FactoredState, proposals: Proposals) -> Array:
        """γ of this step: that of the state, but in the first step √(λ + η).

        The first λ may differ from the one at init, where it follows the loss.
        """
        damping = mean_damping(proposals.model.damping, proposals.step.layout)
        total = damping + self.weight_decay
        first = (state.count == 0) & (total > 0)
        root = jnp.sqrt(jnp.where(first, total, 1))
        return jnp.where(first, root, state.gamma).astype(state.gamma.dtype)


def _ask(accept: Accept | None, minimum: Minimum) -> tuple[Minimum, Array]:
    """The step as far as it is to be taken, and is it?"""
    if accept is None:
        return minimum, minimum.usable
    step, accepted = accept(minimum.step, minimum.undamped)
    return minimum._replace(step=step), minimum.usable & accepted


def _health(health: Health, step: Step, minimum: Minimum, gamma: Array) -> Health:
    """The health after a step; a gradient of 0 has the step 0 and is sound."""
    sound = minimum.usable | ~tree.any_nonzero(step.gradient)
    return health._replace(
        damping=gamma**2,
        predicted_decrease=minimum.decrease,
        skipped=~sound,
        skips=tree.increment(health.skips, ~sound),
        reason=first_failure(step.finite, True, True, sound),
    )
