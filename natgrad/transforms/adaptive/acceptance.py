"""Is a step taken, whole or in part? And what has the last step done to this batch?"""

from __future__ import annotations

from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Bool, Float

from natgrad import tree
from natgrad.control_flow import any_over_vmap
from natgrad.transforms.adaptive.batch_loss import BatchLoss, Comparison
from natgrad.typing import Array, Params

# A step is of use elsewhere if another loss falls by this part of what its own did.
USE = 0.25


class Decision(NamedTuple):
    """On a step d.

    Attributes:
        full_step: d.
        length: the part of it that is judged: 1, or a power of ½.
        step: that part.
        accepted: is it taken?
        comparison: of the loss before and after it.
        decrease: M(0) − M(d) in nats, where what gave d knows it.
        modelled: whose decrease M predicts: d, or the step that d corrects.
    """

    full_step: Params
    length: Float[Array, ""]
    step: Params
    accepted: Bool[Array, ""]
    comparison: Comparison
    decrease: Float[Array, ""] | None
    modelled: Params

    @property
    def fell_short(self) -> Bool[Array, ""]:
        """Was d shortened or rejected?"""
        return ~self.accepted | (self.length < 1)


def decide(
    batch: BatchLoss, full_step: Params, decrease: Array | None, halvings: int
) -> Decision:
    """Take the longest of d, d/2, d/4 … that does not raise the loss, or none of them.

    None is taken where gradient or loss are not finite, nor a step of 0 for a gradient
    that is not 0. Where the decrease is within rounding there is nothing to gain: d is
    tried alone.

    Args:
        batch: whose loss decides.
        full_step: d, shaped like the parameters.
        decrease: M(0) − M(d) in nats, if known.
        halvings: how many halves are tried.

    Returns:
        The decision on d.
    """
    allowed = batch.finite & moves(batch, full_step) & tree.all_finite(full_step)

    def part(length):
        return full_step if halvings == 0 else scaled(length, full_step)

    def attempt(length):
        comparison = batch.compare(optax.apply_updates(batch.params, part(length)))
        finite = jnp.isfinite(comparison.after)
        return length, allowed & finite & (comparison.fall >= 0), comparison

    def attempt_half(best, _):
        length, accepted, comparison = best
        again = allowed & ~accepted
        if decrease is not None:
            again = again & (decrease > comparison.rounding)
        longest = jax.lax.cond(
            any_over_vmap(again),
            lambda: tree.where(again, attempt(length / 2), best),
            lambda: best,
        )
        return longest, None

    best = attempt(jnp.ones((), tree.working_dtype(batch.params)))
    if halvings > 0:
        best, _ = jax.lax.scan(attempt_half, best, length=halvings)
    length, accepted, comparison = best
    step = part(length)
    return Decision(full_step, length, step, accepted, comparison, decrease, full_step)


def judge_last_step(
    batch: BatchLoss, step: Params, after: Float[Array, ""], fall: Float[Array, ""]
) -> tuple[Bool[Array, ""], Bool[Array, ""]]:
    """Was the step that led here too long, or of little use, by another batch's loss?

    Neither, if this is the batch that it was made of, whose loss it may have lowered by
    what is there by chance. To second order the other loss fell by −⟨g', d⟩ +
    ½ ⟨d, H' d⟩. The step was too long if that is a rise, larger than the fall of its
    own loss, and so is the curvature's part: gradients of two batches disagree however
    short it is. It was of little use if the other loss fell by less than a quarter of
    what its own did.

    Args:
        batch: this batch, with its gradient g' after the step.
        step: d, the last that was taken.
        after: the loss of its own batch after it, in nats.
        fall: by how much that had fallen, in nats.

    Returns:
        (too long?, of little use?).
    """
    another = jnp.abs(batch.value - after) > batch.rounding
    another = another & batch.finite & (fall > 0)

    def judge():
        before_step = jax.tree.map(jnp.subtract, batch.params, step)
        other_fall = batch.at(before_step) - batch.value
        slope = tree.inner(batch.gradient, step).astype(batch.value.dtype)
        curved = other_fall + slope
        return (other_fall < -fall) & (curved > fall), other_fall < USE * fall

    too_long, little_use = jax.lax.cond(
        any_over_vmap(another), judge, lambda: (jnp.zeros((), bool),) * 2
    )
    return another & too_long, another & little_use


def moves(batch: BatchLoss, step: Params) -> Array:
    """Does the step move anything, or does it start where the gradient is 0?"""
    return tree.any_nonzero(step) | ~tree.any_nonzero(batch.gradient)


def scaled(length: Array, step: Params) -> Params:
    """A part of a step, in its dtypes."""
    return jax.tree.map(lambda d: length.astype(d.dtype) * d, step)
