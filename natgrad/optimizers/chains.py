"""What the optimizers are chained of."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import optax

from natgrad import tree
from natgrad.arguments import known_value
from natgrad.curvature.base import Curvature
from natgrad.eager import note_read
from natgrad.model import Model
from natgrad.solvers.base import Solver
from natgrad.transforms.averaging import ByBatch
from natgrad.transforms.damping import (
    AdaptiveRadius,
    Damping,
    DampingLike,
    TrustRegion,
    check_scalar,
)
from natgrad.transforms.health import SCALED, noted
from natgrad.transforms.inverse_cache import EVERY_STEP, Refresh
from natgrad.transforms.scale_by_curvature import scale_by_curvature
from natgrad.transforms.validation import transformation
from natgrad.typing import ArrayLike

# Of fixed and adapted radii, and of rates from 0.1 to 0.3, these end lowest on the
# problems of `benchmarks.drop_in`; exact steps, which fit batches, go further at 0.3.
# K-FAC ends at half the losses that it had at 0.3 with δ fixed at 0.01.
LEARNING_RATE, RADIUS = 0.3, AdaptiveRadius()
# For `model=`, which comes after a learning rate that has a default.
REQUIRED: Any = None


def chain(
    *steps: optax.GradientTransformation | None,
    learning_rate: optax.ScalarOrSchedule,
) -> optax.GradientTransformationExtraArgs:
    """The steps that are not None, and −η; a step that is not finite then is skipped.

    Args:
        steps: transformations in their order; None stands for none.
        learning_rate: η, or an optax schedule.

    Returns:
        The transformation; its update is to be added to the parameters as it is.

    Raises:
        ValueError: for a learning rate that is known and no finite number.
    """
    check_scalar("learning_rate", learning_rate)
    value = None if callable(learning_rate) else known_value(learning_rate)
    if value is not None and not math.isfinite(value):
        raise ValueError(f"learning_rate must be finite, got {learning_rate}.")
    scale = optax.scale_by_learning_rate(learning_rate)
    inner = optax.chain(*(step for step in steps if step is not None), scale)

    def update(updates, state, params=None, **extra_args):
        note_read(learning_rate, jnp.zeros((), jnp.int32))
        step, state = inner.update(updates, state, params, **extra_args)
        finite = tree.all_finite(step)
        return tree.zeros_where(~finite, step), noted(state, ~finite, SCALED)

    return transformation(inner.init, update)


def curvature_of(form: Callable[[Model], Curvature], model: Model) -> Curvature:
    """The curvature that an argument `curvature=` describes.

    Args:
        form: model -> curvature.
        model: the statistical model.

    Returns:
        The curvature of the model.

    Raises:
        ValueError: where `form` is no function, such as a curvature.
    """
    if callable(form):
        return form(model)
    raise ValueError(
        "curvature= is a function model -> curvature, such as natgrad.curvature.Dense; "
        f"got an object of type {type(form).__name__}. Under optax.inject_hyperparams, "
        "which takes functions for schedules, name it in static_args."
    )


def descend(
    curvature: Curvature,
    applied: TrustRegion,
    *,
    damping: DampingLike | Damping,
    decay: ArrayLike | ByBatch = 0.0,
    solver: Solver | None = None,
    refresh: Refresh = EVERY_STEP,
) -> optax.GradientTransformationExtraArgs:
    """−η α (v + ω θ) with v = (F̄ + λI)⁻¹ g + β v_before, within a trust region.

    Args:
        curvature: the approximation of F.
        applied: η, δ, β and ω.
        damping: λ, or a schedule.
        decay: of the moving average F̄, or what decides it.
        solver: as for `scale_by_curvature`.
        refresh: as for `scale_by_curvature`.

    Returns:
        The transformation; its update is to be added to the parameters as it is.

    Raises:
        ValueError: for impossible arguments.
    """
    direction = scale_by_curvature(
        curvature,
        damping=damping,
        decay=decay,
        solver=solver,
        refresh=refresh,
        trust_region=applied,
    )
    return chain(direction, learning_rate=applied.learning_rate)
