"""A KL trust region for the update of any optimizer.

    d ← d min(1, √(δ / (½ ⟨d, F d⟩)))

½ ⟨d, F d⟩ is to second order the mean KL divergence from the model before the step to
that after it; F is the batch's exact Fisher information, by one forward derivative.

Source: Schulman et al. (2015), Trust region policy optimization, appendix C; Ba, Grosse
& Martens (2017), Distributed second-order optimization using Kronecker-factored
approximations, section 5.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import optax

from natgrad import tree
from natgrad.adaptive.forms import EXACT, check_batch, fisher_forms, part
from natgrad.arguments import MISSING, transformation
from natgrad.curvature.labels import Labels
from natgrad.damping import check_scalar
from natgrad.model import Model
from natgrad.typing import ArrayLike


def scale_by_kl_trust_region(
    model: Model,
    radius: ArrayLike | optax.Schedule,
    *,
    labels: Labels = EXACT,
) -> optax.GradientTransformationExtraArgs:
    """Shrink the update so that ½ ⟨d, F d⟩ is at most δ.

    Comes after the learning rate, at the end of a chain; `update` takes `inputs=x`.

    Args:
        model: the statistical model.
        radius: δ > 0 in nats an example, or a schedule of it.
        labels: whose F, as for `fisher_forms`.
    """
    check_scalar("radius", radius)
    known = not callable(radius) and not isinstance(radius, jax.core.Tracer)
    if known and not float(radius) > 0:
        raise ValueError(f"radius must be positive, in nats, got {radius}.")

    def init(params):
        tree.check_params(params)
        return optax.ScaleByScheduleState(jnp.zeros((), jnp.int32))

    def update(
        updates,
        state,
        params=None,
        *,
        inputs=MISSING,
        model_params=None,
        **extra_args,
    ):
        del extra_args
        check_batch("scale_by_kl_trust_region", params, inputs)
        forms = fisher_forms(part(model, model_params), params, inputs, labels)
        square = forms((updates,))[0, 0] / 2
        bound = jnp.asarray(
            radius(state.count) if callable(radius) else radius, square.dtype
        )
        outside = square > bound
        shrink = jnp.where(outside, jnp.sqrt(bound / jnp.where(outside, square, 1)), 1)
        shrunk = jax.tree.map(lambda u: shrink.astype(u.dtype) * u, updates)
        return shrunk, optax.ScaleByScheduleState(tree.increment(state.count))

    return transformation(init, update)
