"""The exact damped step in sample space: an M×M matrix instead of a P×P one.

    F = Bᵀ B,     (F + λI)⁻¹ v = (v − Bᵀ (B Bᵀ + λI)⁻¹ B v)/λ,     B [M, P],  M = K·N

for N examples and K score columns each, B as `natgrad.curvature.rows` makes it.

Equal to `Dense` whatever M and P are (where M > P, B gives the smaller matrix Bᵀ B),
and the better of the two where M < P: memory Σ N (I + K O) + M², time M² Σ (I + O) +
M³/3 and two products with B (four where all but a hundredth of |v|² lies in the range
of Bᵀ), each as long as one of the gradient's three. With `Sketched(1)` labels M = N.

The metric is that of the current batch and parameters; `over` keeps the data.
`GramBlocks` keeps F's diagonal blocks alone, each from its own columns B_b of B:
(B_bᵀ B_b + λI)⁻¹ takes an M×M matrix a block.

Source: Ren & Goldfarb (2019), Efficient subsampled Gauss-Newton and natural gradient
methods for training neural networks; Chen & Heyl (2024), Empowering deep neural quantum
states through efficient optimization (minSR), for centred scores.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar, final

from natgrad.curvature.rows import RowCurvature
from natgrad.metrics.gram import GramMetric
from natgrad.metrics.gram_blocks import GramBlocksMetric
from natgrad.solvers.score_jacobian import Jacobian


@final
@dataclasses.dataclass(frozen=True, eq=False)
class Gram(RowCurvature):
    """F through the Gram matrix of its score columns.

    Attributes:
        chunk_size: examples whose activations and per-example gradients are alive at
            once; "auto" as many as fit into `memory_budget`, None all. Gradients of
            layers whose rows are written out are then formed anew, some N/2c times for
            the M×M matrix and once or twice for each product with B.
        memory_budget: bytes that a solve may take beside the parameters, the batch and
            the gradient, by the shapes of what is alive at once. What `chunk_size`
            does not change, M×M matrices and the layers' factors, N Σ (I + K O)
            numbers, is part of it: a budget that these do not fit into is an error.
            Under `jit` it is that of all devices together.
        axis_name: as of `SummedCurvature`; the M×M matrix is then spread by block rows
            (`natgrad.solvers.device_kernel`).
    """

    keeps_all_of_f: ClassVar[bool] = True

    def of_rows(self, jacobian: Jacobian) -> GramMetric:
        """F = Bᵀ B."""
        return GramMetric(jacobian.layout, jacobian)


@final
@dataclasses.dataclass(frozen=True, eq=False)
class GramBlocks(RowCurvature):
    """The diagonal blocks of F, one a layer, each through its own Gram matrix.

    A block is a weight and the bias beside it; the layers of one scan, and the heads or
    groups of one weight, are one block. Where B is written out each leaf is a block.
    With `chunk_size`, rows of one block are alive at a time.

    Attributes:
        chunk_size: as of `Gram`.
        memory_budget: as of `Gram`, for all blocks together.
        axis_name: as of `Gram`; the matrix of each block is spread.
    """

    by_block: ClassVar[bool] = True

    def of_rows(self, jacobian: Jacobian) -> GramBlocksMetric:
        """The diagonal blocks of Bᵀ B."""
        return GramBlocksMetric(jacobian.layout, jacobian)
