"""MARCH: SPRING whose damping is by the variance of the steps so far.

    φ_k = (F_k + λ D_k)⁻¹ (g_k + λ μ D_k φ_{k−1}),     D_k = max(√v_{k−1}, ε)
    v_k = β v_{k−1} + (φ_k − φ_{k−1})²,                v_0 = 1

entry by entry, which minimises |B φ − e|²/λ + |D^½ (φ − μ φ_{k−1})|² for F = Bᵀ B and
g = Bᵀ e: parameters whose steps vary little move more freely. v_0 = 1 makes the first
step SPRING's. ε = 1e-8 is for parameters that do not move.

The paper solves in sample space, φ = μ φ_{k−1} + D⁻¹ Bᵀ (B D⁻¹ Bᵀ + λI)⁻¹ (e − μ B
φ_{k−1}), as `Gram` does; the form above is the same, and is for every curvature that
takes a damping by parameter.

Source: Gu et al. (2025), Solving the Hubbard model with neural quantum states,
arXiv:2507.02644, equations S17 to S23.
"""

from __future__ import annotations

from typing import NamedTuple, cast

import jax
import jax.numpy as jnp
import optax

from natgrad import tree
from natgrad.curvature.base import Curvature
from natgrad.eager import call
from natgrad.solvers.damping import (
    DampingLike,
    EntryDamping,
    damping_of_step,
    entries,
)
from natgrad.transforms.damping import (
    Damping,
    TrustRegion,
    as_damping,
    check_number,
    known_value,
)
from natgrad.transforms.spring import SpringState, scale_by_spring
from natgrad.transforms.validation import transformation
from natgrad.tree import Layout, of_pairs
from natgrad.typing import ArrayLike, Params

# ε; its square is above 0 in float32.
_LEAST = 1e-8


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
    variance_decay: ArrayLike = 0.995,
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
        variance_decay: β in [0, 1], of v.
        trust_region: as for `scale_by_spring`.
        seed: as for `scale_by_curvature`.

    Raises:
        ValueError: for impossible arguments; in `update` for a damping that does not
            fit the parameters, or that F decides.
    """
    check_number("variance_decay", variance_decay)
    known = known_value(variance_decay)
    if known is not None and not 0 <= known <= 1:
        raise ValueError(f"variance_decay must lie in [0, 1], got {variance_decay}.")
    rule = as_damping(damping)
    inner = scale_by_spring(
        curvature, momentum=momentum, trust_region=trust_region, seed=seed
    )

    def init(params):
        ones = jax.tree.map(jnp.ones_like, params)
        return MarchState(ones, cast(SpringState, inner.init(params)))

    def update(updates, state, params=None, *, damping=None, **extra_args):
        variance, spring = state
        layout = Layout.of(updates)
        own = damping_of_step(call(rule, spring.solve.count), damping, layout)
        root = jnp.sqrt(jnp.maximum(layout.ravel(variance), _LEAST**2))
        scale = entries(own, layout) * root
        direction, new = inner.update(
            updates, spring, params, damping=EntryDamping(scale), **extra_args
        )
        new = cast(SpringState, new)
        moved = jax.tree.map(
            lambda v, new, old: (
                jnp.asarray(variance_decay, v.dtype) * v + (new - old) ** 2
            ).astype(v.dtype),
            variance,
            new.direction,
            spring.direction,
        )
        kept = tree.where(new.solve.health.skipped, variance, moved)
        return direction, MarchState(kept, new)

    return transformation(*of_pairs(init, update))
