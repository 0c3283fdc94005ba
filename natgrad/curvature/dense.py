"""The whole Fisher information matrix, from score outer products.

    F = (1/N) Σ_n J_nᵀ (Σ_k w_nk s_nk s_nkᵀ) J_n                  [P, P]

Exact for `Exact` labels; with `Empirical` ones the empirical Fisher, with `Sampled(n)`
unbiased. Memory P² and one chunk of N·K·P; time N·K·P² + P³/3.

Source: Amari (1998), Natural gradient works efficiently in learning, section 2.
"""

from __future__ import annotations

import dataclasses
import itertools
from typing import ClassVar, final

import jax.numpy as jnp

from natgrad.curvature.base import require_memory
from natgrad.curvature.summed import PullbackCurvature
from natgrad.metrics.matrices import DenseMetric
from natgrad.solvers.dense import mirrored
from natgrad.solvers.spectral import HIGHEST
from natgrad.tree import Layout
from natgrad.typing import Array, Inputs, Params, Statistics

# Block rows of a symmetric product, and the size below which one product is as fast.
_BLOCKS = 4
_SMALL = 512


@final
@dataclasses.dataclass(frozen=True, eq=False)
class Dense(PullbackCurvature):
    """F as a matrix [P, P]."""

    keeps_all_of_f: ClassVar[bool] = True

    def init(self, params: Params) -> Statistics:
        """Zeros [P, P]."""
        layout = Layout.of(params)
        require_memory(
            layout.size**2,
            layout.dtype,
            f"Dense's matrix of {layout.size} parameters",
            "KFAC, EKFAC, MatrixFree or a diagonal",
        )
        return jnp.zeros((layout.size, layout.size), layout.dtype)

    def outer(self, layout: Layout, g: Array, weights: Array) -> Statistics:
        """Σ_m w_m g_m g_mᵀ, [P, P]."""
        del layout
        return weighted_gram(g, weights)

    def metric(
        self,
        statistics: Statistics,
        params: Params,
        inputs: Inputs = None,
        targets: Array | None = None,
    ) -> DenseMetric:
        """The matrix as a metric."""
        del inputs, targets
        return DenseMetric(Layout.of(params), statistics)


def weighted_gram(g: Array, weights: Array) -> Array:
    """Σ_m w_m g_m g_mᵀ, [P, P], for g [M, P] and weights [M].

    A large matrix is taken in block rows up to the diagonal, and what is right of it
    is copied: ⅝ of the multiplications.
    """
    count, size = g.shape
    blocks = _BLOCKS if size >= _SMALL and 2 * count >= size else 1
    edges = [size * i // blocks for i in range(blocks + 1)]
    weighted = weights[:, None] * g
    rows = [
        jnp.einsum("mp,mq->pq", weighted[:, a:b], g[:, :b], precision=HIGHEST)
        for a, b in itertools.pairwise(edges)
    ]
    return mirrored(rows, edges)
