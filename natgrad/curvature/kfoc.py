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
takes as long as two of K-FAC's estimates. Over a data set each of the two equations is
a mean over examples, and takes a pass of its own.

Source: Van Loan & Pitsianis (1993), Approximation with Kronecker products, section 3;
Schnaus, Lee & Triebel (2021), Kronecker-factored optimal curvature.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Hashable, Mapping, Sequence
from typing import Any, final

import jax
import jax.numpy as jnp

from natgrad.curvature.kfac import KFAC, KroneckerFactors
from natgrad.curvature.layer_rows import jacobian_block, row_statistics, rows_of
from natgrad.curvature.layerwise import Blocks, CapturedBatch, LayerCurvature
from natgrad.layers import Block, Statistic
from natgrad.metrics.kronecker import KroneckerMetric
from natgrad.model.batch import Batch
from natgrad.model.weights import trailing
from natgrad.solvers.jacobian_blocks import (
    DenseRows,
    EmbeddingBlock,
    JacobianBlock,
    LinearBlock,
    product,
)
from natgrad.tree import Layout
from natgrad.typing import Array, Params

# A, or G, of each block; and both, None for a G that is not known yet.
Factors = tuple[Array, ...]
Pair = tuple[Factors, Factors | None]


@final
@dataclasses.dataclass(frozen=True, eq=False)
class KFOC(LayerCurvature):
    """F as the nearest Kronecker product for each layer.

    Attributes:
        model: whose Fisher information; with `example_inputs`.
        labels: `Exact()`, `Sampled(n)`, `Sketched(n)` or `Empirical()`.
        declared: as for `KFAC`.
        axis_name: as for `KFAC`.
        iterations: of the power method, from G = I.
    """

    iterations: int = 10

    @property
    def passes(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        """Two an iteration."""
        return 2 * self.iterations

    def init(self, params: Params) -> KroneckerFactors:
        """Zero factors; needs `example_inputs` in the model to know the layers."""
        return KFAC(self.model, self.labels, self.declared).init(params)

    def moments(self, given: Batch, found: Pair | None = None) -> Factors:
        """A of each block for the G found before; G, where an A alone was found."""
        captured = self.capture_batch(given)
        nearest = self.layer_statistics(captured)
        rows = self.sums(nearest, captured)
        if found is not None and found[1] is None:
            return nearest.outputs(*rows, found[0])
        return nearest.inputs(*rows, None if found is None else found[1])

    def from_moments(
        self, params: Params, moments: Factors, found: Pair | None = None
    ) -> Pair | KroneckerFactors:
        """A of each block; then A and G."""
        del params
        if found is not None and found[1] is None:
            return in_units(found[0], moments)
        return moments, None

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

        def improved(factors, _):
            a = self.inputs(sums, total, factors and factors[1])
            return (a, self.outputs(sums, total, a)), None

        first, _ = improved(None, None)
        found, _ = jax.lax.scan(improved, first, length=self.iterations - 1)
        return in_units(*found)

    def inputs(self, sums: Mapping, total: Array, gs: Factors | None) -> Factors:
        """Σ_m V_m G V_mᵀ of each block.

        Args:
            sums: as of `finalize`.
            total: as of `finalize`.
            gs: G of each block; None for the identity.
        """

        def of_block(block, piece, g):
            eye = jnp.eye(block.outputs, dtype=block.dtype)
            layers = block.size // (block.rows * block.outputs)
            shape = (layers, *eye.shape)
            g = jnp.broadcast_to(eye, shape) if g is None else g.reshape(shape)
            return _inputs_moment(piece, g, block.diagonal_inputs)

        return self._of_each(of_block, sums, total, gs or [None] * len(self.blocks))

    def outputs(self, sums: Mapping, total: Array, inputs: Factors) -> Factors:
        """Σ_m V_mᵀ A V_m/‖A‖² of each block.

        Args:
            sums: as of `finalize`.
            total: as of `finalize`.
            inputs: A of each block.
        """

        def of_block(block, piece, a):
            a = a.reshape((-1, *a.shape[len(block.lead) :]))
            square = jnp.sum(a**2, axis=tuple(range(1, a.ndim)))[:, None, None]
            return outputs_moment(piece, a) / jnp.where(square > 0, square, 1)

        return self._of_each(of_block, sums, total, inputs)

    def _of_each(
        self, of_block: Callable, sums: Mapping, total: Array, factors: Sequence
    ) -> Factors:
        """Means over the examples of all devices, in the shapes of the blocks."""
        means = []
        for block, factor in zip(self.blocks, factors, strict=True):
            moment = of_block(block, jacobian_block(block, *sums[block.name]), factor)
            if self.axis_name is not None:
                moment = jax.lax.psum(moment, self.axis_name)
            shape = (*block.lead, *moment.shape[1:])
            means.append(moment.reshape(shape) / total.astype(moment.dtype))
        return tuple(means)


def in_units(inputs: Factors, outputs: Factors) -> KroneckerFactors:
    """The same products, of A whose diagonals have mean 1.

    Args:
        inputs: A of each block.
        outputs: G of each block.
    """

    def scaled(a, g):
        diagonal = a if a.ndim < g.ndim else jnp.diagonal(a, axis1=-2, axis2=-1)
        mean = jnp.mean(diagonal, axis=-1)
        mean = jnp.where(mean > 0, mean, 1)
        return a / trailing(mean, a), g * trailing(mean, g)

    pairs = list(map(scaled, inputs, outputs))
    return KroneckerFactors(tuple(a for a, _ in pairs), tuple(g for _, g in pairs))


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
