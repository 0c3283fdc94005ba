"""How long a step may be, and the longest part of it that is no longer.

The radius follows the noise, by the slope of the loss where the last step ended:

    b_k = ⟨g_k, Δ_{k−1}⟩ / (2 δ_{k−1})
    δ_k = δ_{k−1} exp(−γ b_k),     b_k within ±1, δ_k within its bounds

Δ_{k−1} is what was applied and g_k the next gradient. Of another batch it is an
unbiased slope of the loss at the end of that step: below 0 the loss still fell there,
above 0 the step was too long, as steps are that follow the noise of their own batch. A
step with the divergence δ has ⟨Δ, F Δ⟩ = 2 δ to second order, so that b = 1 − 1/t after
t times the Newton step: −1 after half of it, 0 after the whole, 1 far beyond. More than
1 says that F was wrong there, and counts in full, until δ is a quarter of what it was:
one such step undoes what many good ones gain. Nothing is evaluated for it; the price is
one inner product and a copy of the step.

A momentum β repeats a step β/(1 − β) times over the next ones. The slope that counts is
that at the end of them, which by the same quadratic model is b + β/(1 − β).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import NamedTuple, cast, final

import jax
import jax.numpy as jnp

from natgrad import tree
from natgrad.arguments import check_in, known_value
from natgrad.control_flow import any_over_vmap
from natgrad.typing import Array, ArrayLike, Params

# A measured divergence may exceed its bound by this part of it, which is rounding.
SLACK = 1e-3
# How many lengths of a step are measured at most.
TRIES = 13
# What is left of the radius, at least, after one step that F was wrong of; and of the
# least radius after many.
AFTER_ONE, AFTER_MANY = 0.25, 0.1


class RadiusState(NamedTuple):
    """What `AdaptiveRadius` knows of the last step that was taken.

    Attributes:
        per_label: its δ, in nats a label, shape ().
        last_step: α (v + ω θ), like the parameters: −η times it was applied.
        per_product: |η| / (2 δ), δ in nats an example, shape (), by which a product of
            a gradient and that is −b; 0 before the first step.
    """

    per_label: Array
    last_step: Params
    per_product: Array


@final
@dataclasses.dataclass(frozen=True)
class AdaptiveRadius:
    """A trust region's δ, shorter after steps that went too far, else longer.

    Its place is `trust_region=` of an optimizer, or `natgrad.damping.TrustRegion`:

        ng.kfac(model=model, trust_region=ng.damping.AdaptiveRadius(most=0.1))

    Attributes:
        initial: δ of the first step, in nats a label.
        least: δ at least, > 0. Where K-FAC misses most of F, as in transformers, steps
            look too long in a few directions while the others still move. A tenth of
            it after steps with b > 1.
        most: δ at most.
        gain: γ >= 0: δ changes by at most exp(γ) in a step with b <= 1.

    Raises:
        ValueError: unless 0 < least <= initial <= most < ∞ and 0 <= gain <= 1.

    Source: as Almeida, Langlois, Amaral & Plakhov (1998), Parameter adaptation in
    stochastic optimization, adapt learning rates by the products of successive
    gradients; here it is one radius, by the product of a step and the next gradient.
    """

    initial: float = 0.05
    least: float = 0.01
    most: float = 0.3
    gain: float = 0.05

    def __post_init__(self):
        inside = lambda value: 0 < value < float("inf")
        for name in ("initial", "least", "most"):
            check_in(name, getattr(self, name), inside, "be positive and finite")
        check_in("gain", self.gain, lambda gain: 0 <= gain <= 1, "lie in [0, 1]")
        bounds = map(known_value, (self.least, self.initial, self.most))
        known = [bound for bound in bounds if bound is not None]
        if sorted(known) != known:
            raise ValueError(
                "A radius starts between its bounds, least <= initial <= most, got "
                f"{self.least}, {self.initial} and {self.most}."
            )

    def init(self, params: Params) -> RadiusState:
        """The state before the first step.

        Args:
            params: θ.
        """
        dtype = tree.working_dtype(params)
        zeros = jax.tree.map(jnp.zeros_like, params)
        initial = jnp.asarray(self.initial, dtype)
        return RadiusState(initial, zeros, jnp.zeros((), dtype))

    def of(
        self,
        state: RadiusState | tuple[()],
        gradient: Params,
        momentum: ArrayLike | None = None,
    ) -> Array:
        """δ of the next step, in nats a label, shape ().

        Args:
            state: after the last step.
            gradient: g, like the parameters, where that step ended.
            momentum: β; None for none.

        Raises:
            ValueError: for the state of other parameters, or of another rule.
        """
        tree.check_kept(state, jax.eval_shape(self.init, gradient))
        radius, last_step, per_product = cast(RadiusState, state)
        slope = -per_product * tree.inner(gradient, last_step)
        slope = jnp.where(jnp.isfinite(slope), slope, 0)  # else the step was skipped
        last = slope
        if momentum is not None:
            repeated = jnp.where(per_product > 0, momentum / (1 - momentum), 0)
            last = slope + repeated.astype(slope.dtype)
        wrong = slope > 1  # F promises less, however long the step
        b = jnp.where(wrong, slope, jnp.clip(last, -1, 1))
        least = jnp.minimum(radius, self.least)
        least = jnp.where(wrong, AFTER_MANY * self.least, least)
        changed = radius * jnp.maximum(jnp.exp(-self.gain * b), AFTER_ONE)
        changed = jnp.clip(changed, least, self.most)
        return changed.astype(radius.dtype)

    def after(
        self, radius: Array, bound: Array, direction: Params, rate: ArrayLike
    ) -> RadiusState:
        """The state after a step.

        Args:
            radius: δ of this step, in nats a label.
            bound: δ of this step, in nats an example.
            direction: α (v + ω θ), like the parameters.
            rate: η. Below 0, which climbs, slopes count the other way round.
        """
        some = bound > 0  # no labels, no bound, and nothing to learn
        factor = jnp.where(some, jnp.abs(rate) / (2 * jnp.where(some, bound, 1)), 0)
        return RadiusState(radius, direction, factor.astype(radius.dtype))


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
