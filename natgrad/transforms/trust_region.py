"""A bound on the KL divergence that a step leads to, instead of damping or as well.

The step is shortened, first by the quadratic model of the divergence, ½ ⟨d, F d⟩, and
then by the divergence itself, measured on the batch.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import NamedTuple, final

import jax
import jax.numpy as jnp
import optax

from natgrad import tree
from natgrad.control_flow import any_over_vmap
from natgrad.families import Unnormalized
from natgrad.transforms.solve import Solved
from natgrad.transforms.validation import Step
from natgrad.typing import Array, ArrayLike, Params

Damping = Callable[[Array], ArrayLike]

# A measured divergence may exceed its bound by this part of it, which is rounding.
SLACK = 1e-3
# How many lengths of a step are measured beside the whole.
TRIES = 12


@final
@dataclasses.dataclass(frozen=True)
class TrustRegion:
    """Shrinks steps −η d whose KL divergence exceeds δ.

    First by the quadratic model of the divergence, which needs no forward pass:

        α = min(1, √(2δ / (η² ⟨d, F d⟩)))

    Then, where that model comes to δ/4 or more and the step's `update` is given the
    batch, by what it is a model of: KL(p(· | θ, x) ‖ p(· | θ − α η d, x)), the mean
    over the batch of the curvature's model. Where it exceeds δ, α is shortened until
    it does not: a forward pass, and one more for each time. So the bound holds to 1e-3
    of δ for the step −η d, if F is the batch's Fisher information or more; where F is
    an approximation that is less than a quarter of it, or if momentum follows, put
    `scale_by_kl_trust_region` last in the chain, which measures every step. Without
    the batch (`statistics=`, `observe`), and for families without a divergence
    (`Unnormalized`), the quadratic model alone decides.

    Attributes:
        radius: δ, in nats an example, or a schedule.
        learning_rate: η, the same as that of the transformation that follows.

    Source: Ba, Grosse & Martens (2017), Distributed second-order optimization using
    Kronecker-factored approximations, section 5; Schulman et al. (2015), Trust region
    policy optimization, appendix C, for the measured divergence.
    """

    radius: ArrayLike | Damping
    learning_rate: ArrayLike | Damping

    def shrinkage(
        self,
        count: Array,
        square: Array,
        divergence: Callable[[Array], Array] | None = None,
    ) -> Array:
        """α for the step d of this count; shape ().

        Args:
            count: of the step.
            square: ⟨d, F d⟩.
            divergence: that of the step −t d, of t; None where it is not known.
        """
        radius = jnp.asarray(_at(self.radius, count), square.dtype)
        learning_rate = _at(self.learning_rate, count)
        length = learning_rate**2 * square
        outside = length > 2 * radius
        alpha = jnp.where(
            outside, jnp.sqrt(2 * radius / jnp.where(outside, length, 1)), 1
        ).astype(square.dtype)
        if divergence is None:
            return alpha
        near = length >= radius / 2
        reach = alpha * learning_rate

        def along(t):
            return divergence(t * reach).astype(square.dtype)

        def measured():
            first = jnp.where(near, along(jnp.ones_like(alpha)), 0)
            return longest_within(along, radius, first)[0]

        return alpha * jax.lax.cond(
            any_over_vmap(near), measured, lambda: jnp.ones_like(alpha)
        )


def _at(value: ArrayLike | Damping, count: Array) -> ArrayLike:
    """The value of a constant or a schedule at this count."""
    return value(count) if callable(value) else value


class BoundedStep(NamedTuple):
    """A step within its trust region.

    Attributes:
        direction: α d, like the parameters.
        scale: α in (0, 1], shape (); 1 without a trust region.
    """

    direction: Params
    scale: Array


def apply_trust_region(
    trust_region: TrustRegion | None, step: Step, solved: Solved, count: Array
) -> BoundedStep:
    """The solution, shortened until it lies within the trust region.

    Args:
        trust_region: a bound on the KL divergence in nats; None for none.
        step: the arguments of the update.
        solved: the solution d, with its length in F.
        count: of the step, which schedules see.
    """
    direction = solved.direction
    if trust_region is None:
        return BoundedStep(direction, jnp.ones_like(solved.slope))

    def scaled(t):
        return jax.tree.map(lambda d: t.astype(d.dtype) * d, direction)

    def divergence(t):
        params, inputs = step.batch.params, step.batch.inputs
        candidate = optax.apply_updates(params, scaled(-t))
        return step.curvature.divergence(params, candidate, inputs)

    normalized = not isinstance(step.curvature.model.family, Unnormalized)
    scale = trust_region.shrinkage(
        count, solved.square, divergence if step.has_batch and normalized else None
    )
    scale = scale.astype(solved.square.dtype)
    return BoundedStep(scaled(scale), scale)


class _Tried(NamedTuple):
    """A length, the divergence there, and the power of the length it grows like."""

    length: Array
    found: Array
    power: Array


def longest_within(
    divergence: Callable[[Array], Array], radius: Array, first: Array
) -> tuple[Array, Array]:
    """(t, divergence at t): t = 1, or shortened until the divergence is at most δ.

    The divergence is taken to grow like a power tᵖ, p = 4 at first and then what two
    measurements say, within 1 and 8; a try is where that power is 0.97ᵖ δ, and at least
    a tenth of the last one. Where this shortens too much, to less than δ/4, the next
    tries lie between the last two. After 12 tries it is the best so far, or 0. Lengths
    have derivatives, forward and reverse.

    Args:
        divergence: of a part t in (0, 1] of the step, in nats.
        radius: δ.
        first: the divergence at 1.

    Returns:
        t and the divergence there, both of shape ().
    """
    bound = radius * (1 + SLACK)
    one, four = jnp.ones_like(first), jnp.full_like(first, 4)
    nothing = _Tried(jnp.zeros_like(first), jnp.zeros_like(first), four)
    whole, within = _Tried(one, first, four), first <= bound  # NaN is outside

    def attempt(tried, _):
        inside, outside = tried
        done = (inside.length > 0) & (inside.found >= radius / 4)
        going = ~(done | (inside.length == 1))

        def again():
            length = _next(inside, outside, radius)
            new = divergence(length)
            known = jnp.isfinite(outside.found) & (outside.found > bound) & (new > 0)
            fell = jnp.where(known, outside.found, 1) / jnp.where(known, new, 1)
            shrank = jnp.where(known, outside.length / length, 2)
            power = jnp.clip(jnp.log(fell) / jnp.log(shrank), 1, 8)
            point = _Tried(length, new, jnp.where(known, power, outside.power))
            good = new <= bound
            longer = tree.where(good & going, point, inside)
            return longer, tree.where(~good & going, point, outside)

        return jax.lax.cond(any_over_vmap(going), again, lambda: tried), None

    start = tree.where(within, whole, nothing), whole
    (inside, _), _ = jax.lax.scan(attempt, start, length=TRIES)
    return inside.length, inside.found


def _next(inside: _Tried, outside: _Tried, radius: Array) -> Array:
    """The next length to try, below the one outside and above the one inside."""
    known = jnp.isfinite(outside.found) & (outside.found > 0)
    found = jnp.where(known, outside.found, radius)
    factor = jnp.clip(0.97 * (radius / found) ** (1 / outside.power), 0.1, 0.97)
    shorter = outside.length * jnp.where(known, factor, 0.1)
    # Between two that are known, log of the divergence over log of the length.
    some = inside.length > 0
    low = jnp.where(some, inside.length, 0.1 * outside.length)
    both = some & known & (inside.found > 0)
    rise = jnp.log(found / jnp.where(both, inside.found, 1))
    power = jnp.clip(rise / jnp.log(outside.length / low), 0.5, 8)
    share = radius / jnp.where(both, inside.found, radius)
    between = jnp.clip(0.97 * share ** (1 / power), 1, 0.99 * outside.length / low)
    between = jnp.where(both, low * between, jnp.sqrt(low * outside.length))
    return jnp.where(some, between, shorter)
