"""K-FAC steps with the factored damping γ adapted, and rescaled with momentum.

    u = (A + π γ I)⁻¹ V (G + γ/π I)⁻¹,     d = α u + μ d₀

The factors are damped by γ, the quadratic model by λ, and (α, μ) minimise the model
(`scale_by_quadratic_model`), for each layer or group of layers its own. Every T₂ steps
γ is compared with γ ω₂ or γ/ω₂, each with inverses of its own, and that with the lower
value of the model stays: the direction that was better last, and after a failure the
other. (Martens & Grosse compare all three, for half as many inverses again.)

A step applies what is kept, is decided on (`accept=` of `levenberg_marquardt`), and
only then are factors and inverses renewed, if it is taken: so a step that is undone
has changed nothing, and nothing has to be copied to undo it. Before the first factors
F is taken to be 0, so that the first step is one of steepest descent.

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
from natgrad.curvature.base import Curvature
from natgrad.curvature.sub_batch import SubBatch
from natgrad.model.batch import input_count
from natgrad.transforms.adaptive.damping_search import SOLVER, Trials
from natgrad.transforms.adaptive.factor_schedule import FactorSchedule, identities
from natgrad.transforms.adaptive.learning_rates import advance, no_step_yet
from natgrad.transforms.adaptive.proposals import (
    EXAMPLES_A_GROUP,
    BatchArguments,
    FactoredState,
    Proposals,
    kronecker_metric,
)
from natgrad.transforms.adaptive.quadratic_forms import (
    EXACT,
    check_batch,
    grouped_forms,
    merged,
    of_successive_blocks,
    part,
)
from natgrad.transforms.adaptive.quadratic_model import Minimum, QuadraticModel
from natgrad.transforms.damping import Damping, as_damping
from natgrad.transforms.health import first_failure
from natgrad.transforms.inverse_cache import InverseCache, Refresh
from natgrad.transforms.scale_by_curvature import scale_by_curvature
from natgrad.transforms.state import Health
from natgrad.transforms.validation import transformation, validate_update
from natgrad.typing import Array, ArrayLike, Params

# (step, the decrease of M in nats) -> (the part of the step to return, is it taken?)
Accept = Callable[[Params, Array], tuple[Params, Array]]


TWENTY = Refresh(statistics=5, inverses=20, warm_up=20)
TRIALS = Trials()


def scale_by_factored_curvature(
    curvature: Curvature,
    *,
    damping: ArrayLike | Damping = 1.0,
    weight_decay: ArrayLike = 0.0,
    decay: ArrayLike = 0.95,
    refresh: Refresh = TWENTY,
    trials: Trials = TRIALS,
    groups: int = 8,
    seed: ArrayLike = 0,
) -> optax.GradientTransformationExtraArgs:
    """Replace the gradient by the whole update d of K-FAC with γ adapted.

    `update` takes `inputs=x`, and `rows=` or `statistics=` as `scale_by_curvature`
    does; `damping=` instead of the rule's λ; `accept=` as `levenberg_marquardt` gives
    it. `health.residual` and `health.ratio` of the state are not measured.

    Args:
        curvature: `natgrad.curvature.KFAC(model, labels)`, or a `SubBatch` of it: then
            the quadratic model has the F of such a part of the batch too.
        damping: λ, or a schedule of it; γ starts from √(λ + η).
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
            missing.
    """
    rule = as_damping(damping)
    if not isinstance(groups, int) or groups < 1:
        raise ValueError(
            f"groups must be an integer >= 1, got {groups!r}. Under "
            "optax.inject_hyperparams name it in static_args."
        )
    if refresh.staggered:
        raise ValueError(
            "scale_by_factored_curvature renews all inverses with one γ: give it a "
            f"Refresh that is not staggered, got {refresh}."
        )
    solve = scale_by_curvature(curvature, decay=decay, seed=seed)
    schedule = FactorSchedule(refresh, trials)
    method = _Method(curvature, solve, rule, weight_decay, schedule, groups)
    return transformation(method.init, method.update)


@dataclasses.dataclass(frozen=True)
class _Method:
    """The arguments of the transformation, and an update as a path of steps."""

    curvature: Curvature
    solve: optax.GradientTransformationExtraArgs
    damping: Callable[[Any], ArrayLike]
    weight_decay: ArrayLike
    schedule: FactorSchedule
    groups: int

    def init(self, params: Params) -> FactoredState:
        solve: Any = self.solve.init(params)
        total = self.damping(0) + self.weight_decay
        gamma = jnp.sqrt(jnp.asarray(total, solve.decay.dtype))
        number_of_groups = 0
        if jax.tree.leaves(params):
            curvature = self.curvature.specialize(params)
            metric = kronecker_metric(
                curvature, solve.statistics, params, BatchArguments()
            )
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
        damping: ArrayLike | None = None,
        accept: Accept | None = None,
        **arguments: Any,
    ) -> tuple[Params, FactoredState]:
        batch = BatchArguments.of(arguments)
        check_batch("scale_by_factored_curvature", params, batch.inputs)
        curvature = validate_update(
            self.curvature,
            updates,
            state.solve,
            params,
            batch.inputs,
            batch.statistics,
            batch.model_params,
        )
        tree.check_kept(state.step.update, params)
        if damping is None:
            damping = self.damping(state.step.count)
        proposals = self.proposals(curvature, updates, state, params, damping, batch)
        return self.step(proposals, state, self.gamma(state, damping), accept)

    def step(
        self,
        proposals: Proposals,
        state: FactoredState,
        gamma: Array,
        accept: Accept | None,
    ) -> tuple[Params, FactoredState]:
        """The update and the next state, by the inverses so far and their γ."""
        solve = state.solve
        minimum = proposals.propose(solve.inverse.pieces, gamma)
        minimum, accepted = _ask(accept, minimum)
        # From here on what is kept changes, and only if the step is taken.
        counted = jnp.array(True) if accept is None else accepted
        key, draw = jax.random.split(solve.key)
        statistics, estimates = self.schedule.update_statistics(
            proposals, state, accepted, draw
        )
        trial = self.schedule.tries_gamma(state.count, accepted)
        next_gamma, pieces = self.schedule.update_inverses(
            proposals, state, statistics, gamma, accepted, trial
        )
        health = _health(solve.health, proposals.model.gradient, minimum, gamma)
        turned = trial & (next_gamma == gamma)
        solve = solve._replace(
            count=tree.increment(solve.count, counted),
            key=jnp.where(counted, key, solve.key),
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

    def gamma(self, state: FactoredState, damping: ArrayLike) -> Array:
        """γ of this step: that of the state, but in the first step √(λ + η).

        The first λ may differ from the one at init, where it follows the loss.
        """
        total = jnp.asarray(damping + self.weight_decay)
        first = (state.count == 0) & (total > 0)
        root = jnp.sqrt(jnp.where(first, total, 1))
        return jnp.where(first, root, state.gamma).astype(state.gamma.dtype)

    def proposals(
        self,
        curvature: Curvature,
        gradient: Params,
        state: FactoredState,
        params: Params,
        damping: ArrayLike,
        batch: BatchArguments,
    ) -> Proposals:
        """What this batch proposes: M of it, or of the part that a `SubBatch` takes."""
        metric = kronecker_metric(curvature, state.solve.statistics, params, batch)
        model = part(self.curvature.model, batch.model_params)
        examples = input_count(batch.inputs, model.in_axes) or 1
        layers = of_successive_blocks(metric, self.groups)
        groups, group_of = merged(layers, max(1, examples // EXAMPLES_A_GROUP))
        inputs = batch.inputs
        if isinstance(curvature, SubBatch):
            inputs, _ = curvature.subsample(inputs, None, state.step.count)
        forms = grouped_forms(model, params, inputs, EXACT, groups)
        rows = batch.rows
        return Proposals(
            curvature=curvature,
            params=params,
            batch=batch,
            metric=metric,
            solver=SOLVER if rows is None else SOLVER.with_row_factors(rows),
            model=QuadraticModel(forms, groups, gradient, damping, self.weight_decay),
            group_of=group_of,
            previous=state.step.update,
        )


def _ask(accept: Accept | None, minimum: Minimum) -> tuple[Minimum, Array]:
    """The step as far as it is to be taken, and is it?"""
    if accept is None:
        return minimum, minimum.usable
    step, accepted = accept(minimum.step, minimum.undamped)
    return minimum._replace(step=step), minimum.usable & accepted


def _health(health: Health, gradient: Params, minimum: Minimum, gamma: Array) -> Health:
    """The health after a step; a gradient of 0 has the step 0 and is sound."""
    at_rest = jnp.stack([jnp.all(g == 0) for g in jax.tree.leaves(gradient)]).all()
    sound = minimum.usable | at_rest
    return health._replace(
        damping=gamma**2,
        predicted_decrease=minimum.decrease,
        skipped=~sound,
        skips=tree.increment(health.skips, ~sound),
        reason=first_failure(tree.all_finite(gradient), True, True, sound),
    )
