"""Is a step taken, whole or in part? And what has the step before done elsewhere?"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from natgrad import tree
from natgrad.control_flow import any_over_vmap
from natgrad.transforms.adaptive.comparison import Comparison, rounding_of
from natgrad.typing import Array, Params

# A step is of use elsewhere if another loss falls by this part of what its own did.
USE = 0.25


class Decision(NamedTuple):
    """On a step d.

    Attributes:
        whole: d.
        length: the part of it that is judged: 1, or a power of ½.
        step: that part.
        taken: is it taken?
        found: how the losses before and after compare.
        decrease: M(0) − M(d), where what gave d knows it.
    """

    whole: Params
    length: Array
    step: Params
    taken: Array
    found: Comparison
    decrease: Array | None


def decided(
    compare: Callable[[Params], Comparison],
    params: Params,
    sound: Array,
    whole: Params,
    decrease: Array | None,
    halvings: int,
) -> Decision:
    """The longest of d, d/2, d/4 … that does not raise the loss, or none of them.

    Where the decrease is within rounding there is nothing to gain: d is tried alone.

    Args:
        compare: (other parameters) -> their loss compared with that at `params`.
        params: θ.
        sound: may a step be taken at all?
        whole: d.
        decrease: M(0) − M(d), if known.
        halvings: how many halves are tried.
    """

    def tried(length):
        step = whole if halvings == 0 else scaled(length, whole)
        found = compare(optax.apply_updates(params, step))
        finite = tree.all_finite((step, found.after))
        return length, step, sound & finite & (found.fall >= 0), found

    def halved(best, _):
        length, _, taken, found = best
        again = sound & ~taken
        if decrease is not None:
            again = again & (decrease > found.rounding)
        half = lambda: tree.where(again, tried(length / 2), best)
        return jax.lax.cond(any_over_vmap(again), half, lambda: best), None

    best = tried(jnp.ones((), tree.working_dtype(params)))
    if halvings > 0:
        best, _ = jax.lax.scan(halved, best, length=halvings)
    return Decision(whole, *best, decrease)


def elsewhere(
    loss: Callable[[Params], Array],
    params: Params,
    gradient: Params,
    before: Array,
    sound: Array,
    step: Params,
    after: Array,
    fall: Array,
) -> tuple[Array, Array]:
    """Was the step that led here too long, and of little use, by another batch's loss?

    Neither, if this is the batch that it was made of, whose loss it may have lowered by
    what is there by chance. To second order the other loss fell by −⟨g', d⟩ +
    ½ ⟨d, H' d⟩. The step was too long if that is a rise, larger than the fall of its
    own loss, and so is the curvature's part: gradients of two batches disagree however
    short it is. It was of little use if the other loss fell by less than a quarter of
    what its own did.

    Args:
        loss: of this batch.
        params: θ, after the step.
        gradient: g', of this batch.
        before: its loss at θ.
        sound: are these finite?
        step: d, the last that was taken.
        after: the loss of its own batch after it.
        fall: by how much that had fallen.
    """
    another = jnp.abs(before - after) > rounding_of(before, params)
    another = another & sound & (fall > 0)

    def judged():
        held = loss(jax.tree.map(jnp.subtract, params, step)) - before
        curved = held + tree.inner(gradient, step).astype(before.dtype)
        return (held < -fall) & (curved > fall), held < USE * fall

    harmed, useless = jax.lax.cond(
        any_over_vmap(another), judged, lambda: (jnp.zeros((), bool),) * 2
    )
    return another & harmed, another & useless


def scaled(length: Array, step: Params) -> Params:
    """A part of a step, in its dtypes."""
    return jax.tree.map(lambda d: length.astype(d.dtype) * d, step)


def any_nonzero(values: Params) -> Array:
    """Is some entry not 0? NaN is not."""
    found = [jnp.any(leaf != 0) for leaf in jax.tree.leaves(values)]
    return jnp.any(jnp.stack(found))
