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
from collections.abc import Callable
from typing import final

import jax
import jax.numpy as jnp

from natgrad.curvature.layerwise import Blocks, LayerCurvature, Plan
from natgrad.layers import Squares
from natgrad.metrics.base import DiagonalMetric
from natgrad.tree import Layout
from natgrad.typing import Array, Inputs, Key, Params, Statistics


@final
@dataclasses.dataclass(frozen=True, eq=False)
class LayerDiagonal(LayerCurvature):
    """The diagonal of F, [P]."""

    def init(self, params: Params) -> Statistics:
        """Zeros [P]."""
        layout = Layout.of(params)
        return jnp.zeros(layout.size, layout.dtype)

    def plan(
        self,
        params: Params,
        inputs: Inputs,
        targets: Array | None = None,
        key: Key | None = None,
    ) -> Plan:
        """Squares of every block's gradients."""
        del targets, key
        captured, layout = self.captured(params, inputs), Layout.of(params)

        def keep(sums, total):
            zeros = [jnp.zeros(shape, layout.dtype) for shape in layout.shapes]
            squares = {name: found["squares"] for name, found in sums.items()}
            tree = captured.from_matrices(
                squares, jax.tree.unflatten(layout.treedef, zeros)
            )
            return layout.ravel(tree) / total.astype(layout.dtype)

        return {"squares": Squares()}, keep

    def metric_from_statistics(
        self, statistics: Array, layout: Layout, blocks: Callable[[], Blocks]
    ) -> DiagonalMetric:
        """The diagonal as a metric."""
        del blocks
        return DiagonalMetric(layout, statistics)
