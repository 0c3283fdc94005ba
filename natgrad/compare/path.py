"""Along the step θ − h (A + λI)⁻¹ g: what quadratic models say, and what happens."""

from __future__ import annotations

import dataclasses
import functools

import jax
import jax.numpy as jnp
import numpy as np

from natgrad.compare.observation import Batch
from natgrad.metrics.base import Metric
from natgrad.model import Model
from natgrad.tree import inner
from natgrad.typing import Array, Params


@dataclasses.dataclass(frozen=True)
class Point:
    """One step size; nats an example, d = h (A + λI)⁻¹ g.

    Attributes:
        step_size: h.
        predicted_loss_decrease: ⟨g, d⟩ − ½⟨d, F d⟩.
        own_predicted_loss_decrease: the same with A in place of F.
        actual_loss_decrease: L(θ) − L(θ − d); negative where the step overshoots.
        predicted_kl: ½⟨d, F d⟩.
        own_predicted_kl: ½⟨d, A d⟩.
        actual_kl: mean KL(p_θ ‖ p_{θ−d}).
    """

    step_size: float
    predicted_loss_decrease: float
    own_predicted_loss_decrease: float
    actual_loss_decrease: float
    predicted_kl: float
    own_predicted_kl: float
    actual_kl: float


def walk(
    model: Model,
    batch: Batch,
    gradient: Params,
    damping: float,
    own: tuple[Metric, Params],
    exact: Metric,
    sizes: tuple[float, ...],
) -> tuple[tuple[Point, ...], float]:
    """The path from θ along (A + λI)⁻¹ g.

    Args:
        model: the statistical model.
        batch: θ, inputs and labels.
        gradient: g.
        damping: λ.
        own: A and (A + λI)⁻¹ g.
        exact: F.
        sizes: h.

    Returns:
        A point for each of `sizes`, and |(A + λI) d − g| / |g| of the direction.
    """
    path = _walked(model, batch, gradient, damping, own, exact, jnp.array(sizes))
    slope, kl, own_kl, residual, loss, losses, kls = (
        np.asarray(x, float) for x in path
    )
    points = [
        Point(
            step_size=h,
            predicted_loss_decrease=float(h * slope - h**2 * kl),
            own_predicted_loss_decrease=float(h * slope - h**2 * own_kl),
            actual_loss_decrease=float(loss - after),
            predicted_kl=float(h**2 * kl),
            own_predicted_kl=float(h**2 * own_kl),
            actual_kl=float(divergence),
        )
        for h, after, divergence in zip(sizes, losses, kls, strict=True)
    ]
    return tuple(points), float(residual)


@functools.partial(jax.jit, static_argnames="model")
def _walked(model, batch, gradient, damping, own, exact, sizes) -> tuple[Array, ...]:
    params, inputs, targets, _ = batch
    metric, direction = own
    image = metric.mv(direction)
    rest = jax.tree.map(lambda f, d, g: f + damping * d - g, image, direction, gradient)

    def at(h):
        end = jax.tree.map(lambda p, d: p - h.astype(d.dtype) * d, params, direction)
        return model.loss(end, inputs, targets), model.kl(params, end, inputs)

    losses, divergences = jax.lax.map(at, sizes)
    return (
        inner(gradient, direction),
        inner(direction, exact.mv(direction)) / 2,
        inner(direction, image) / 2,
        jnp.sqrt(inner(rest, rest) / inner(gradient, gradient)),
        model.loss(params, inputs, targets),
        losses,
        divergences,
    )
