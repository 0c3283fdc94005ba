"""What the optimizers are chained of."""

from __future__ import annotations

import math
from collections.abc import Callable

import jax
import optax

from natgrad import tree
from natgrad.control_flow import zeros_unless
from natgrad.curvature.base import Curvature
from natgrad.model import Model
from natgrad.transforms.damping import Damping, check_scalar
from natgrad.transforms.health import SCALED, noted
from natgrad.transforms.scale_by_curvature import scale_by_curvature
from natgrad.typing import ArrayLike


def chain(*steps: optax.GradientTransformation | None, learning_rate):
    """The steps that are not None, and −η; a step that is not finite then is skipped.

    Raises:
        ValueError: for a learning rate that is known and no finite number.
    """
    check_scalar("learning_rate", learning_rate)
    known = not callable(learning_rate)
    known = known and not isinstance(learning_rate, jax.core.Tracer)
    if known and not math.isfinite(float(learning_rate)):
        raise ValueError(f"learning_rate must be finite, got {learning_rate}.")
    given = [step for step in steps if step is not None]
    inner = optax.chain(*given, optax.scale_by_learning_rate(learning_rate))

    def update(updates, state, params=None, **extra_args):
        step, state = inner.update(updates, state, params, **extra_args)
        finite = tree.all_finite(step)
        return zeros_unless(finite, step), noted(state, ~finite, SCALED)

    return optax.GradientTransformationExtraArgs(inner.init, update)


def curvature_of(form: Callable[[Model], Curvature], model: Model) -> Curvature:
    """The curvature that an argument `curvature=` describes."""
    if callable(form):
        return form(model)
    raise ValueError(
        "curvature= is a function model -> curvature, such as natgrad.curvature.Dense; "
        f"got an object of type {type(form).__name__}. Under optax.inject_hyperparams, "
        "which takes functions for schedules, name it in static_args."
    )


def descend(
    curvature: Curvature,
    learning_rate: optax.ScalarOrSchedule,
    damping: ArrayLike | Damping,
    decay: ArrayLike,
) -> optax.GradientTransformationExtraArgs:
    """−η (F̄ + λI)⁻¹ g."""
    direction = scale_by_curvature(curvature, damping=damping, decay=decay)
    return chain(direction, learning_rate=learning_rate)
