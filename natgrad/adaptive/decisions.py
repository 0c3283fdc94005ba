"""Is a step taken, whole or in part? And what has the step before done elsewhere?"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
import optax

from natgrad import tree
from natgrad.adaptive.comparison import Comparison
from natgrad.solvers import any_member
from natgrad.typing import Array, Params


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
        return jax.lax.cond(any_member(again), half, lambda: best), None

    best = tried(jnp.ones((), tree.Layout.of(params).dtype))
    if halvings > 0:
        best, _ = jax.lax.scan(halved, best, length=halvings)
    return Decision(whole, *best, decrease)


def overreached(held: Array, fall: Array, slope: Array) -> Array:
    """Was a step too long, to judge by another batch than that it was made of?

    It may fit what is there by chance in its own batch. To second order the other
    loss fell by −⟨g', d⟩ + ½ ⟨d, H' d⟩, g' its gradient after the step. The step was
    too long if that is a rise, larger than the fall of its own loss, and so is the
    curvature's part; gradients alone disagree between batches however short it is.

    Args:
        held: by how much the other batch's loss fell.
        fall: by how much its own did, > 0.
        slope: ⟨g', d⟩.
    """
    return (held < -fall) & (held + slope > fall)


def scaled(length: Array, step: Params) -> Params:
    """A part of a step, in its dtypes."""
    return jax.tree.map(lambda d: length.astype(d.dtype) * d, step)


def any_nonzero(values: Params) -> Array:
    """Is some entry not 0? NaN is not."""
    found = [jnp.any(leaf != 0) for leaf in jax.tree.leaves(values)]
    return jnp.any(jnp.stack(found))
