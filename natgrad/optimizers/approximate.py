"""Optimizers with approximations of the Fisher information, each a sentence."""

from __future__ import annotations

import dataclasses

import optax

from natgrad.arguments import known_value
from natgrad.curvature import (
    EKFAC,
    KFAC,
    Automatic,
    AutomaticDiagonal,
    Dense,
    Empirical,
    ExactIfFew,
    GramBlocks,
    Labels,
    Sampled,
    Sketched,
)
from natgrad.metrics.kronecker import FactoredTikhonov
from natgrad.model import Model
from natgrad.optimizers.chains import LEARNING_RATE, RADIUS, REQUIRED, descend
from natgrad.transforms.damping import Damping, DampingLike, Radius, TrustRegion
from natgrad.transforms.inverse_cache import Refresh
from natgrad.typing import ArrayLike

ONE_SKETCH = Sketched(1)
FEW = ExactIfFew()
KFAC_RATE = 0.1
# As many steps to a training loss as with statistics in every step, and cheaper ones;
# without the warm-up the first inverses are of too few examples. Parts of 64 examples
# left the digits' autoencoder with a loss 2 % higher at a learning rate of 1.
SPARING = Refresh(5, inverses=10, warm_up=20, sub_batch=4, min_examples=128)


def diagonal_fisher(
    learning_rate: optax.ScalarOrSchedule = LEARNING_RATE,
    model: Model = REQUIRED,
    *,
    damping: DampingLike | Damping = 1e-3,
    decay: ArrayLike = 0.95,
    labels: Labels = FEW,
    trust_region: Radius = RADIUS,
    momentum: ArrayLike | None = None,
    weight_decay: ArrayLike = 0.0,
) -> optax.GradientTransformationExtraArgs:
    """−η g/(diag F + λ) with the diagonal of the Fisher information.

    Unlike Adam it divides by F, not by a square root, and F is not the square of the
    mean gradient. O(P) memory. Read off the layers, where they can be, as
    `natgrad.curvature.LayerDiagonal` does, else one example at a time. Exact for up to
    32 outputs an example, at a pull-back each; else of one random mixture of them.

    Args:
        learning_rate: η, or an optax schedule.
        model: the statistical model.
        damping: λ, or a schedule; by layer too, as for `natural_gradient`.
        decay: of the moving average of diag F.
        labels: over which labels; `Exact()` takes all of them.
        trust_region: as for `natural_gradient`.
        momentum: as for `natural_gradient`.
        weight_decay: as for `natural_gradient`.

    Returns:
        The optimizer; its update is to be added to the parameters as it is.

    Raises:
        ValueError: for impossible arguments, here, in `init` or in `update`.

    Source: Becker & LeCun (1989), Improving the convergence of back-propagation
    learning with second order methods, for the diagonal; Amari (1998) for F.
    """
    applied = TrustRegion(trust_region, learning_rate, momentum, weight_decay)
    curvature = AutomaticDiagonal(model, labels)
    return descend(curvature, applied, damping=damping, decay=decay)


def empirical_fisher(
    learning_rate: optax.ScalarOrSchedule = LEARNING_RATE,
    model: Model = REQUIRED,
    *,
    damping: DampingLike | Damping = 1e-3,
    decay: ArrayLike = 0.0,
    trust_region: Radius = RADIUS,
    momentum: ArrayLike | None = None,
    weight_decay: ArrayLike = 0.0,
) -> optax.GradientTransformationExtraArgs:
    """−η (E + λI)⁻¹ g with the empirical Fisher E, which is not the Fisher.

    E = (1/N) Σ_n g_n g_nᵀ uses the data's labels, so `update` also needs `targets=y`.
    Far from a well specified optimum its step can point uphill in KL divergence.
    Without an average it is solved in the cheapest space, as `natural_gradient` does;
    with one in O(P²) memory and O(P³) time.

    Args:
        learning_rate: η, or an optax schedule.
        model: the statistical model.
        damping: λ, or a schedule; by layer too, as for `natural_gradient`.
        decay: of the moving average of E.
        trust_region: as for `natural_gradient`.
        momentum: as for `natural_gradient`.
        weight_decay: as for `natural_gradient`.

    Returns:
        The optimizer; its update is to be added to the parameters as it is.

    Raises:
        ValueError: for impossible arguments, here, in `init` or in `update`.

    Source: Kunstner, Hennig & Balles (2019), Limitations of the empirical Fisher
    approximation for natural gradient descent.
    """
    applied = TrustRegion(trust_region, learning_rate, momentum, weight_decay)
    form = Automatic if known_value(decay) == 0 else Dense
    curvature = form(model, Empirical())
    return descend(curvature, applied, damping=damping, decay=decay)


def gram_blocks(
    learning_rate: optax.ScalarOrSchedule = LEARNING_RATE,
    model: Model = REQUIRED,
    *,
    damping: DampingLike | Damping = 1e-2,
    labels: Labels = ONE_SKETCH,
    trust_region: Radius = RADIUS,
    momentum: ArrayLike | None = None,
    weight_decay: ArrayLike = 0.0,
) -> optax.GradientTransformationExtraArgs:
    """Layerwise Gauss-Newton: −η (F_b + λI)⁻¹ g_b, each layer in its own sample space.

    As `gram` without what F has between layers, and an M×M matrix for each layer; as
    `kfac` without A ⊗ G, and without an average: F_b is that of the current batch.
    With `chunk_size=`, `memory_budget=` or `axis_name=` of the curvature it is
    `natural_gradient(damping=1e-2, curvature=form)` with `form = lambda m:
    GramBlocks(m, labels, chunk_size="auto")`.

    Args:
        learning_rate: η, or an optax schedule.
        model: the statistical model.
        damping: λ, or a schedule; by layer too, as for `natural_gradient`.
        labels: over which labels; `Exact()` where an example has few outputs, or
            `Sketched(4)`, know more, and cost more.
        trust_region: as for `natural_gradient`.
        momentum: as for `natural_gradient`.
        weight_decay: as for `natural_gradient`.

    Returns:
        The optimizer; its update is to be added to the parameters as it is.

    Raises:
        ValueError: for impossible arguments, here, in `init` or in `update`.

    Source: Ren & Goldfarb (2019), Efficient subsampled Gauss-Newton and natural
    gradient methods for training neural networks, for each block.
    """
    applied = TrustRegion(trust_region, learning_rate, momentum, weight_decay)
    return descend(GramBlocks(model, labels), applied, damping=damping)


def kfac(
    learning_rate: optax.ScalarOrSchedule = KFAC_RATE,
    model: Model = REQUIRED,
    *,
    damping: DampingLike | Damping = 1e-3,
    decay: ArrayLike = 0.95,
    refresh: Refresh = SPARING,
    trust_region: Radius = RADIUS,
    momentum: ArrayLike | None = None,
    weight_decay: ArrayLike = 0.0,
) -> optax.GradientTransformationExtraArgs:
    """K-FAC: −η (A + π√λ I)⁻¹ g (G + √λ/π I)⁻¹, layer by layer.

    Factors from labels sampled once, averaged, and inverted every few steps: by default
    factors are estimated every 5 steps and inverted every 10; during the first 20 they
    are estimated in each and inverted whenever the number of steps has doubled. Batches
    of 256 examples and more give every second, third or fourth of them to the factors,
    so that 128 are left; gradient and trust region are always of the whole batch.
    The model needs `example_inputs`. Memory about 3 Σ (I² + O²) over layers.

    Args:
        learning_rate: η, or an optax schedule.
        model: the statistical model.
        damping: λ, or a schedule; by layer too, as for `natural_gradient`.
        decay: of the moving averages of A and G.
        refresh: how often, in steps, factors and inverses are renewed;
            `natgrad.Refresh(inverses=10)` estimates factors in every step, of all
            examples. With `sub_batch=k` they are those of every k-th example.
        trust_region: as for `natural_gradient`.
        momentum: as for `natural_gradient`.
        weight_decay: as for `natural_gradient`.

    Returns:
        The optimizer; its update is to be added to the parameters as it is.

    Raises:
        ValueError: for impossible arguments, here, in `init` or in `update`.

    Source: Martens & Grosse (2015), Optimizing neural networks with Kronecker-factored
    approximate curvature. For the exact damped inverse of A ⊗ G, compose
    `scale_by_curvature` with `natgrad.kronecker.Eigenbasis()`.
    """
    return descend(
        KFAC(model, Sampled(1)),
        TrustRegion(trust_region, learning_rate, momentum, weight_decay),
        damping=damping,
        decay=decay,
        solver=FactoredTikhonov(),
        refresh=refresh,
    )


def ekfac(
    learning_rate: optax.ScalarOrSchedule = KFAC_RATE,
    model: Model = REQUIRED,
    *,
    damping: DampingLike | Damping = 1e-3,
    decay: ArrayLike = 0.95,
    refresh: Refresh = SPARING,
    trust_region: Radius = RADIUS,
    momentum: ArrayLike | None = None,
    weight_decay: ArrayLike = 0.0,
) -> optax.GradientTransformationExtraArgs:
    """EKFAC: −η U (Uᵀ g U / (s + λ)) Uᵀ, layer by layer, s the second moments there.

    As `kfac`, with the scales measured in the factors' eigenbasis rather than taken
    from it, both of the same part of large batches. λ damps exactly. A basis lasts
    `refresh.inverses // refresh.statistics` estimates, and one at least: by default
    two, which are 10 steps after the warm-up.

    Args:
        learning_rate: η, or an optax schedule.
        model: the statistical model; needs `example_inputs`.
        damping: λ, or a schedule; by layer too, as for `natural_gradient`.
        decay: of the moving averages of factors and scales.
        refresh: how often, in steps, statistics and bases are renewed; all bases at
            once, whatever `staggered` says.
        trust_region: as for `natural_gradient`.
        momentum: as for `natural_gradient`.
        weight_decay: as for `natural_gradient`.

    Returns:
        The optimizer; its update is to be added to the parameters as it is.

    Raises:
        ValueError: for impossible arguments, here, in `init` or in `update`.

    Source: George et al. (2018), Fast approximate natural gradient descent in a
    Kronecker-factored eigenbasis.
    """
    if not isinstance(refresh.inverses, int):
        raise ValueError(
            "ekfac renews its bases by count: give it Refresh(inverses=10) or another "
            f"number of steps, got {refresh.inverses!r}."
        )
    period = max(1, refresh.inverses // refresh.statistics)  # in estimates
    return descend(
        EKFAC(model, Sampled(1), period=period),
        TrustRegion(trust_region, learning_rate, momentum, weight_decay),
        damping=damping,
        decay=decay,
        refresh=dataclasses.replace(refresh, inverses=1, staggered=False),
    )
