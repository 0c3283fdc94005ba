"""A KL trust region for the update of any optimizer.

    d ← t d,     KL(p(· | θ, x) ‖ p(· | θ + t d, x)) <= δ     (mean over the batch)

A first t comes from the quadratic model of the divergence, ½ ⟨d, F d⟩ with the batch's
exact Fisher information, by one forward derivative:

    t = min(1, √(δ / (½ ⟨d, F d⟩)))

The divergence itself is measured there, and t shortened until the bound holds: long
steps, or outputs that are not linear in the parameters, leave the region in which the
quadratic model is right.

Source: Schulman et al. (2015), Trust region policy optimization, appendix C; Ba, Grosse
& Martens (2017), Distributed second-order optimization using Kronecker-factored
approximations, section 5.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax.numpy as jnp
import optax
from jaxtyping import Float, Int

from natgrad import tree
from natgrad.arguments import check_in, is_positive
from natgrad.curvature.labels import Labels
from natgrad.eager import call
from natgrad.families import Unnormalized
from natgrad.model import Model
from natgrad.transforms.adaptive.acceptance import scaled
from natgrad.transforms.adaptive.quadratic_forms import (
    EXACT,
    check_batch,
    fisher_forms,
    part,
)
from natgrad.transforms.damping import check_scalar, longest_within
from natgrad.transforms.validation import MISSING, transformation
from natgrad.tree import of_pairs
from natgrad.typing import Array, ArrayLike


class KLTrustRegionState(NamedTuple):
    """State of `scale_by_kl_trust_region`.

    Attributes:
        count: steps so far, which a schedule of δ sees.
        length: t of the last step, in [0, 1].
        divergence: the divergence of the last step, in nats.
    """

    count: Int[Array, ""]
    length: Float[Array, ""]
    divergence: Float[Array, ""]


def scale_by_kl_trust_region(
    model: Model,
    radius: ArrayLike | optax.Schedule,
    *,
    labels: Labels = EXACT,
) -> optax.GradientTransformationExtraArgs:
    """Shrink the update until the KL divergence that it leads to is at most δ.

    Comes after the learning rate, at the end of a chain; `update` takes `inputs=x`.
    What it returns obeys the bound, to 1e-3 of δ for rounding; an update that does not
    after 12 tries, or whose divergence is not finite, becomes 0. Where the quadratic
    model holds, the first try is the last. Cost: a forward derivative and a forward
    pass, and a forward pass for each further try. Lengths have derivatives.

    The divergence is `model.kl`: where the family estimates it from samples
    (`family.provenance`), so is the bound. `Unnormalized` models have none, and are
    bounded by the quadratic model alone.

    Args:
        model: the statistical model.
        radius: δ > 0 in nats an example, or a schedule of it.
        labels: whose F, as for `fisher_forms`.

    Returns:
        The transformation.

    Raises:
        ValueError: for a radius that is known and not positive; in `update`, where
            `inputs=` or `params` is missing.
    """
    check_scalar("radius", radius)
    if not callable(radius):
        check_in("radius", radius, is_positive, "be positive, in nats")

    def init(params):
        tree.check_params(params)
        dtype = tree.working_dtype(params)
        count = jnp.zeros((), jnp.int32)
        return KLTrustRegionState(count, jnp.ones((), dtype), jnp.zeros((), dtype))

    def update(
        updates,
        state,
        params: Any = None,
        *,
        inputs=MISSING,
        model_params=None,
        **extra_args,
    ):
        del extra_args
        check_batch("scale_by_kl_trust_region", params, inputs)
        restricted = part(model, model_params)
        forms = fisher_forms(restricted, params, inputs, labels)
        square = forms((updates,))[0, 0] / 2
        bound = call(radius, state.count) if callable(radius) else radius
        bound = jnp.asarray(bound, square.dtype)
        first = _first_length(square, bound)

        kl, _ = restricted.kl_from(params, inputs)

        def divergence(t):
            ahead = optax.apply_updates(params, scaled(t * first, updates))
            return kl(ahead).astype(square.dtype)

        if isinstance(model.family, Unnormalized):
            length, reached = first, square * first**2
        else:
            fraction, reached = longest_within(divergence, bound)
            length = first * fraction
        dtype = state.length.dtype
        return scaled(length, updates), KLTrustRegionState(
            tree.increment(state.count), length.astype(dtype), reached.astype(dtype)
        )

    return transformation(*of_pairs(init, update))


def _first_length(square: Array, bound: Array) -> Array:
    """min(1, √(δ/s)) for s = ½ ⟨d, F d⟩, by the quadratic model alone."""
    outside = square > bound
    return jnp.where(outside, jnp.sqrt(bound / jnp.where(outside, square, 1)), 1)
