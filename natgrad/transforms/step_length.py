"""The longest part of a step whose divergence stays within a bound, as measured."""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from natgrad.control_flow import any_over_vmap
from natgrad.typing import Array

# A measured divergence may exceed its bound by this part of it, which is rounding.
SLACK = 1e-3
# How many lengths of a step are measured at most.
TRIES = 13


class _Tried(NamedTuple):
    """A length, the divergence there, and the power of the length it grows like."""

    length: Array
    found: Array
    power: Array


def longest_within(
    divergence: Callable[[Array], Array], radius: Array
) -> tuple[Array, Array]:
    """(t, divergence at t): t = 1, or shortened until the divergence is at most δ.

    The divergence is taken to grow like a power tᵖ, p = 2 at first and then what two
    measurements say, within 1 and 8; a try is where that power is 0.97ᵖ δ, and at least
    a tenth of the last one. Where this shortens too much, to less than δ/4, the next
    tries lie between the last two. After 13 tries it is the best so far, or 0. Lengths
    have derivatives, forward and reverse.

    Args:
        divergence: of a part t in (0, 1] of the step, in nats; traced once.
        radius: δ.

    Returns:
        t and the divergence there, both of shape ().
    """
    bound = radius * (1 + SLACK)
    one = jnp.ones_like(radius)

    def going(tried):
        length, found, _ = tried[0]
        done = (length > 0) & (found >= radius / 4)
        return ~(done | (length == 1))

    def attempt(tried, _):
        # Both in one array, of which a turn is compiled once, not number by number; and
        # read within the branch, else each number is a function of its own. The length
        # is computed before, else each of its roots and powers is one too.
        inside, outside = (_Tried(*row) for row in tried)
        length = jnp.where(outside.length > 1, one, _next(inside, outside, radius))

        def again():
            _, outside = (_Tried(*row) for row in tried)
            new = divergence(length)
            known = jnp.isfinite(outside.found) & (outside.found > bound) & (new > 0)
            fell = jnp.where(known, outside.found, 1) / jnp.where(known, new, 1)
            shrank = jnp.where(known, outside.length / length, 2)
            power = jnp.clip(jnp.log(fell) / jnp.log(shrank), 1, 8)
            point = _Tried(length, new, jnp.where(known, power, outside.power))
            good = new <= bound  # NaN is outside
            place = jnp.arange(2)[:, None] == jnp.where(good, 0, 1)
            return jnp.where(place & going(tried), jnp.stack(point)[None], tried)

        return jax.lax.cond(any_over_vmap(going(tried)), again, lambda: tried), None

    start = one * jnp.array([[0, 0, 2], [2, jnp.inf, 2]], one.dtype)
    found, _ = jax.lax.scan(attempt, start, length=TRIES)
    return found[0, 0], found[0, 1]


def _next(inside: _Tried, outside: _Tried, radius: Array) -> Array:
    """The next length to try, below the one outside and above the one inside."""
    known = jnp.isfinite(outside.found) & (outside.found > 0)
    found = jnp.where(known, outside.found, radius)
    some = inside.length > 0
    low = jnp.where(some, inside.length, 0.1 * outside.length)
    both = some & known & (inside.found > 0)
    # Between two that are known, log of the divergence over log of the length.
    rise = jnp.log(found / jnp.where(both, inside.found, 1))
    power = jnp.clip(rise / jnp.log(outside.length / low), 0.5, 8)
    power = jnp.where(some, power, outside.power)
    nearest = jnp.where(some, jnp.where(both, inside.found, radius), found)
    factor = 0.97 * (radius / nearest) ** (1 / power)
    least, most = jnp.where(some, 1, 0.1), 0.99 * outside.length / low
    factor = jnp.clip(factor, least, jnp.where(some, most, 0.97))
    between = jnp.where(both, low * factor, jnp.sqrt(low * outside.length))
    shorter = outside.length * jnp.where(known, factor, 0.1)
    return jnp.where(some, between, shorter)
