"""Optimizers without a learning rate."""

from __future__ import annotations

import optax

from natgrad.curvature import KFAC, Sampled, SubBatch
from natgrad.model import Model
from natgrad.solvers.damping import DampingLike, is_by_layer
from natgrad.transforms.adaptive.damping_rules import LossFloor, Rule
from natgrad.transforms.adaptive.damping_search import Trials
from natgrad.transforms.adaptive.factored_curvature import (
    TRIALS,
    TWENTY,
    scale_by_factored_curvature,
)
from natgrad.transforms.adaptive.marquardt import (
    THRESHOLDS,
    levenberg_marquardt,
)
from natgrad.transforms.damping import Damping, as_damping, first_damping
from natgrad.transforms.inverse_cache import Refresh
from natgrad.typing import ArrayLike

# A thousandth suited first losses between 2 and 550 nats.
FLOOR = LossFloor(1e-3)
# Statistics and quadratic model are of every fourth example, but of 64 at least.
EVERY, FEWEST = 4, 64
# With 16 times less length even the first steps of small batches lower their loss.
HALVINGS = 4


def kfac_adaptive(
    model: Model,
    *,
    damping: DampingLike | Damping = 1e-6,
    weight_decay: ArrayLike = 0.0,
    decay: ArrayLike = 0.95,
    refresh: Refresh = TWENTY,
    rule: Rule = THRESHOLDS,
    floor: LossFloor = FLOOR,
    trials: Trials = TRIALS,
) -> optax.GradientTransformationExtraArgs:
    """K-FAC that finds its own step length, momentum and damping.

        tx = kfac_adaptive(model)
        loss, grads = jax.value_and_grad(model.loss)(params, x, y)
        updates, state = tx.update(
            grads, state, params, inputs=x, targets=y, value=loss, value_fn=model.loss
        )

    Learning rates and momenta, of each layer its own (of eight groups of layers, or one
    for 20 examples of the batch, where there are more layers), minimise the quadratic
    model of the loss; λ follows from how far that model is right, γ of the factors from
    which is best; a step that raises the loss of its own batch is halved, at most four
    times, and undone if that does not help, or if it is not finite; one that proves too
    long on the next batch raises λ. Statistics and quadratic model are of every fourth
    example, of 64 at least. Steps fit one batch as well as they can, so batches should
    be large or grow. A step costs, beside K-FAC's, two forward derivatives a group, of
    a part of the batch, and two forward passes of all; `rows=` of
    `KFAC(model).value_grad_and_rows` saves some.

    Args:
        model: the statistical model; needs `example_inputs`.
        damping: λ of the first step, where it is above the floor; 1e-6 is so only for
            a loss below 1e-3, so that by default the floor decides. By layer it is Λ,
            or a schedule of it, and the damping is λ Λ, with λ = 1 in the first step.
        weight_decay: η, if the loss has ½ η |θ|² beside the model's.
        decay: of the moving averages of A and G.
        refresh: how often, in steps, factors and inverses are renewed.
        rule: how the reduction ratio changes λ.
        floor: what λ does not fall below: a thousandth of the loss. γ starts from √λ.
        trials: how often γ is tried.

    Returns:
        The optimizer; its update is to be added to the parameters as it is.

    Raises:
        ValueError: for impossible arguments, and where `inputs=`, `value=` or
            `value_fn=` is missing in `update`.

    Source: Martens & Grosse (2015), Optimizing neural networks with Kronecker-factored
    approximate curvature, sections 6 to 8, but for the groups: see
    `scale_by_quadratic_model`.
    """
    inner = scale_by_factored_curvature(
        SubBatch(KFAC(model, Sampled(1)), EVERY, FEWEST),
        damping=1.0 if is_by_layer(first_damping(as_damping(damping))) else damping,
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
        halvings=HALVINGS,
    )
