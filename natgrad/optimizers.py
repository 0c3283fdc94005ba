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

import optax

from natgrad.curvature import Dense, Diagonal, Empirical, MatrixFree
from natgrad.curvature.base import Curvature
from natgrad.damping import Damping
from natgrad.model import Model
from natgrad.transform import scale_by_curvature
from natgrad.typing import ArrayLike


def natural_gradient(
    learning_rate: optax.ScalarOrSchedule,
    model: Model,
    *,
    damping: ArrayLike | Damping = 1e-3,
    decay: ArrayLike = 0.0,
) -> optax.GradientTransformationExtraArgs:
    """The exact natural gradient: −η (F + λI)⁻¹ g with the whole Fisher information.

    With η = 1 and λ = 0 this is Newton's method for linear regression and iteratively
    reweighted least squares for logistic regression. O(P²) memory, O(P³) time.

    Args:
        learning_rate: η, or an optax schedule.
        model: the statistical model.
        damping: λ, or a schedule.
        decay: of the moving average of F; 0 uses the current batch alone.

    Source: Amari (1998), Natural gradient works efficiently in learning.
    """
    return _descend(Dense(model), learning_rate, damping, decay)


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


def matrix_free(
    learning_rate: optax.ScalarOrSchedule,
    model: Model,
    *,
    damping: ArrayLike | Damping = 1e-3,
    tolerance: float | None = None,
    max_iterations: int | None = 100,
) -> optax.GradientTransformationExtraArgs:
    """−η (F + λI)⁻¹ g by preconditioned conjugate gradients on Fisher products.

    Exact to the tolerance; the residual stands in the state's health. O(P) memory, two
    gradients' time an iteration.

    Args:
        learning_rate: η, or an optax schedule.
        model: the statistical model.
        damping: λ, or a schedule.
        tolerance: on |residual|/|g|; None for ten times the dtype's rounding.
        max_iterations: after which the iterate is used as it is.

    Source: Martens (2010), Deep learning via Hessian-free optimization, section 4.
    """
    curvature = MatrixFree(model, tolerance=tolerance, max_iterations=max_iterations)
    return _descend(curvature, learning_rate, damping, 0.0)


def _descend(
    curvature: Curvature,
    learning_rate: optax.ScalarOrSchedule,
    damping: ArrayLike | Damping,
    decay: ArrayLike,
) -> optax.GradientTransformationExtraArgs:
    return optax.chain(
        scale_by_curvature(curvature, damping=damping, decay=decay),
        optax.scale_by_learning_rate(learning_rate),
    )
