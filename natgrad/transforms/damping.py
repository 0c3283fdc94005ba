"""Damping rules: step count -> λ, the multiple of the identity added to F.

A trust region bounds the step instead (or as well), by its length in the metric F and
by the KL divergence that it leads to.

F is a mean over the batch in nats, so λ has the units of F, nats per squared unit of
the parameters, whatever the batch size.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import NamedTuple, final

import jax
import jax.numpy as jnp
import numpy as np

from natgrad import tree
from natgrad.control_flow import any_over_vmap
from natgrad.typing import Array, ArrayLike

Damping = Callable[[Array], ArrayLike]

# A measured divergence may exceed its bound by this part of it, which is rounding.
SLACK = 1e-3
# How many lengths of a step are measured beside the whole.
TRIES = 12


def as_damping(damping: ArrayLike | Damping) -> Damping:
    """A rule from a constant, or from a rule such as an optax schedule.

    Raises:
        ValueError: for a constant that is negative, not finite, or not a scalar. A
            traced or scheduled value cannot raise: a step with a negative or
            non-finite λ is skipped, and the state's health says so.
    """
    if callable(damping):
        return damping
    check_scalar("damping", damping)
    if not isinstance(damping, jax.core.Tracer) and not 0 <= float(damping) < jnp.inf:
        raise ValueError(
            f"damping must be finite and at least 0, got {damping}: it is added to the "
            "eigenvalues of a positive semi-definite matrix."
        )
    return lambda _count: damping


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


def check_scalar(name: str, value: ArrayLike | Damping) -> None:
    """Raise a ValueError for what is neither a real scalar nor a schedule."""
    if not callable(value):
        check_number(name, value, "a scalar or a schedule")


def check_number(name: str, value: ArrayLike, expected: str = "a scalar") -> None:
    """Raise a ValueError for what is no real scalar."""
    number = value if isinstance(value, jax.Array) else np.asarray(value)
    real = jnp.issubdtype(number.dtype, jnp.number) and not jnp.iscomplexobj(number)
    if not real:
        raise ValueError(
            f"{name} must be {expected}, got {value!r}. Optimizers take the learning "
            "rate first and the model second: natural_gradient(0.1, model, "
            "damping=1e-3)."
        )
    if number.ndim != 0:
        raise ValueError(f"{name} must be {expected}, got shape {number.shape}.")


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
        at = lambda value: value(count) if callable(value) else value
        radius = jnp.asarray(at(self.radius), square.dtype)
        whole = at(self.learning_rate) ** 2 * square
        outside = whole > 2 * radius
        alpha = jnp.where(
            outside, jnp.sqrt(2 * radius / jnp.where(outside, whole, 1)), 1
        ).astype(square.dtype)
        if divergence is None:
            return alpha
        near = whole >= radius / 2
        reach = alpha * at(self.learning_rate)
        along = lambda t: divergence(t * reach).astype(square.dtype)

        def measured():
            first = jnp.where(near, along(jnp.ones_like(alpha)), 0)
            return longest_within(along, radius, first)[0]

        return alpha * jax.lax.cond(
            any_over_vmap(near), measured, lambda: jnp.ones_like(alpha)
        )
