"""The Kronecker product nearest to each layer's block of F, from the rows of a batch.

With row m of a block as a matrix V_m [I (+1), O], F_b = Σ_m vec(V_m) vec(V_m)ᵀ,

    ‖F_b − A ⊗ G‖² = ‖F_b‖² − 2 Σ_m tr(A V_m G V_mᵀ) + ‖A‖² ‖G‖²,

whose best A for a given G, and G for a given A, are

    A = Σ_m V_m G V_mᵀ/‖G‖²,     G = Σ_m V_mᵀ A V_m/‖A‖²:

positive semi-definite, and power iteration for the largest singular value of F_b
rearranged to [I², O²]. Of a layer that example n uses at positions t, V = Σ_t x_t g_tᵀ:
pairs of positions count, Σ_nts x_nt (Σ_k g_nktᵀ G g_nks) x_nsᵀ. An A of lookups is kept
as its diagonal, the best one there is.

K-FAC takes the means of x xᵀ and g gᵀ, as if these were independent; this says how much
of its error another A ⊗ G could spare. Near in Frobenius norm is not near where F is
small, which is where damped steps are long. A moving average runs over A, whose
diagonal has mean 1, and G. Memory as `Gram`'s rows and Σ_b (I² + O²); an iteration
takes as long as two of K-FAC's estimates.

Source: Van Loan & Pitsianis (1993), Approximation with Kronecker products, section 3;
Schnaus, Lee & Triebel (2021), Kronecker-factored optimal curvature.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Hashable, Mapping
from typing import Any, final

import jax
import jax.numpy as jnp

from natgrad.curvature.kfac import KFAC, KroneckerFactors
from natgrad.curvature.layer_rows import jacobian_block, row_statistics, rows_of
from natgrad.curvature.layerwise import Blocks, CapturedBatch, LayerCurvature
from natgrad.layers import Block, Statistic
from natgrad.metrics.kronecker import KroneckerMetric
from natgrad.model.batch import Batch
from natgrad.solvers.jacobian_blocks import (
    DenseRows,
    EmbeddingBlock,
    JacobianBlock,
    LinearBlock,
    product,
)
from natgrad.tree import Layout
from natgrad.typing import Array, Params, Statistics


@final
@dataclasses.dataclass(frozen=True, eq=False)
class KFOC(LayerCurvature):
    """F as the nearest Kronecker product for each layer.

    Attributes:
        model: whose Fisher information; with `example_inputs`.
        labels: over which labels: `Exact()`, `Sampled(n)` or `Empirical()`.
        declared: as for `KFAC`.
        axis_name: as for `KFAC`.
        iterations: of the power method, from G = I.
    """

    iterations: int = 10

    def init(self, params: Params) -> KroneckerFactors:
        """Zero factors; needs `example_inputs` in the model to know the layers."""
        return KFAC(self.model, self.labels, self.declared).init(params)

    def moments(self, given: Batch) -> Statistics:
        """None: the nearest product of a data set is no mean of those of batches.

        Args:
            given: a batch.

        Raises:
            ValueError: always.
        """
        del given
        raise ValueError(
            "KFOC over a data set is no average of the products that are nearest to "
            "its batches: give all of the data as one batch, "
            "curvature.at(params, inputs), or take KFAC or EKFAC."
        )

    def layer_statistics(self, captured: CapturedBatch) -> NearestFactors:
        """The rows of every block, and the power method on them."""
        blocks = captured.captured.blocks
        return NearestFactors(blocks, self.iterations, self.axis_name)

    def over_columns(self, pull: Callable[[Any], Mapping], count: int) -> Mapping:
        """The rows of all columns, which are not summed."""
        return rows_of(pull, count)

    def psum_over_devices(
        self, means: Any, sums: Any, total: Array, local: Batch
    ) -> tuple[Any, Any, Array]:
        """Means and Σ_n ω_n of all devices; each keeps its own rows."""
        means, _, total = super().psum_over_devices(means, (), total, local)
        return means, sums, total

    def metric_from_statistics(
        self, statistics: KroneckerFactors, layout: Layout, blocks: Callable[[], Blocks]
    ) -> KroneckerMetric:
        """The Kronecker products as a metric."""
        return KroneckerMetric(layout, blocks(), *statistics)


@dataclasses.dataclass(frozen=True)
class NearestFactors:
    """The nearest factors: what is asked of the layers, and what is kept.

    Attributes:
        blocks: of the layers.
        iterations: of the power method.
        axis_name: over which the rows are spread.
    """

    blocks: Blocks
    iterations: int
    axis_name: Hashable | tuple[Hashable, ...] | None

    def requested_statistics(self) -> Callable[[Block], Mapping[str, Statistic]]:
        """The rows."""
        return row_statistics

    def finalize(self, sums: Mapping[str, Any], total: Array) -> KroneckerFactors:
        """A and G of each block.

        Args:
            sums: block's name -> its rows.
            total: Σ_n ω_n, shape ().
        """
        pairs = [self._nearest(block, sums[block.name]) for block in self.blocks]
        outputs = tuple(g / total.astype(g.dtype) for _, g in pairs)
        return KroneckerFactors(tuple(a for a, _ in pairs), outputs)

    def _nearest(self, block: Block, rows: tuple) -> tuple[Array, Array]:
        piece, diagonal = jacobian_block(block, *rows), block.diagonal_inputs

        def add(moment):
            if self.axis_name is None:
                return moment
            return jax.lax.psum(moment, self.axis_name)

        def improved(factors, _):
            a = add(_inputs_moment(piece, factors[1], diagonal))
            each = a if diagonal else jnp.diagonal(a, axis1=-2, axis2=-1)
            mean = jnp.mean(each, axis=-1).reshape((-1,) + (1,) * (a.ndim - 1))
            a = a / jnp.where(mean > 0, mean, 1)
            square = jnp.sum(a**2, axis=tuple(range(1, a.ndim)))[:, None, None]
            g = add(outputs_moment(piece, a)) / jnp.where(square > 0, square, 1)
            return (a, g), None

        eye = jnp.eye(block.outputs, dtype=block.dtype)
        eyes = jnp.broadcast_to(
            eye, (block.size // (block.rows * len(eye)), *eye.shape)
        )
        first, _ = improved((None, eyes), None)
        (a, g), _ = jax.lax.scan(improved, first, length=self.iterations - 1)
        return a.reshape((*block.lead, *a.shape[1:])), g.reshape(
            (*block.lead, *eye.shape)
        )


def _inputs_moment(piece: JacobianBlock, g: Array, diagonal: bool) -> Array:
    """Σ_m V_m G V_mᵀ [L, I, I], or its diagonal [L, I]."""
    out = "i" if diagonal else "ij"
    if isinstance(piece, DenseRows):
        v = jnp.concatenate(piece.rows, axis=-2)
        return product(f"knlio,lop,knl{out[-1]}p->l{out}", v, g, v)
    assert isinstance(piece, LinearBlock | EmbeddingBlock)
    pairs = product("klnto,lop,klnup->lntu", piece.g, g, piece.g)
    if isinstance(piece, LinearBlock):
        x = piece.homogeneous
        return product("lnti,lntu,lnuj->lij", x, pairs, x)

    def add(index, weights):
        return jnp.zeros(piece.table, g.dtype).at[index].add(weights, mode="drop")

    return jax.vmap(add)(piece.rows_read, jnp.sum(pairs * _same(piece), axis=-1))


def outputs_moment(piece: JacobianBlock, a: Array) -> Array:
    """Σ_m V_mᵀ A V_m, [L, O, O].

    Args:
        piece: the columns of B.
        a: A, [L, I, I] or its diagonal [L, I].
    """
    if isinstance(piece, DenseRows):
        v, of = jnp.concatenate(piece.rows, axis=-2), "i" if a.ndim == 2 else "ij"
        return product(f"knlio,l{of},knl{of[-1]}p->lop", v, a, v)
    assert isinstance(piece, LinearBlock | EmbeddingBlock)
    if isinstance(piece, LinearBlock):
        x = piece.homogeneous
        pairs = product("lnti,lij,lnuj->lntu", x, a, x)
    else:
        look_up = functools.partial(jnp.take, mode="fill", fill_value=0)
        pairs = jax.vmap(look_up)(a, piece.rows_read)[..., None] * _same(piece)
    return product("klnto,lntu,klnup->lop", piece.g, pairs, piece.g)


def _same(piece: EmbeddingBlock) -> Array:
    """Which pairs of positions read the same row, [L, N, T, T]."""
    index = piece.rows_read
    return index[..., :, None] == index[..., None, :]
