"""Optimizers with the exact Fisher information, each a sentence."""

from __future__ import annotations

from collections.abc import Callable

import optax

from natgrad.curvature import (
    Automatic,
    Gram,
    Identity,
    Labels,
    MatrixFree,
    Sampled,
    WarmStart,
)
from natgrad.curvature.base import Curvature
from natgrad.curvature.preconditioners import Preconditioner
from natgrad.model import Model
from natgrad.optimizers.chains import (
    LEARNING_RATE,
    RADIUS,
    REQUIRED,
    chain,
    curvature_of,
    descend,
)
from natgrad.solvers.conjugate_gradients import RelativeResidual, Stopping
from natgrad.transforms.damping import Damping, DampingLike, TrustRegion
from natgrad.transforms.spring import scale_by_norm_constraint, scale_by_spring
from natgrad.typing import ArrayLike

ONE_SAMPLE = Sampled(1)
HUNDRED = RelativeResidual(max_iterations=100)
PLAIN = Identity()


def natural_gradient(
    learning_rate: optax.ScalarOrSchedule = LEARNING_RATE,
    model: Model = REQUIRED,
    *,
    damping: DampingLike | Damping = 1e-3,
    decay: ArrayLike = 0.0,
    curvature: Callable[[Model], Curvature] | None = None,
    trust_region: ArrayLike | Damping | None = RADIUS,
    momentum: ArrayLike | None = None,
    weight_decay: ArrayLike = 0.0,
) -> optax.GradientTransformationExtraArgs:
    """The exact natural gradient: −η (F + λI)⁻¹ g with the whole Fisher information.

    With η = 1, λ = 0 and no trust region this is Newton's method for linear regression
    and iteratively reweighted least squares for logistic regression. It is solved in
    parameter space, in sample space or matrix-free, by size
    (`natgrad.curvature.automatic` has the rule).

    Args:
        learning_rate: η, or an optax schedule.
        model: the statistical model.
        damping: λ, or a schedule. By layer: a tree of numbers like the parameters, or a
            prefix of it; `natgrad.ByPath({"layers/0": 1e-2, "": 1e-3})`; or
            `natgrad.Relative(c)`, c times the mean of the diagonal of F.
        decay: of the moving average of F; 0 uses the current batch alone. More needs a
            matrix: up to 512 parameters, or curvature=natgrad.curvature.Dense.
        curvature: model -> curvature, to choose the space yourself: Dense, Gram or
            MatrixFree of `natgrad.curvature`; None for Automatic.
        trust_region: δ, in nats a label; a step of a larger KL divergence, momentum and
            weight decay included, is shortened to it. None for no bound.
        momentum: β in [0, 1) of v = d + β v_before; None for none.
        weight_decay: ω >= 0, decoupled: −η ω θ is added to the step.

    Returns:
        The optimizer; its update is to be added to the parameters as it is.

    Raises:
        ValueError: for impossible arguments, here, in `init` or in `update`; such as
            a decay above 0 where nothing can be averaged.

    Source: Amari (1998), Natural gradient works efficiently in learning.
    """
    form = Automatic if curvature is None else curvature
    applied = TrustRegion(trust_region, learning_rate, momentum, weight_decay)
    return descend(curvature_of(form, model), applied, damping=damping, decay=decay)


def gram(
    learning_rate: optax.ScalarOrSchedule = LEARNING_RATE,
    model: Model = REQUIRED,
    *,
    damping: DampingLike | Damping = 1e-2,
    labels: Labels = ONE_SAMPLE,
    trust_region: ArrayLike | Damping | None = RADIUS,
    momentum: ArrayLike | None = None,
    weight_decay: ArrayLike = 0.0,
) -> optax.GradientTransformationExtraArgs:
    """−η (F + λI)⁻¹ g, solved exactly in sample space, where M×M matrices do.

    With labels sampled once M is the number of examples, and a step of a network with
    millions of parameters costs about three gradients. F is that of the current batch.

    Args:
        learning_rate: η, or an optax schedule.
        model: the statistical model.
        damping: λ, or a schedule. F of few sampled labels knows nothing of most
            directions, which 1/λ stretches: take more than with the exact F.
        labels: over which labels; `Exact()` has as many columns an example as the
            model has outputs.
        trust_region: as for `natural_gradient`.
        momentum: as for `natural_gradient`.
        weight_decay: as for `natural_gradient`.

    Returns:
        The optimizer; its update is to be added to the parameters as it is.

    Raises:
        ValueError: for impossible arguments, here, in `init` or in `update`.

    Source: Ren & Goldfarb (2019), Efficient subsampled Gauss-Newton and natural
    gradient methods for training neural networks.
    """
    applied = TrustRegion(trust_region, learning_rate, momentum, weight_decay)
    return descend(Gram(model, labels), applied, damping=damping)


def spring(
    learning_rate: optax.ScalarOrSchedule = LEARNING_RATE,
    model: Model = REQUIRED,
    *,
    damping: DampingLike | Damping = 1e-3,
    momentum: ArrayLike = 0.99,
    constraint: ArrayLike | None = None,
    curvature: Callable[[Model], Curvature] | None = None,
    trust_region: ArrayLike | Damping | None = RADIUS,
) -> optax.GradientTransformationExtraArgs:
    """−η φ with φ = (F + λI)⁻¹ (g + λ μ φ_before), within a trust region.

    Args:
        learning_rate: η, or an optax schedule.
        model: the statistical model.
        damping: λ, or a schedule; by layer too, but for `natgrad.Relative`.
        momentum: μ in [0, 1].
        constraint: c > 0, a bound on |η φ|² in squared units of the parameters, which
            the paper has in place of a trust region; None for none.
        curvature: model -> curvature; None for Gram with `Exact` labels. A function
            such as lambda m: Gram(m, Sampled(1)) chooses the labels too.
        trust_region: as for `natural_gradient`; φ is remembered as it was shortened.

    Returns:
        The optimizer; its update is to be added to the parameters as it is.

    Raises:
        ValueError: for impossible arguments, here, in `init` or in `update`.

    Source: Goldshlager, Abrahamsen & Lin (2024), A Kaczmarz-inspired approach to
    accelerate the optimization of neural network wavefunctions.
    """
    form = Gram if curvature is None else curvature
    direction = scale_by_spring(
        curvature_of(form, model),
        damping=damping,
        momentum=momentum,
        trust_region=TrustRegion(trust_region, learning_rate),
    )
    limit = None
    if constraint is not None:
        limit = scale_by_norm_constraint(learning_rate, constraint)
    return chain(direction, limit, learning_rate=learning_rate)


def matrix_free(
    learning_rate: optax.ScalarOrSchedule = LEARNING_RATE,
    model: Model = REQUIRED,
    *,
    damping: DampingLike | Damping = 1e-3,
    stop: Stopping = HUNDRED,
    preconditioner: Preconditioner = PLAIN,
    trust_region: ArrayLike | Damping | None = RADIUS,
    momentum: ArrayLike | None = None,
    weight_decay: ArrayLike = 0.0,
) -> optax.GradientTransformationExtraArgs:
    """−η (F + λI)⁻¹ g by preconditioned conjugate gradients on Fisher products.

    They start from the last step's solution. Iterations and residual stand in the
    state's health. O(P) memory, two gradients' time an iteration.

    Args:
        learning_rate: η, or an optax schedule.
        model: the statistical model.
        damping: λ, or a schedule; by layer too, as for `natural_gradient`.
        stop: when they stop: `RelativeResidual(tolerance, max_iterations)`,
            `ModelDecrease(epsilon, max_iterations)` or `FixedIterations(iterations)` of
            `natgrad.krylov`.
        preconditioner: `natgrad.curvature.Identity()`, `Nystrom(rank)`, `Kronecker()`
            (K-FAC, which needs `example_inputs`) or `Jacobi()`.
        trust_region: as for `natural_gradient`.
        momentum: as for `natural_gradient`.
        weight_decay: as for `natural_gradient`.

    Returns:
        The optimizer; its update is to be added to the parameters as it is.

    Raises:
        ValueError: for impossible arguments, here, in `init` or in `update`.

    Source: Martens (2010), Deep learning via Hessian-free optimization, section 4.
    """
    return descend(
        MatrixFree(model, stop=stop, preconditioner=preconditioner),
        TrustRegion(trust_region, learning_rate, momentum, weight_decay),
        damping=damping,
        solver=WarmStart(),
    )
