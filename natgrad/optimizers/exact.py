"""Optimizers with the exact Fisher information, each a sentence."""

from __future__ import annotations

from collections.abc import Callable

import optax

from natgrad.curvature import (
    Automatic,
    Gram,
    GramOfTheBatch,
    Identity,
    Labels,
    MatrixFree,
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
from natgrad.solvers.base import Solver
from natgrad.solvers.conjugate_gradients import RelativeResidual, Stopping
from natgrad.transforms.averaging import BY_BATCH
from natgrad.transforms.damping import Damping, DampingLike, Radius, TrustRegion
from natgrad.transforms.march import (
    BY_STEPS,
    ScoreVariance,
    StepVariance,
    scale_by_march,
)
from natgrad.transforms.principal_range import PrincipalRange
from natgrad.transforms.spring import scale_by_norm_constraint, scale_by_spring
from natgrad.typing import ArrayLike

HUNDRED = RelativeResidual(max_iterations=100)
PLAIN = Identity()


def natural_gradient(
    learning_rate: optax.ScalarOrSchedule = LEARNING_RATE,
    model: Model = REQUIRED,
    *,
    damping: DampingLike | Damping = 1e-3,
    decay: ArrayLike | None = None,
    curvature: Callable[[Model], Curvature] | None = None,
    solver: Solver | None = None,
    trust_region: Radius = RADIUS,
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
            prefix of it; or `natgrad.ByPath({"layers/0": 1e-2, "": 1e-3})`. By F:
            `natgrad.Relative(c)`, c times the mean of its diagonal;
            `natgrad.ConditionNumber(cap)`; `natgrad.ScaleInvariant(c)`, c diag F.
        decay: β of the moving average of F, which needs a matrix: up to 512 parameters,
            or curvature=natgrad.curvature.Dense. None for β > 0 where a batch does not
            determine F (`natgrad.transforms.averaging`); 0 for each batch alone.
        curvature: model -> curvature: Dense, Gram or MatrixFree of `natgrad.curvature`;
            None for Automatic. All that these take is said here: lambda m: Gram(m,
            Sketched(1), chunk_size="auto") makes it `gram` in chunks.
        solver: (metric, gradient, damping) -> direction; None for that of the metric.
            Or a filter of `natgrad.solvers`: HardCutoff, SmoothCutoff, RobustDamping.
        trust_region: δ, the largest KL divergence of a step in nats a label, or a rule,
            by default `natgrad.damping.AdaptiveRadius()`; None for no bound.
        momentum: β in [0, 1) of v = d + β v_before; None for none.
        weight_decay: ω >= 0, decoupled: −η ω θ is added to the step.

    Returns:
        The optimizer; its update is to be added to the parameters as it is.

    Raises:
        ValueError: for impossible arguments, such as an average without a matrix.

    Source: Amari (1998), Natural gradient works efficiently in learning.
    """
    form = Automatic if curvature is None else curvature
    applied = TrustRegion(trust_region, learning_rate, momentum, weight_decay)
    chosen = curvature_of(form, model)
    mean = BY_BATCH if decay is None else decay
    return descend(chosen, applied, damping=damping, decay=mean, solver=solver)


def gram(
    learning_rate: optax.ScalarOrSchedule = LEARNING_RATE,
    model: Model = REQUIRED,
    *,
    damping: DampingLike | Damping = 1e-2,
    labels: Labels | None = None,
    solver: Solver | None = None,
    trust_region: Radius = RADIUS,
    momentum: ArrayLike | None = None,
    weight_decay: ArrayLike = 0.0,
) -> optax.GradientTransformationExtraArgs:
    """−η (F + λI)⁻¹ g, solved exactly in sample space, where M×M matrices do.

    F is that of the current batch: exact while M, the examples times their outputs, is
    at most 512; beyond, of one random mixture of each example's columns (exact for one
    output): M is the number of examples, and a step of a network with millions of
    parameters costs about three gradients. With `chunk_size=`, `memory_budget=` or
    `axis_name=` of the curvature it is `natural_gradient(damping=1e-2, curvature=form)`
    with `form = lambda m: Gram(m, labels, chunk_size="auto")`.

    Args:
        learning_rate: η, or an optax schedule.
        model: the statistical model.
        damping: λ, or a schedule. F of few columns knows nothing of most directions,
            which 1/λ stretches: take more than with the exact F.
        labels: over which labels; None for `Exact()` in small batches and
            `Sketched(1)` in others, as above; `Sketched(4)` knows more, and costs more.
        solver: as for `natural_gradient`.
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
    chosen = GramOfTheBatch(model) if labels is None else Gram(model, labels)
    return descend(chosen, applied, damping=damping, solver=solver)


def spring(
    learning_rate: optax.ScalarOrSchedule = LEARNING_RATE,
    model: Model = REQUIRED,
    *,
    damping: DampingLike | Damping = 1e-3,
    momentum: ArrayLike | PrincipalRange | None = None,
    constraint: ArrayLike | None = None,
    curvature: Callable[[Model], Curvature] | None = None,
    solver: Solver | None = None,
    trust_region: Radius = RADIUS,
) -> optax.GradientTransformationExtraArgs:
    """−η φ with φ = (F + λI)⁻¹ (g + λ μ φ_before), within a trust region.

    Args:
        learning_rate: η, or an optax schedule.
        model: the statistical model.
        damping: λ, or a schedule; by layer too, as for `natural_gradient`.
        momentum: μ in [0, 1]; None for 1 − η, at most 0.99; or
            `natgrad.PrincipalRange()`, which finds it in each step from the spectrum of
            F (PRIME-SR), at most 1 − η.
        constraint: c > 0, a bound on |η φ|² in squared units of the parameters, which
            the paper has in place of a trust region; None for none.
        curvature: model -> curvature; None for Automatic, averaged by default as for
            `natural_gradient`; Gram for each batch alone. A function such as lambda m:
            Gram(m, Sketched(1)) chooses the labels too.
        solver: as for `natural_gradient`; what a filter drops stays as it is in
            μ φ_before.
        trust_region: as for `natural_gradient`; φ is remembered as it was shortened.

    Returns:
        The optimizer; its update is to be added to the parameters as it is.

    Raises:
        ValueError: for impossible arguments, here, in `init` or in `update`.

    Source: Goldshlager, Abrahamsen & Lin (2024), A Kaczmarz-inspired approach to
    accelerate the optimization of neural network wavefunctions.
    """
    form = Automatic if curvature is None else curvature
    direction = scale_by_spring(
        curvature_of(form, model),
        damping=damping,
        decay=BY_BATCH,
        momentum=momentum,
        solver=solver,
        trust_region=TrustRegion(trust_region, learning_rate),
    )
    return chain(
        direction, _limit(learning_rate, constraint), learning_rate=learning_rate
    )


def march(
    learning_rate: optax.ScalarOrSchedule = LEARNING_RATE,
    model: Model = REQUIRED,
    *,
    damping: DampingLike | Damping = 1e-3,
    momentum: ArrayLike = 0.95,
    variance: StepVariance | ScoreVariance = BY_STEPS,
    constraint: ArrayLike | None = None,
    curvature: Callable[[Model], Curvature] | None = None,
    trust_region: Radius = RADIUS,
) -> optax.GradientTransformationExtraArgs:
    """`spring` whose damping λ √v is by the variance v of each parameter's steps.

    φ = (F + λ √v)⁻¹ (g + λ μ √v φ_before), v = β v_before + (φ − φ_before)², v_0 = 1;
    or by that of its scores, v = β v_before + (1 − β) diag F / mean diag F.
    `Gram` writes out the rows of B for it, M·P numbers.

    Args:
        learning_rate: η, or an optax schedule.
        model: the statistical model.
        damping: λ, or a schedule; by layer too, but for what F decides.
        momentum: μ in [0, 1].
        variance: `natgrad.StepVariance(decay)` or `natgrad.ScoreVariance(decay)`, β
            in [0, 1].
        constraint: as for `spring`.
        curvature: as for `spring`; not KFAC or EKFAC.
        trust_region: as for `spring`.

    Returns:
        The optimizer; its update is to be added to the parameters as it is.

    Raises:
        ValueError: for impossible arguments, here, in `init` or in `update`.

    Source: Gu et al. (2025), Solving the Hubbard model with neural quantum states.
    """
    form = Gram if curvature is None else curvature
    direction = scale_by_march(
        curvature_of(form, model),
        damping=damping,
        momentum=momentum,
        variance=variance,
        trust_region=TrustRegion(trust_region, learning_rate),
    )
    return chain(
        direction, _limit(learning_rate, constraint), learning_rate=learning_rate
    )


def _limit(
    learning_rate: optax.ScalarOrSchedule, constraint: ArrayLike | None
) -> optax.GradientTransformation | None:
    if constraint is None:
        return None
    return scale_by_norm_constraint(learning_rate, constraint)


def matrix_free(
    learning_rate: optax.ScalarOrSchedule = LEARNING_RATE,
    model: Model = REQUIRED,
    *,
    damping: DampingLike | Damping = 1e-3,
    stop: Stopping = HUNDRED,
    preconditioner: Preconditioner = PLAIN,
    trust_region: Radius = RADIUS,
    momentum: ArrayLike | None = None,
    weight_decay: ArrayLike = 0.0,
) -> optax.GradientTransformationExtraArgs:
    """−η (F + λI)⁻¹ g by preconditioned conjugate gradients on Fisher products.

    They start from the last step's solution. Iterations and residual stand in the
    state's health. O(P) memory, two gradients' time an iteration. In chunks of examples
    it is `natural_gradient(curvature=lambda m: MatrixFree(m, chunk_size="auto"),
    solver=WarmStart())` with these of `natgrad.curvature`.

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
