"""A radius that follows the noise: by the slope of the loss where the last step ended.

    b_k = ⟨g_k, Δ_{k−1}⟩ / (2 δ_{k−1})
    δ_k = δ_{k−1} exp(−γ b_k),     b_k within ±1, δ_k within its bounds

Δ_{k−1} is what was applied and g_k the next gradient. Of another batch it is an
unbiased slope of the loss at the end of that step: below 0 the loss still fell there,
above 0 the step was too long, as steps are that follow the noise of their own batch. A
step whose divergence is δ has ⟨Δ, F Δ⟩ = 2 δ to second order, so −1 is the slope before
a Newton step twice as long, and 1 that after one twice too long. No step is measured
again and nothing is evaluated: the price is one inner product and a copy of the step.
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple, cast, final

import jax
import jax.numpy as jnp

from natgrad import tree
from natgrad.arguments import check_in
from natgrad.typing import Array, ArrayLike, Params


class RadiusState(NamedTuple):
    """What `AdaptiveRadius` knows of the last step that was taken.

    Attributes:
        radius: its δ, in nats a label, shape ().
        direction: α (v + ω θ), like the parameters: −η times it was applied.
        scale: |η| / (2 δ), δ in nats an example, shape (); 0 before the first step.
    """

    radius: Array
    direction: Params
    scale: Array


@final
@dataclasses.dataclass(frozen=True)
class AdaptiveRadius:
    """A trust region's δ, shorter after steps that went too far, else longer.

    Its place is `trust_region=` of an optimizer, or `natgrad.damping.TrustRegion`:

        ng.kfac(model=model, trust_region=ng.damping.AdaptiveRadius(most=0.1))

    Attributes:
        initial: δ of the first step, in nats a label.
        least: δ at least, > 0. Where K-FAC misses most of F, as in transformers, steps
            look too long in a few directions while the others still move.
        most: δ at most.
        gain: γ >= 0: δ changes by at most exp(γ) in a step.

    Raises:
        ValueError: unless 0 < least <= initial <= most < ∞ and 0 <= gain <= 1.

    Source: Almeida, Langlois, Amaral & Plakhov (1998), Parameter adaptation in
    stochastic optimization, section 2, which multiplies learning rates by the products
    of successive gradients; here one radius, by those of steps and gradients.
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
        if not self.least <= self.initial <= self.most:
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

    def of(self, state: RadiusState | tuple[()], gradient: Params) -> Array:
        """δ of the next step, in nats a label, shape ().

        Args:
            state: after the last step.
            gradient: g, like the parameters, where that step ended.

        Raises:
            ValueError: for the state of other parameters, or of another rule.
        """
        tree.check_kept(state, jax.eval_shape(self.init, gradient))
        radius, direction, scale = cast(RadiusState, state)
        slope = -scale * tree.inner(gradient, direction)
        factor = jnp.exp(-self.gain * jnp.clip(slope, -1, 1))
        changed = jnp.clip(radius * factor, self.least, self.most)
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
        scale = jnp.where(some, jnp.abs(rate) / (2 * jnp.where(some, bound, 1)), 0)
        return RadiusState(radius, direction, scale.astype(radius.dtype))
