"""Optimizers, each a sentence: a curvature, then a learning rate.

All of them minimise `model.loss` (or it plus what the user adds) and are used as

    tx = natural_gradient(0.1, model)
    state = tx.init(params)
    grads = jax.grad(model.loss)(params, x, y)
    updates, state = tx.update(grads, state, params, inputs=x)
    params = optax.apply_updates(params, updates)

For other labels, solvers or momentum, compose `scale_by_curvature` with optax's own
pieces; that is all these functions do.
"""

from __future__ import annotations

from collections.abc import Callable

import optax

from natgrad.curvature import (
    EKFAC,
    KFAC,
    Automatic,
    Dense,
    Diagonal,
    Empirical,
    Gram,
    Jacobi,
    Labels,
    MatrixFree,
    Sampled,
    WarmStart,
)
from natgrad.curvature.base import Curvature
from natgrad.curvature.preconditioners import Preconditioner
from natgrad.damping import Damping, TrustRegion
from natgrad.kronecker import FactoredTikhonov
from natgrad.krylov import Residual, Stopping
from natgrad.model import Model
from natgrad.refresh import Refresh
from natgrad.spring import scale_by_norm_constraint, scale_by_spring
from natgrad.transform import scale_by_curvature
from natgrad.typing import ArrayLike

# Statistics in every step, each layer's inverse every ten.
EVERY_TEN = Refresh(inverses=10)
ONE_SAMPLE = Sampled(1)
HUNDRED = Residual(max_iterations=100)
DIAGONAL = Jacobi()


def natural_gradient(
    learning_rate: optax.ScalarOrSchedule,
    model: Model,
    *,
    damping: ArrayLike | Damping = 1e-3,
    decay: ArrayLike = 0.0,
    curvature: Callable[[Model], Curvature] = Automatic,
) -> optax.GradientTransformationExtraArgs:
    """The exact natural gradient: −η (F + λI)⁻¹ g with the whole Fisher information.

    With η = 1 and λ = 0 this is Newton's method for linear regression and iteratively
    reweighted least squares for logistic regression. Solved in parameter space, in
    sample space or matrix-free, by size (`natgrad.curvature.automatic` has the rule).

    Args:
        learning_rate: η, or an optax schedule.
        model: the statistical model.
        damping: λ, or a schedule.
        decay: of the moving average of F; 0 uses the current batch alone. More needs a
            matrix: up to 512 parameters, or curvature=natgrad.curvature.Dense.
        curvature: model -> curvature, to choose the space yourself: Dense, Gram or
            MatrixFree of `natgrad.curvature`.

    Source: Amari (1998), Natural gradient works efficiently in learning.
    """
    return _descend(curvature(model), learning_rate, damping, decay)


def diagonal_fisher(
    learning_rate: optax.ScalarOrSchedule,
    model: Model,
    *,
    damping: ArrayLike | Damping = 1e-3,
    decay: ArrayLike = 0.95,
) -> optax.GradientTransformationExtraArgs:
    """−η g/(diag F + λ) with the exact diagonal of the Fisher information.

    Unlike Adam it divides by F, not by a square root, and F is not the square of the
    mean gradient. O(P) memory.

    Args:
        learning_rate: η, or an optax schedule.
        model: the statistical model.
        damping: λ, or a schedule.
        decay: of the moving average of diag F.

    Source: Becker & LeCun (1989), Improving the convergence of back-propagation
    learning with second order methods, for the diagonal; Amari (1998) for F.
    """
    return _descend(Diagonal(model), learning_rate, damping, decay)


def empirical_fisher(
    learning_rate: optax.ScalarOrSchedule,
    model: Model,
    *,
    damping: ArrayLike | Damping = 1e-3,
    decay: ArrayLike = 0.0,
) -> optax.GradientTransformationExtraArgs:
    """−η (E + λI)⁻¹ g with the empirical Fisher E, which is not the Fisher.

    E = (1/N) Σ_n g_n g_nᵀ uses the data's labels, so `update` also needs `targets=y`.
    Far from a well specified optimum its step can point uphill in KL divergence.
    O(P²) memory, O(P³) time.

    Args:
        learning_rate: η, or an optax schedule.
        model: the statistical model.
        damping: λ, or a schedule.
        decay: of the moving average of E.

    Source: Kunstner, Hennig & Balles (2019), Limitations of the empirical Fisher
    approximation for natural gradient descent.
    """
    return _descend(Dense(model, Empirical()), learning_rate, damping, decay)


def gram(
    learning_rate: optax.ScalarOrSchedule,
    model: Model,
    *,
    damping: ArrayLike | Damping = 1e-3,
    labels: Labels = ONE_SAMPLE,
) -> optax.GradientTransformationExtraArgs:
    """−η (F + λI)⁻¹ g, solved exactly in sample space, where M×M matrices do.

    With labels sampled once M is the number of examples, and a step of a network with
    millions of parameters costs about three gradients. F is that of the current batch.

    Args:
        learning_rate: η, or an optax schedule.
        model: the statistical model.
        damping: λ, or a schedule.
        labels: over which labels; `Exact()` has as many columns an example as the
            model has outputs.

    Source: Ren & Goldfarb (2019), Efficient subsampled Gauss-Newton and natural
    gradient methods for training neural networks.
    """
    return _descend(Gram(model, labels), learning_rate, damping, 0.0)


def spring(
    learning_rate: optax.ScalarOrSchedule,
    model: Model,
    *,
    damping: ArrayLike | Damping = 1e-3,
    momentum: ArrayLike = 0.99,
    constraint: ArrayLike = 1e-3,
    curvature: Callable[[Model], Curvature] = Gram,
) -> optax.GradientTransformationExtraArgs:
    """−η φ with φ = (F + λI)⁻¹ (g + λ μ φ_before), and |η φ|² at most c.

    Args:
        learning_rate: η, or an optax schedule.
        model: the statistical model.
        damping: λ, or a schedule.
        momentum: μ.
        constraint: c.
        curvature: model -> curvature.

    Source: Goldshlager, Abrahamsen & Lin (2024), A Kaczmarz-inspired approach to
    accelerate the optimization of neural network wavefunctions.
    """
    return optax.chain(
        scale_by_spring(curvature(model), damping=damping, momentum=momentum),
        scale_by_norm_constraint(learning_rate, constraint),
        optax.scale_by_learning_rate(learning_rate),
    )


def matrix_free(
    learning_rate: optax.ScalarOrSchedule,
    model: Model,
    *,
    damping: ArrayLike | Damping = 1e-3,
    stop: Stopping = HUNDRED,
    preconditioner: Preconditioner = DIAGONAL,
) -> optax.GradientTransformationExtraArgs:
    """−η (F + λI)⁻¹ g by preconditioned conjugate gradients on Fisher products.

    They start from the last step's solution. Iterations and residual stand in the
    state's health. O(P) memory, two gradients' time an iteration.

    Args:
        learning_rate: η, or an optax schedule.
        model: the statistical model.
        damping: λ, or a schedule.
        stop: when they stop: `natgrad.krylov.Residual(tolerance, max_iterations)`,
            `Progress(epsilon, max_iterations)` or `Fixed(iterations)`.
        preconditioner: `natgrad.curvature.Jacobi()`, `Kronecker()` (K-FAC, which needs
            `example_inputs`), `Nystrom(rank)` or `Identity()`.

    Source: Martens (2010), Deep learning via Hessian-free optimization, section 4.
    """
    direction = scale_by_curvature(
        MatrixFree(model, stop=stop, preconditioner=preconditioner),
        damping=damping,
        solver=WarmStart(),
    )
    return _chain(direction, None, learning_rate)


def kfac(
    learning_rate: optax.ScalarOrSchedule,
    model: Model,
    *,
    damping: ArrayLike | Damping = 1e-3,
    decay: ArrayLike = 0.95,
    refresh: Refresh = EVERY_TEN,
    trust_region: ArrayLike | Damping | None = 0.1,
    then: optax.GradientTransformation | None = None,
) -> optax.GradientTransformationExtraArgs:
    """K-FAC: −η (A + π√λ I)⁻¹ g (G + √λ/π I)⁻¹, layer by layer.

    Factors from labels sampled once, averaged, and inverted every few steps. Momentum
    and weight decay are optax's:

        kfac(0.1, model, then=optax.trace(0.9))
        kfac(0.1, model, then=optax.add_decayed_weights(1e-4))

    The model needs `example_inputs`. Memory about 3 Σ (I² + O²) over layers.

    Args:
        learning_rate: η, or an optax schedule.
        model: the statistical model.
        damping: λ, or a schedule.
        decay: of the moving averages of A and G.
        refresh: how often, in steps, factors and inverses are renewed.
        trust_region: δ in nats; steps of a larger KL divergence ½ η² ⟨d, F d⟩ are
            shrunk to it, which an old inverse needs while F still changes fast; None
            for none, and one product with F less.
        then: what comes between the direction and the learning rate.

    Source: Martens & Grosse (2015), Optimizing neural networks with Kronecker-factored
    approximate curvature. For the exact damped inverse of A ⊗ G, compose
    `scale_by_curvature` with `natgrad.kronecker.Eigenbasis()`.
    """
    direction = scale_by_curvature(
        KFAC(model, Sampled(1)),
        damping=damping,
        decay=decay,
        solver=FactoredTikhonov(),
        refresh=refresh,
        trust_region=_trust(trust_region, learning_rate),
    )
    return _chain(direction, then, learning_rate)


def ekfac(
    learning_rate: optax.ScalarOrSchedule,
    model: Model,
    *,
    damping: ArrayLike | Damping = 1e-3,
    decay: ArrayLike = 0.95,
    refresh: Refresh = EVERY_TEN,
    trust_region: ArrayLike | Damping | None = 0.1,
    then: optax.GradientTransformation | None = None,
) -> optax.GradientTransformationExtraArgs:
    """EKFAC: −η U (Uᵀ g U / (s + λ)) Uᵀ, layer by layer, s the second moments there.

    As `kfac`, with the scales measured in the factors' eigenbasis rather than taken
    from it. λ damps exactly; the basis is refreshed every `refresh.inverses` steps.

    Args:
        learning_rate: η, or an optax schedule.
        model: the statistical model; needs `example_inputs`.
        damping: λ, or a schedule.
        decay: of the moving averages of factors and scales.
        refresh: how often, in steps, statistics and bases are renewed.
        trust_region: δ in nats; steps of a larger KL divergence ½ η² ⟨d, F d⟩ are
            shrunk to it, which an old inverse needs while F still changes fast; None
            for none, and one product with F less.
        then: what comes between the direction and the learning rate.

    Source: George et al. (2018), Fast approximate natural gradient descent in a
    Kronecker-factored eigenbasis.
    """
    direction = scale_by_curvature(
        EKFAC(model, Sampled(1), period=refresh.inverses),
        damping=damping,
        decay=decay,
        refresh=Refresh(statistics=refresh.statistics),
        trust_region=_trust(trust_region, learning_rate),
    )
    return _chain(direction, then, learning_rate)


def _trust(radius, learning_rate) -> TrustRegion | None:
    return None if radius is None else TrustRegion(radius, learning_rate)


def _chain(direction, then, learning_rate) -> optax.GradientTransformationExtraArgs:
    steps = [direction] if then is None else [direction, then]
    return optax.chain(*steps, optax.scale_by_learning_rate(learning_rate))


def _descend(
    curvature: Curvature,
    learning_rate: optax.ScalarOrSchedule,
    damping: ArrayLike | Damping,
    decay: ArrayLike,
) -> optax.GradientTransformationExtraArgs:
    direction = scale_by_curvature(curvature, damping=damping, decay=decay)
    return _chain(direction, None, learning_rate)
