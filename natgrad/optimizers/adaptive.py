"""Optimizers without a learning rate."""

from __future__ import annotations

import optax

from natgrad.adaptive.factored import (
    EVERY_TEN,
    TRIALS,
    Trials,
    scale_by_factored_curvature,
)
from natgrad.adaptive.levenberg_marquardt import (
    NO_FLOOR,
    THRESHOLDS,
    levenberg_marquardt,
)
from natgrad.adaptive.rules import LossFloor, Rule
from natgrad.curvature import KFAC, Sampled
from natgrad.model import Model
from natgrad.refresh import Refresh
from natgrad.typing import ArrayLike


def kfac_adaptive(
    model: Model,
    *,
    damping: ArrayLike = 1e-3,
    weight_decay: ArrayLike = 0.0,
    decay: ArrayLike = 0.95,
    refresh: Refresh = EVERY_TEN,
    rule: Rule = THRESHOLDS,
    floor: LossFloor = NO_FLOOR,
    trials: Trials = TRIALS,
) -> optax.GradientTransformationExtraArgs:
    """K-FAC that finds its own step length, momentum and damping.

        tx = kfac_adaptive(model)
        loss, grads = jax.value_and_grad(model.loss)(params, x, y)
        updates, state = tx.update(
            grads, state, params, inputs=x, targets=y, value=loss, value_fn=model.loss
        )

    Learning rate and momentum minimise the quadratic model of the loss, λ follows from
    how far that model is right, γ of the factors from which is best; a step that raises
    the loss of its own batch, or is not finite, is undone. Steps fit one batch as well
    as they can, so batches should be large or grow. A step costs, beside K-FAC's, two
    forward derivatives and a forward pass.

    Args:
        model: the statistical model; needs `example_inputs`.
        damping: λ of the first step, γ² too. Too large costs steps, for λ falls by a
            quarter every five; too small a few rejected ones.
        weight_decay: η, if the loss has ½ η |θ|² beside the model's.
        decay: of the moving averages of A and G.
        refresh: how often, in steps, factors and inverses are renewed.
        rule: how the reduction ratio changes λ.
        floor: what λ does not fall below.
        trials: how often γ is tried.

    Raises:
        ValueError: where `inputs=`, `value=` or `value_fn=` is missing in `update`.

    Source: Martens & Grosse (2015), Optimizing neural networks with Kronecker-factored
    approximate curvature, sections 6 and 7.
    """
    inner = scale_by_factored_curvature(
        KFAC(model, Sampled(1)),
        damping=damping,
        weight_decay=weight_decay,
        decay=decay,
        refresh=refresh,
        trials=trials,
    )
    return levenberg_marquardt(
        inner,
        model,
        damping=damping,
        rule=rule,
        floor=floor,
        weight_decay=weight_decay,
    )
