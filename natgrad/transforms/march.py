"""MARCH: SPRING whose damping is by a variance of each parameter.

    φ_k = (F_k + λ D_k)⁻¹ (g_k + λ μ D_k φ_{k−1}),     D_k = max(√v, ε)

which minimises |B φ − e|²/λ + |D^½ (φ − μ φ_{k−1})|² for F = Bᵀ B and g = Bᵀ e:
parameters of small variance move more freely. ε = 1e-8 is for those of none. Two
variances, entry by entry, from v_0 = 1:

    StepVariance    D_k by v_{k−1},  v_k = β v_{k−1} + (φ_k − φ_{k−1})²
    ScoreVariance   D_k by v_k,      v_k = β v_{k−1} + (1 − β) diag F_k / mean diag F_k

The mean is over the parameters that the batch sees; v of the others stays. v_0 = 1
makes the first step by the steps' variance SPRING's.

The paper solves in sample space, φ = μ φ_{k−1} + D⁻¹ Bᵀ (B D⁻¹ Bᵀ + λI)⁻¹ (e − μ B
φ_{k−1}), as `Gram` does; the form above is the same, and is for every curvature that
takes a damping by parameter.

Source: Gu et al. (2025), Solving the Hubbard model with neural quantum states,
arXiv:2507.02644, equations S17 to S23, for the variance of steps; JaQMC, Robust SR,
SPRING, and MARCH, for that of scores.
"""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Callable
from typing import NamedTuple, cast, final

import jax
import jax.numpy as jnp
import optax

from natgrad import tree
from natgrad.arguments import check_in, check_number
from natgrad.curvature.base import Curvature
from natgrad.eager import call
from natgrad.solvers.damping import (
    DampingLike,
    EntryDamping,
    damping_of_step,
    entries,
)
from natgrad.transforms.damping import Damping, TrustRegion, as_damping
from natgrad.transforms.spring import SpringState, metric_of_step, scale_by_spring
from natgrad.transforms.validation import transformation
from natgrad.tree import Layout, of_pairs
from natgrad.typing import Array, ArrayLike, Params

# ε; its square is above 0 in float32.
_LEAST = 1e-8


@dataclasses.dataclass(frozen=True)
class Variance(abc.ABC):
    """v, entry by entry [P].

    Attributes:
        decay: β in [0, 1].
    """

    decay: ArrayLike

    def __post_init__(self):
        check_in("decay", self.decay, lambda beta: 0 <= beta <= 1, "lie in [0, 1]")

    @abc.abstractmethod
    def before(self, v: Array, diagonal: Callable[[], Array]) -> Array:
        """v that the step is damped by.

        Args:
            v: of the step before.
            diagonal: gives diag F of the batch.
        """

    @abc.abstractmethod
    def after(self, v: Array, change: Array) -> Array:
        """v to remember.

        Args:
            v: that the step was damped by.
            change: φ_k − φ_{k−1}.
        """


@final
@dataclasses.dataclass(frozen=True)
class StepVariance(Variance):
    """MARCH as published: v_k = β v_{k−1} + (φ_k − φ_{k−1})²."""

    decay: ArrayLike = 0.995

    def before(self, v: Array, diagonal: Callable[[], Array]) -> Array:
        """v of the steps so far; arguments are those of `Variance.before`."""
        del diagonal
        return v

    def after(self, v: Array, change: Array) -> Array:
        """β v + the change squared; arguments are those of `Variance.after`."""
        return jnp.asarray(self.decay, v.dtype) * v + change**2


@final
@dataclasses.dataclass(frozen=True)
class ScoreVariance(Variance):
    """MARCH by scores: v_k = β v_{k−1} + (1 − β) diag F_k / mean diag F_k.

    Diag F is the scores' variance. F of each batch is asked for its diagonal, beside
    the solve.
    """

    decay: ArrayLike = 0.5

    def before(self, v: Array, diagonal: Callable[[], Array]) -> Array:
        """v with this batch; arguments are those of `Variance.before`."""
        squares, beta = diagonal(), jnp.asarray(self.decay, v.dtype)
        seen = squares > jnp.finfo(v.dtype).eps * jnp.max(squares)
        mean = jnp.mean(squares, where=seen)
        return jnp.where(seen, beta * v + (1 - beta) * squares / mean, v)

    def after(self, v: Array, change: Array) -> Array:
        """v; arguments are those of `Variance.after`."""
        del change
        return v


BY_STEPS = StepVariance()


class MarchState(NamedTuple):
    """State of `scale_by_march`.

    Attributes:
        variance: v, like the parameters.
        spring: φ of the last step, μ, and the state of the solve.
    """

    variance: Params
    spring: SpringState


def scale_by_march(
    curvature: Curvature,
    *,
    damping: DampingLike | Damping = 1e-3,
    momentum: ArrayLike = 0.95,
    variance: StepVariance | ScoreVariance = BY_STEPS,
    trust_region: TrustRegion | None = None,
    seed: ArrayLike = 0,
) -> optax.GradientTransformationExtraArgs:
    """Replace the gradient g by φ = (F + λ D)⁻¹ (g + λ μ D φ_before).

    Takes the extra arguments of `scale_by_spring`, and skips the steps it skips.
    `health.damping` is the mean of λ D.

    Args:
        curvature: the approximation of the Fisher information; `KFAC` and `EKFAC` are
            refused, whose eigenbases F + λ D does not have.
        damping: λ >= 0, or a schedule of it, which D multiplies; by layer too, but for
            what F decides.
        momentum: μ in [0, 1].
        variance: what D is the root of: `natgrad.StepVariance(decay)`, or
            `natgrad.ScoreVariance(decay)`, which needs `inputs=` in every step.
        trust_region: as for `scale_by_spring`.
        seed: as for `scale_by_curvature`.

    Raises:
        ValueError: for impossible arguments; in `update` for a damping that does not
            fit the parameters, or that F decides.
    """
    if not isinstance(variance, Variance):
        raise ValueError(
            "variance must be natgrad.StepVariance(decay) or ScoreVariance(decay), got "
            f"{variance!r}."
        )
    check_number("momentum", momentum)
    rule = as_damping(damping)
    inner = scale_by_spring(
        curvature, momentum=momentum, trust_region=trust_region, seed=seed
    )

    def init(params):
        ones = jax.tree.map(jnp.ones_like, params)
        return MarchState(ones, cast(SpringState, inner.init(params)))

    def update(updates, state, params=None, *, damping=None, **extra_args):
        last, spring = state
        layout = Layout.of(updates)
        own = damping_of_step(call(rule, spring.solve.count), damping, layout)

        def diagonal():
            reader = "ScoreVariance() reads the diagonal of F"
            metric = metric_of_step(reader, curvature, spring.solve, params, extra_args)
            return layout.ravel(metric.diagonal())

        v = variance.before(layout.ravel(last), diagonal)
        scale = entries(own, layout) * jnp.sqrt(jnp.maximum(v, _LEAST**2))
        direction, new = inner.update(
            updates, spring, params, damping=EntryDamping(scale), **extra_args
        )
        new = cast(SpringState, new)
        change = layout.ravel(new.direction) - layout.ravel(spring.direction)
        moved = layout.unravel(variance.after(v, change))
        kept = tree.where(new.solve.health.skipped, last, moved)
        return direction, MarchState(kept, new)

    return transformation(*of_pairs(init, update))
