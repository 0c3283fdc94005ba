"""What the optimizers are chained of."""

from __future__ import annotations

from collections.abc import Callable

import optax

from natgrad.curvature.base import Curvature
from natgrad.damping import Damping
from natgrad.model import Model
from natgrad.transform import scale_by_curvature
from natgrad.typing import ArrayLike


def chain(direction, then, learning_rate) -> optax.GradientTransformationExtraArgs:
    """A direction, what comes then, if anything, and −η."""
    steps = [direction] if then is None else [direction, then]
    return optax.chain(*steps, optax.scale_by_learning_rate(learning_rate))


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
    return chain(direction, None, learning_rate)
