"""Optimizers that see gradients alone: no model, no batch, no extra arguments."""

from __future__ import annotations

import optax

from natgrad.optimizers.chains import chain
from natgrad.transforms.distributed_inverse import Devices
from natgrad.transforms.gradients.adam_in_bases import Soap
from natgrad.transforms.gradients.kl_factors import KLShampoo
from natgrad.transforms.gradients.transformation import scale_by_gradient_factors
from natgrad.transforms.inverse_cache import Refresh
from natgrad.typing import ArrayLike

# Their steps are of Adam's length, so the rate is Adam's: there is no trust region. At
# 0.01 both train the problems of `benchmarks.drop_in` in 200 steps; for long runs of
# language models the authors take 0.003.
RATE = 1e-2
EVERY_TENTH = Refresh(inverses=10)
MAX_DIMENSION = 4096


def soap(
    learning_rate: optax.ScalarOrSchedule = RATE,
    *,
    b1: ArrayLike = 0.95,
    b2: ArrayLike = 0.95,
    eps: ArrayLike = 1e-8,
    refresh: Refresh = EVERY_TENTH,
    max_dimension: int = MAX_DIMENSION,
    weight_decay: ArrayLike = 0.0,
    devices: Devices | None = None,
) -> optax.GradientTransformationExtraArgs:
    """SOAP: Adam in the eigenbases of Shampoo's factors.

    For any tree of parameters: `tx.update(grads, state, params)`. Every axis of a
    matrix or tensor has a factor, mean mat(G) mat(G)ᵀ, but for those longer than
    `max_dimension`, which keep their coordinates. Vectors and numbers have Adam. The
    first step is η G over its root mean square. Memory 2 P + 2 Σ d² over axes.

    Args:
        learning_rate: η, or an optax schedule; of Adam's size. 0.3, the default of the
            optimizers with a trust region, is far too large here.
        b1: β₁ of the average of the gradients.
        b2: β₂ of the averages of their squares and of the factors.
        eps: ε, added to the root of the mean square.
        refresh: how often, in steps, bases follow their factors, by one QR:
            `natgrad.Refresh(inverses=10)`; `warm_up` for more of it at the start.
        max_dimension: of an axis with a factor.
        weight_decay: ω, decoupled: η ω θ is taken off the parameters.
        devices: `natgrad.spread.Devices(mesh, "data")` to share the bases out over
            devices that have the same gradients; None: each computes all of them.

    Returns:
        The optimizer; its update is to be added to the parameters as it is.

    Raises:
        ValueError: for impossible arguments, here or in `update`.

    Source: Vyas et al. (2024), SOAP: improving and stabilizing Shampoo using Adam.
    """
    direction = scale_by_gradient_factors(
        Soap(b2, eps),
        b1=b1,
        refresh=refresh,
        max_dimension=max_dimension,
        weight_decay=weight_decay,
        devices=devices,
    )
    return chain(direction, learning_rate=learning_rate)


def kl_shampoo(
    learning_rate: optax.ScalarOrSchedule = RATE,
    *,
    b1: ArrayLike = 0.95,
    b2: ArrayLike = 0.95,
    eps: ArrayLike = 1e-8,
    refresh: Refresh = EVERY_TENTH,
    max_dimension: int = MAX_DIMENSION,
    weight_decay: ArrayLike = 0.0,
    devices: Devices | None = None,
) -> optax.GradientTransformationExtraArgs:
    """KL-Shampoo: −η S_a^{-½} G S_b^{-½}, with S_a ⊗ S_b nearest to E[g gᵀ] in KL.

    S_a averages G S_b⁻¹ Gᵀ/d_b and S_b likewise, as two factors fitted to one
    covariance must; it needs no Adam. Their eigenvalues are averaged in every step.
    Else as `soap`; memory P + 2 Σ d² over axes.

    Args:
        learning_rate: η, or an optax schedule, of Adam's size as for `soap`.
        b1: β₁ of the average of the gradients.
        b2: β₂ of the averages of factors and eigenvalues.
        eps: ε, added to the root of the eigenvalues' product.
        refresh: as for `soap`.
        max_dimension: as for `soap`.
        weight_decay: as for `soap`.
        devices: as for `soap`.

    Returns:
        The optimizer; its update is to be added to the parameters as it is.

    Raises:
        ValueError: for impossible arguments, here or in `update`.

    Source: Lin et al. (2025), Understanding and improving Shampoo and SOAP via
    Kullback-Leibler minimization.
    """
    direction = scale_by_gradient_factors(
        KLShampoo(b2, eps),
        b1=b1,
        refresh=refresh,
        max_dimension=max_dimension,
        weight_decay=weight_decay,
        devices=devices,
    )
    return chain(direction, learning_rate=learning_rate)
