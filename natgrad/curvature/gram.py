"""The exact damped step in sample space: an M×M matrix instead of a P×P one.

    F = Bᵀ B,     (F + λI)⁻¹ v = (v − Bᵀ (B Bᵀ + λI)⁻¹ B v)/λ,     B [M, P],  M = K·N

for N examples and K score columns each. B is kept as its layers' inputs and output
gradients (`natgrad.solvers.score_jacobian`), read off the taps of `natgrad.layers`: one
backward pass a score column, and nothing of size M·P. Where a layer's uses are not
understood, or its rows not told apart by example, or examples interact, B is written
out by pullbacks of each example's columns, at M·P memory (c·K·P with `chunk_size=c`).

Equal to `Dense` whatever M and P are (where M > P, B gives the smaller matrix Bᵀ B),
and the better of the two where M < P: memory Σ N (I + K O) + M², time M² Σ (I + O) +
M³/3 and two products with B (four where all but a hundredth of |v|² lies in the range
of Bᵀ), each as long as one of the gradient's three. With `Sampled(1)` labels M = N.

The metric is that of the current batch and parameters; `over` keeps the data.
`GramBlocks` keeps F's diagonal blocks alone, each from its own columns of B.

Source: Ren & Goldfarb (2019), Efficient subsampled Gauss-Newton and natural gradient
methods for training neural networks; Chen & Heyl (2024), Empowering deep neural quantum
states through efficient optimization (minSR), for centred scores.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, NamedTuple, final

import jax
import jax.numpy as jnp
import numpy as np

from natgrad import tree
from natgrad.curvature.base import Curvature, require_memory
from natgrad.curvature.chunked_rows import rows_in_chunks
from natgrad.curvature.chunks import BUDGET, ChunkSize, check_chunk_size
from natgrad.curvature.columns import law_of_outputs, root
from natgrad.curvature.gathered import as_batch
from natgrad.curvature.layer_rows import (
    captured_layers,
    jacobian_block,
    row_statistics,
    rows_of,
)
from natgrad.curvature.summed import SummedCurvature
from natgrad.curvature.visit_sources import Visit
from natgrad.curvature.visits import visits
from natgrad.layers import Block, Captured
from natgrad.metrics.gram import GramMetric
from natgrad.metrics.gram_blocks import GramBlocksMetric
from natgrad.model.batch import Batch
from natgrad.solvers.device_rows import spread_rows
from natgrad.solvers.jacobian_blocks import DenseRows
from natgrad.solvers.score_jacobian import Jacobian
from natgrad.tree import Layout, raw_key
from natgrad.typing import Array, Inputs, Key, Params, Statistics


class GramStatistics(NamedTuple):
    """What is known before the batch.

    Attributes:
        key: for `Sampled` labels, a raw key [2].
    """

    key: Array


@dataclasses.dataclass(frozen=True, eq=False)
class RowCurvature(Curvature):
    """A curvature that is made of the rows of one batch's B.

    Attributes:
        declared: as for `natgrad.layers.capture`: what is to be treated by hand.
    """

    declared: Mapping[str, Any] | None = None

    chunk_size: ClassVar[ChunkSize] = None
    requires_batch: ClassVar[bool] = True

    def init(self, params: Params) -> GramStatistics:
        """A key."""
        Layout.of(params)
        return GramStatistics(jax.random.PRNGKey(0))

    def estimate(
        self,
        params: Params,
        inputs: Inputs,
        targets: Array | None = None,
        key: Key | None = None,
    ) -> GramStatistics:
        """The key that labels are drawn with; see `Curvature.estimate`."""
        self.labels.check(targets, key)
        del params, inputs
        return GramStatistics(raw_key(jax.random.PRNGKey(0) if key is None else key))

    def jacobian(
        self, statistics: Statistics, params: Params, inputs: Inputs, targets: Any
    ) -> Jacobian:
        """B of the batch `inputs` or of a data set; arguments as of `metric`."""
        statistics, inputs, targets = as_batch(statistics, inputs, targets)
        targets = targets if self.labels.needs_targets else None
        return self.rows(Batch(params, inputs, targets, statistics.key))

    def rows(self, batch: Batch) -> Jacobian:
        """B of a batch, of all examples at once.

        Args:
            batch: its parameters, inputs, targets and key.
        """
        captured = captured_layers(self, batch)
        found = None if captured is None else self.layer_rows(batch, captured)
        return self._written_out(batch) if found is None else found

    def writes_out(self, params: Params, inputs: Inputs) -> bool:
        """Must B be written out, for want of layers that tell examples apart?"""
        return captured_layers(self, Batch(params, inputs)) is None

    def layer_rows(
        self,
        batch: Batch,
        captured: Captured,
        wanted: Callable[[Block], bool] = lambda _: True,
        total: Array | None = None,
    ) -> Jacobian | None:
        """B from taps; None where they cannot give it.

        Args:
            batch: or some examples of it.
            captured: its layers.
            wanted: which blocks; B is 0 in the others.
            total: Σ_n ω_n of the whole batch, where this is a part.
        """
        params = batch.params
        blocks = tuple(block for block in captured.blocks if wanted(block))
        z, pullback = captured.pull(
            lambda block: row_statistics(block) if wanted(block) else {},
            params,
            batch.inputs,
        )
        law = law_of_outputs(self.model)
        columns, own = self.labels.of_batch(law, z, batch._replace(params=z))
        total = self.over_devices(own) if total is None else total
        count = columns.roots(0).shape[0]
        if count != z.shape[0]:
            return None

        def pull(k):
            cotangent = (columns.column(k) / jnp.sqrt(total)).astype(z.dtype)
            answers = pullback(tree.varying_like(cotangent, z))[1]
            return {block.name: answers[block.name] for block in blocks}

        gather = functools.partial(rows_of, pull, columns.count)
        answers = jax.tree.leaves(jax.eval_shape(gather))
        self._require(columns.count * count, sum(a.size for a in answers), params)
        rows = gather()
        pieces = tuple(jacobian_block(block, *rows[block.name]) for block in blocks)
        layout = Layout.of(params)
        return Jacobian(layout, blocks, pieces, self._centre(columns.roots(0), total))

    def _written_out(self, batch: Batch) -> Jacobian:
        """B by pullbacks of each example's columns."""
        layout = Layout.of(batch.params)
        found = visits(self.model, self.labels, batch)
        samples = found.columns * found.count
        self._require(samples, samples * layout.size, batch.params)
        total = self.over_devices(found.total)
        return self.written_rows(layout, total, *found.stack(self.visit(layout)))

    def over_devices(self, total: Array) -> Array:
        """A sum over this device's examples, added up over devices.

        Args:
            total: any shape.
        """
        return total

    def visit(self, layout: Layout) -> Visit:
        """What `written_rows` takes of an example: its rows and √w.

        Args:
            layout: of the parameters.
        """

        def visit(z, pull, example):
            scores, weights = self.labels.columns(self.model, z, example)
            rows = jax.vmap(lambda s: layout.ravel(pull(s)))(scores)
            roots = root(weights).astype(layout.dtype)
            return roots[:, None] * rows, roots

        return visit

    def written_rows(
        self, layout: Layout, total: Array, rows: Array, roots: Array
    ) -> Jacobian:
        """B of examples from their rows.

        Args:
            layout: of the parameters.
            total: Σ_n ω_n of the whole batch.
            rows: [N, K, P].
            roots: √w, [N, K].
        """
        scale = jnp.sqrt(total).astype(layout.dtype)
        rows = jnp.swapaxes(rows, 0, 1)[:, :, None, :, None] / scale  # [K, N, 1, P, 1]
        ends = np.cumsum(layout.sizes)[:-1]
        pieces = tuple(DenseRows((leaf,)) for leaf in jnp.split(rows, ends, 3))
        return Jacobian(layout, None, pieces, self._centre(roots[:, 0], total))

    def _require(self, samples: int, rows: int, params: Params) -> None:
        rows = rows if self.chunk_size is None else 0  # else not alive together
        layout = Layout.of(params)
        require_memory(
            min(samples, layout.size) ** 2 + rows,
            layout.dtype,
            f"Gram's rows of {samples} score columns, and their matrix",
            "chunk_size='auto', Sampled(1) labels, fewer examples, or MatrixFree",
        )

    def _centre(self, roots: Array, total: Array) -> Array | None:
        """√(ω_n / Σω), [N], for centred labels, whose scores are unit vectors."""
        return roots / jnp.sqrt(total) if self.labels.centred else None


@final
@dataclasses.dataclass(frozen=True, eq=False)
class Gram(RowCurvature, SummedCurvature):
    """F through the Gram matrix of its score columns.

    Attributes:
        chunk_size: examples whose activations and per-example gradients are alive at
            once; "auto" as many as fit into `memory_budget`, None all. Gradients of
            layers whose rows are written out are then formed anew, some N/2c times for
            the M×M matrix and once or twice for each product with B.
        memory_budget: bytes of what grows with the chunk. M² numbers and the layers'
            factors, N Σ (I + K O), are beside it.
        axis_name: as of `SummedCurvature`; the M×M matrix is then spread by block rows
            (`natgrad.solvers.device_kernel`).
    """

    chunk_size: ChunkSize = None
    memory_budget: int = BUDGET

    keeps_all_of_f: ClassVar[bool] = True

    def __post_init__(self):
        super().__post_init__()
        check_chunk_size(self, self.chunk_size, self.memory_budget)

    def rows(self, batch: Batch) -> Jacobian:
        """B of a batch, in chunks of examples where these are asked for.

        Args:
            batch: its parameters, inputs, targets and key.
        """
        local, whole = self.to_device_local(batch), super().rows
        chunked = self.chunk_size is not None
        rows = rows_in_chunks(self, local, whole) if chunked else whole(local)
        return rows if self.axis_name is None else spread_rows(rows, self.axis_name)

    def over_devices(self, total: Array) -> Array:
        """The sum over devices."""
        axis = self.axis_name
        return total if axis is None else jax.lax.psum(total, axis)

    def metric(
        self,
        statistics: Statistics,
        params: Params,
        inputs: Inputs = None,
        targets: Array | None = None,
    ) -> GramMetric:
        """The metric of the batch `inputs`, which must be given, or of a data set."""
        jacobian = self.jacobian(statistics, params, inputs, targets)
        return GramMetric(jacobian.layout, jacobian)


@final
@dataclasses.dataclass(frozen=True, eq=False)
class GramBlocks(RowCurvature):
    """The diagonal blocks of F, one a layer, each through its own Gram matrix.

    A block is a weight and the bias beside it; the layers of one scan, and the heads or
    groups of one weight, are one block. Where B is written out each leaf is a block.
    """

    def metric(
        self,
        statistics: Statistics,
        params: Params,
        inputs: Inputs = None,
        targets: Array | None = None,
    ) -> GramBlocksMetric:
        """The metric of the batch `inputs`, which must be given, or of a data set."""
        jacobian = self.jacobian(statistics, params, inputs, targets)
        return GramBlocksMetric(jacobian.layout, jacobian)
