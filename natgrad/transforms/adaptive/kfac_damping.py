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

import math
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from natgrad import tree
from natgrad.control_flow import cond_in_place
from natgrad.curvature.base import Curvature
from natgrad.curvature.sub_batch import SubBatch
from natgrad.metrics.kronecker import Inverted
from natgrad.model.batch import input_count
from natgrad.transforms.adaptive.damping_search import SOLVER, Trials, best_inverses
from natgrad.transforms.adaptive.fisher_forms import (
    EXACT,
    check_batch,
    grouped_forms,
    merged,
    of_successive_blocks,
    part,
)
from natgrad.transforms.adaptive.quadratic_model import (
    Minimum,
    QuadraticModelState,
    advance,
    minimum,
    no_step_yet,
)
from natgrad.transforms.damping import Damping, as_damping
from natgrad.transforms.health import first_failure
from natgrad.transforms.inverse_cache import InverseCache, Refresh, shapes_of_pieces
from natgrad.transforms.scale_by_curvature import scale_by_curvature
from natgrad.transforms.state import ScaleByCurvatureState
from natgrad.transforms.statistics_update import add_to_average
from natgrad.transforms.validation import MISSING, transformation, validate_update
from natgrad.typing import Array, ArrayLike, Params

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
    period = math.lcm(refresh.statistics, refresh.inverses, trials.period)
    plain = scale_by_curvature(curvature, decay=decay, seed=seed)
    parts = lambda metric: of_successive_blocks(metric, groups)

    def init(params):
        solve = plain.init(params)
        gamma = jnp.sqrt(jnp.asarray(rule(0) + weight_decay, solve.decay.dtype))
        zero, number = jnp.zeros((), jnp.int32), 0
        if jax.tree.leaves(params):
            here = curvature.specialize(params)
            pieces = _of_nothing(here, params)
            solve = solve._replace(
                inverse=InverseCache(jnp.full((), -1, jnp.int32), pieces)
            )
            number = len(parts(here.metric(solve.statistics, params)))
        step = no_step_yet(params, number)
        return FactoredState(zero, gamma, jnp.array(-1.0, gamma.dtype), solve, step)

    def update(
        updates,
        state,
        params=None,
        *,
        inputs=MISSING,
        targets=None,
        statistics=None,
        rows=None,
        model_params=None,
        damping=None,
        accept=None,
        **extra_args,
    ):
        del extra_args
        check_batch("scale_by_factored_curvature", params, inputs)
        solve, count = state.solve, state.count
        here = validate_update(
            curvature, updates, solve, params, inputs, statistics, model_params
        )
        tree.check_kept(state.step.update, params)
        metric_of = lambda found: here.metric(found, params, inputs, targets)
        metric = metric_of(solve.statistics)
        strength = rule(state.step.count) if damping is None else damping
        dtype, total = state.gamma.dtype, strength + weight_decay
        # The first λ may differ from the one at init, where it follows the loss.
        fresh = (count == 0) & (total > 0)
        gamma = jnp.where(fresh, jnp.sqrt(jnp.where(fresh, total, 1)), state.gamma)
        gamma = gamma.astype(dtype)
        seen = inputs
        if isinstance(here, SubBatch):
            seen, _ = here.subsample(inputs, None, state.step.count)
        whole = part(curvature.model, model_params)
        examples = input_count(inputs, whole.in_axes) or 1
        leaves, where = merged(parts(metric), max(1, examples // EXAMPLES_A_GROUP))
        forms = grouped_forms(whole, params, seen, EXACT, leaves)
        solver = SOLVER if rows is None else SOLVER.with_row_factors(rows)

        def proposed(pieces, gamma) -> Minimum:
            u = solver.solve(metric, pieces, updates, gamma**2).value
            before = state.step.update
            found = minimum(forms, strength, weight_decay, updates, u, before, leaves)
            return found._replace(coefficients=found.coefficients[jnp.array(where)])

        found = proposed(solve.inverse.pieces, gamma)
        taken = found.usable
        if accept is not None:
            step, accepted = accept(found.step, found.undamped)
            taken, found = taken & accepted, found._replace(step=step)

        # From here on what is kept changes, and only if the step is taken.
        key, draw = jax.random.split(solve.key)

        def averaged(now):
            old, new = solve._replace(statistics=now[0], estimates=now[1]), statistics
            if new is None:
                mine = here.with_previous(old.statistics)
                new = mine.estimate(params, inputs, targets, draw)
            new = add_to_average(here, old, new, taken & tree.all_finite(new))
            return new.statistics, new.estimates

        due = (count % refresh.statistics == 0) | (count < refresh.warm_up)
        due = taken if statistics is not None else taken & due
        known = cond_in_place(due, averaged, (solve.statistics, solve.estimates))
        trial = taken & (count > 0) & (count % trials.period == 0)
        factors = jnp.stack([1.0, trials.factor**-state.heading]).astype(dtype)
        value_of = lambda pieces, gamma: -proposed(pieces, gamma).decrease

        def inverted(kept):
            metric = metric_of(known[0])
            return best_inverses(metric, factors, value_of, taken, trial, kept)

        due = trial | (taken & refresh.renews_inverses(count))
        next_gamma, pieces = cond_in_place(due, inverted, (gamma, solve.inverse.pieces))
        turned = trial & (next_gamma == gamma)
        counted = jnp.array(True) if accept is None else taken
        at_rest = jnp.stack([jnp.all(g == 0) for g in jax.tree.leaves(updates)]).all()
        sound = found.usable | at_rest  # a gradient of 0 has the step 0
        health = solve.health._replace(
            damping=gamma**2,
            predicted_decrease=found.decrease,
            skipped=~sound,
            skips=tree.increment(solve.health.skips, ~sound),
            reason=first_failure(tree.all_finite(updates), True, True, sound),
        )
        return found.step, FactoredState(
            count=tree.increment(count, taken, period),
            gamma=jnp.where(counted, next_gamma, state.gamma),
            heading=jnp.where(turned, -state.heading, state.heading),
            solve=solve._replace(
                count=tree.increment(solve.count, counted),
                key=jnp.where(counted, key, solve.key),
                statistics=known[0],
                estimates=known[1],
                inverse=InverseCache(tree.increment(solve.inverse.age, taken), pieces),
                health=tree.where(counted, health, solve.health),
            ),
            step=advance(state.step, found, taken, counted),
        )

    return transformation(init, update)


def _of_nothing(curvature: Curvature, params: Params) -> tuple:
    """The inverses where F is 0, times γ, which the step's length makes good: I.

    In float16 a gradient over γ² overflows.
    """

    def inverse(shape, diagonal):
        one = jnp.ones(()) if diagonal else jnp.eye(shape.shape[-1])
        return jnp.broadcast_to(one.astype(shape.dtype), shape.shape)

    return tuple(
        Inverted(inverse(a, a.ndim < g.ndim), inverse(g, False), jnp.array(False))
        for a, g, _ in shapes_of_pieces(SOLVER, curvature, params)
    )
