"""The diagonal of the Fisher information, from taps on the layers.

    d = (1/N) Σ_n Σ_k w_nk (Σ_t x_nt g_nkt)²,      entry by entry of Σ_t x gᵀ

The same numbers as `Diagonal`, but for a layer that each example uses at one position
they are (X²)ᵀ G², so that no example's gradient is ever formed: memory P beyond that of
the gradient, time one backward pass and one product Xᵀ G more for each score column.
Layers used at several positions, or several times, do form them, one layer at a time.
Parameters that no block reads have d = 0.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import final

import jax
import jax.numpy as jnp

from natgrad.curvature.layerwise import Blocks, CapturedBatch, LayerCurvature
from natgrad.layers import Captured, Squares, Statistic
from natgrad.metrics.matrices import DiagonalMetric
from natgrad.tree import Layout
from natgrad.typing import Array, Params, Statistics


@final
@dataclasses.dataclass(frozen=True, eq=False)
class LayerDiagonal(LayerCurvature):
    """The diagonal of F, [P]."""

    def init(self, params: Params) -> Statistics:
        """Zeros [P]."""
        layout = Layout.of(params)
        return jnp.zeros(layout.size, layout.dtype)

    def layer_statistics(self, captured: CapturedBatch) -> SquareStatistics:
        """Squares of every block's gradients."""
        return SquareStatistics(captured.captured, Layout.of(captured.batch.params))

    def metric_from_statistics(
        self, statistics: Array, layout: Layout, blocks: Callable[[], Blocks]
    ) -> DiagonalMetric:
        """The diagonal as a metric."""
        del blocks
        return DiagonalMetric(layout, statistics)


@dataclasses.dataclass(frozen=True)
class SquareStatistics:
    """Squared gradients: what is asked of the layers, and what is kept.

    Attributes:
        captured: the layers.
        layout: of the parameters.
    """

    captured: Captured
    layout: Layout

    def requested_statistics(self) -> Mapping[str, Statistic]:
        """Σ_n V_n² of every block."""
        return {"squares": Squares()}

    def finalize(self, sums: Mapping[str, Mapping], total: Array) -> Array:
        """The diagonal [P], 0 where no block reads a parameter.

        Args:
            sums: block's name -> {"squares": the sums}.
            total: Σ_n ω_n, shape ().
        """
        layout = self.layout
        zeros = [jnp.zeros(shape, layout.dtype) for shape in layout.shapes]
        squares = {name: answers["squares"] for name, answers in sums.items()}
        diagonal = self.captured.from_matrices(
            squares, jax.tree.unflatten(layout.treedef, zeros)
        )
        return layout.ravel(diagonal) / total.astype(layout.dtype)
