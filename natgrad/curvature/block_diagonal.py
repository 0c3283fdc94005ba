"""Exact diagonal blocks of the Fisher information, by leaf or by a user's grouping.

    F_b = (1/N) Σ_n Σ_k w_nk g_nkb g_nkbᵀ                         [P_b, P_b]

where g_nkb is the part of J_nᵀ s_nk that belongs to block b. Exact where parameters of
different blocks have uncorrelated scores. Memory Σ P_b²; time N·K·Σ P_b² + Σ P_b³/3.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Hashable
from typing import final

import jax
import jax.numpy as jnp
import numpy as np

from natgrad import tree
from natgrad.curvature.base import require_memory
from natgrad.curvature.dense import weighted_gram
from natgrad.curvature.summed import PullbackCurvature
from natgrad.metrics.matrices import BlockDiagonalMetric
from natgrad.tree import Layout
from natgrad.typing import Array, Inputs, Params, Statistics


@final
@dataclasses.dataclass(frozen=True, eq=False)
class BlockDiagonal(PullbackCurvature):
    """Diagonal blocks of F.

    Attributes:
        grouping: path of a leaf, such as 'dense_1/kernel', -> label; leaves with the
            same label share a block. None gives each leaf a block of its own.
    """

    grouping: Callable[[str], Hashable] | None = None

    def init(self, params: Params) -> Statistics:
        """One zero matrix [P_b, P_b] a block."""
        layout = Layout.of(params)
        sizes = [
            sum(layout.sizes[leaf] for leaf in group) for group in self._groups(params)
        ]
        require_memory(
            sum(size**2 for size in sizes),
            layout.dtype,
            f"BlockDiagonal's matrices of {layout.size} parameters",
            "KFAC, EKFAC, MatrixFree or a diagonal",
        )
        return tuple(jnp.zeros((size, size), layout.dtype) for size in sizes)

    def outer(self, layout: Layout, g: Array, weights: Array) -> Statistics:
        """Σ_m w_m g_mb g_mbᵀ for each block."""
        params = jax.tree.unflatten(layout.treedef, layout.sizes)
        return tuple(
            weighted_gram(
                g[:, np.concatenate([layout.positions(leaf) for leaf in group])],
                weights,
            )
            for group in self._groups(params)
        )

    def metric(
        self,
        statistics: Statistics,
        params: Params,
        inputs: Inputs = None,
        targets: Array | None = None,
    ) -> BlockDiagonalMetric:
        """The blocks as a metric."""
        del inputs, targets
        return BlockDiagonalMetric(
            Layout.of(params), self._groups(params), tuple(statistics)
        )

    def _groups(self, params: Params) -> tuple[tuple[int, ...], ...]:
        groups: dict[Hashable, list[int]] = {}
        for index, path in enumerate(tree.paths(params)):
            label = index if self.grouping is None else self.grouping(path)
            groups.setdefault(label, []).append(index)
        return tuple(tuple(group) for group in groups.values())
