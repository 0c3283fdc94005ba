"""K-FAC steps with the factored damping γ adapted, and rescaled with momentum.

    u = (A + π γ I)⁻¹ V (G + γ/π I)⁻¹,     d = α u + μ d₀

The factors are damped by γ, the quadratic model by λ, and (α, μ) minimise the model
(`scale_by_quadratic_model`). Every T₂ steps γ ω₂, γ and γ/ω₂ are tried, each with
inverses of its own, and that with the lowest model value stays.

Source: Martens & Grosse (2015), sections 6.4, 6.6 and 7.
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple, final

import jax
import jax.numpy as jnp
import optax

from natgrad import tree
from natgrad.adaptive.quadratic import (
    QuadraticModelState,
    check_batch,
    fisher_forms,
    minimum,
    part,
    scale_by_quadratic_model,
)
from natgrad.curvature.base import Curvature
from natgrad.damping import Damping, as_damping
from natgrad.kronecker import FactoredTikhonov
from natgrad.refresh import Kept, Refresh
from natgrad.solvers import any_member
from natgrad.state import ScaleByCurvatureState
from natgrad.transform import MISSING, scale_by_curvature
from natgrad.typing import Array, ArrayLike

SOLVER = FactoredTikhonov()


@final
@dataclasses.dataclass(frozen=True)
class Trials:
    """When γ is tried, and how far apart.

    Attributes:
        period: T₂, in steps.
        factor: ω₂ in (0, 1).
    """

    period: int = 20
    factor: float = 0.95**10

    def __post_init__(self):
        if not isinstance(self.period, int) or self.period < 1:
            raise ValueError(f"period must be an integer >= 1, got {self.period!r}.")
        if not 0 < self.factor < 1:
            raise ValueError(f"factor must lie in (0, 1), got {self.factor}.")


class FactoredState(NamedTuple):
    """State of `scale_by_factored_curvature`.

    Attributes:
        count: steps that were not skipped.
        gamma: γ.
        solve: the state of `scale_by_curvature`.
        step: the state of `scale_by_quadratic_model`.
    """

    count: Array
    gamma: Array
    solve: ScaleByCurvatureState
    step: QuadraticModelState


EVERY_TEN = Refresh(inverses=10)
TRIALS = Trials()


def scale_by_factored_curvature(
    curvature: Curvature,
    *,
    damping: ArrayLike | Damping = 1.0,
    weight_decay: ArrayLike = 0.0,
    decay: ArrayLike = 0.95,
    refresh: Refresh = EVERY_TEN,
    trials: Trials = TRIALS,
    seed: ArrayLike = 0,
) -> optax.GradientTransformationExtraArgs:
    """Replace the gradient by the whole update d of K-FAC with γ adapted.

    `update` takes `inputs=x`, and `damping=` instead of the rule's λ.

    Args:
        curvature: `natgrad.curvature.KFAC(model, labels)`.
        damping: λ, or a schedule of it; γ starts from √(λ + η).
        weight_decay: η, if the loss has ½ η |θ|² beside the model's.
        decay: β of the moving averages of A and G.
        refresh: how often, in steps, factors and inverses are renewed.
        trials: how often γ is tried.
        seed: of the key for sampled labels.
    """
    rule = as_damping(damping)
    direction = scale_by_curvature(
        curvature, decay=decay, solver=SOLVER, refresh=refresh, seed=seed
    )
    rescaled = scale_by_quadratic_model(
        curvature.model, damping=rule, weight_decay=weight_decay
    )

    def init(params):
        solve, step = direction.init(params), rescaled.init(params)
        gamma = jnp.sqrt(jnp.asarray(rule(0) + weight_decay, solve.decay.dtype))
        return FactoredState(jnp.zeros((), jnp.int32), gamma, solve, step)

    def update(
        updates,
        state,
        params=None,
        *,
        inputs=MISSING,
        targets=None,
        statistics=None,
        model_params=None,
        damping=None,
        **extra_args,
    ):
        del extra_args
        check_batch("scale_by_factored_curvature", params, inputs)
        strength = rule(state.step.count) if damping is None else damping
        seen, fixed = {"inputs": inputs}, {"model_params": model_params}
        u, solve = direction.update(
            updates,
            state.solve,
            params,
            targets=targets,
            statistics=statistics,
            damping=state.gamma**2,
            **seen,
            **fixed,
        )
        here = curvature if model_params is None else curvature.fixing(model_params)
        usable = ~solve.health.skipped

        def tried():
            metric = here.metric(solve.statistics, params, inputs, targets)
            forms = fisher_forms(part(curvature.model, model_params), params, inputs)

            def candidate(best, gamma):
                square = gamma**2
                pieces = tuple(
                    SOLVER.prepare(metric, square, range(SOLVER.pieces(metric)))
                )
                u = SOLVER.apply(metric, pieces, updates, square).value
                total = strength + weight_decay
                _, value = minimum(forms, total, updates, (u, state.step.update))
                kept = pieces if isinstance(solve.inverse, Kept) else ()
                found = (value, gamma, kept, u)
                return tree.where(value < best[0], found, best), None  # not for NaN

            kept = solve.inverse.pieces if isinstance(solve.inverse, Kept) else ()
            worst = jnp.full((), jnp.inf, state.gamma.dtype)
            grid = state.gamma * jnp.asarray(
                [1.0, trials.factor, 1 / trials.factor], state.gamma.dtype
            )
            (_, gamma, pieces, chosen), _ = jax.lax.scan(
                candidate, (worst, state.gamma, kept, u), grid
            )
            return gamma, _with_pieces(solve.inverse, pieces), chosen

        due = usable & (state.count % trials.period == 0)
        gamma, inverse, chosen = jax.lax.cond(
            any_member(due), tried, lambda: (state.gamma, solve.inverse, u)
        )
        gamma = jnp.where(due, gamma, state.gamma)
        inverse = tree.where(due, inverse, solve.inverse)
        chosen = tree.where(due, chosen, u)
        moved, step = rescaled.update(
            chosen, state.step, params, grad=updates, damping=strength, **seen, **fixed
        )
        solve = solve._replace(inverse=inverse)
        return moved, FactoredState(state.count + usable, gamma, solve, step)

    return optax.GradientTransformationExtraArgs(init, update)


def _with_pieces(inverse, pieces):
    """The kept inverse with new pieces, as old as one that was just made."""
    if not isinstance(inverse, Kept):
        return inverse
    return Kept(jnp.zeros_like(inverse.age), pieces)
