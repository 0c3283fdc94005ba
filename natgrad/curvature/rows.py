"""The rows B of one batch, of which `Gram` and `GramBlocks` are made.

    F = Bᵀ B,     row m = (k, n) of B:   √(w_nk / Σω) J_nᵀ s_nk              [M, P]

B is kept as its layers' inputs and output gradients
(`natgrad.solvers.score_jacobian`), read off the taps of `natgrad.layers`: one backward
pass a score column, and nothing of size M·P. Where a layer's uses are not understood,
or its rows not told apart by example, or examples interact, B is written out by
pullbacks of each example's columns, at M·P memory (c·K·P with `chunk_size=c`).
"""

from __future__ import annotations

import abc
import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, NamedTuple

import jax
import jax.numpy as jnp

from natgrad import layers, tree
from natgrad.control_flow import traced_once
from natgrad.curvature.base import require_memory
from natgrad.curvature.chunked_rows import rows_in_chunks
from natgrad.curvature.chunks import (
    BUDGET,
    ChunkSize,
    check_chunk_size,
    chunk_size_of,
    fitting,
)
from natgrad.curvature.columns import law_of_outputs
from natgrad.curvature.gathered import as_batch
from natgrad.curvature.layer_rows import (
    captured_layers,
    jacobian_block,
    row_statistics,
    rows_of,
)
from natgrad.curvature.summed import SummedCurvature
from natgrad.curvature.visits import Visit, visits
from natgrad.families.numerics.remainders import root
from natgrad.layers import Block, Captured
from natgrad.metrics.base import Metric
from natgrad.model.batch import Batch
from natgrad.solvers.device_rows import spread_rows
from natgrad.solvers.jacobian_blocks import DenseRows
from natgrad.solvers.score_jacobian import Jacobian
from natgrad.tree import Layout, raw_key
from natgrad.typing import Array, Inputs, Key, Params, Statistics

# M×M matrices that a factorisation leaves to the products and solves that follow.
_FACTORISED = 5


class GramStatistics(NamedTuple):
    """What is known before the batch.

    Attributes:
        key: for labels that are drawn, a raw key [2].
    """

    key: Array


@dataclasses.dataclass(frozen=True, eq=False)
class RowCurvature(SummedCurvature):
    """A curvature that is made of the rows of one batch's B.

    Attributes:
        declared: as for `natgrad.layers.capture`: what is to be treated by hand.
        chunk_size: as of `natgrad.curvature.Gram`.
        memory_budget: as of `natgrad.curvature.Gram`.
        by_block: is the metric made of each block's columns of B by themselves?
    """

    declared: Mapping[str, Any] | None = None
    chunk_size: ChunkSize = None
    memory_budget: int = BUDGET

    by_block: ClassVar[bool] = False
    requires_batch: ClassVar[bool] = True

    def __post_init__(self):
        super().__post_init__()
        check_chunk_size(self, self.chunk_size, self.memory_budget)

    @abc.abstractmethod
    def of_rows(self, jacobian: Jacobian) -> Metric:
        """The metric of a batch.

        Args:
            jacobian: B.
        """

    def metric(
        self,
        statistics: Statistics,
        params: Params,
        inputs: Inputs = None,
        targets: Array | None = None,
    ) -> Metric:
        """The metric of the batch `inputs`, which must be given, or of a data set."""
        return self.of_rows(self.jacobian(statistics, params, inputs, targets))

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
        """B of a batch, in chunks of examples where these are asked for.

        Args:
            batch: its parameters, inputs, targets and key.
        """
        local, size = self.to_device_local(batch), chunk_size_of(self)

        if size == "auto":
            count = jax.eval_shape(self.whole, local).columns[1]
            size = fitting(self, functools.partial(self._solved_bytes, batch), count)
        return self._rows(local, size)

    def _rows(self, local: Batch, size: int | None) -> Jacobian:
        axis = self.axis_name
        rows = rows_in_chunks(self, local, size) if size else self.whole(local)
        return rows if axis is None else spread_rows(rows, axis, self.by_block)

    def _solved_bytes(self, batch: Batch, size: int | None) -> int:
        """What a solve takes with so many examples at once."""
        beside = 0

        def solve(batch, v):
            nonlocal beside
            rows = self._rows(self.to_device_local(batch), size)
            if self.by_block:  # XLA may factorise all blocks before it solves the first
                sides = [min(own.size, own.layout.size) for own in rows.apart()]
                beside = sum(_FACTORISED * side**2 for side in sides)
                beside *= jnp.dtype(rows.layout.dtype).itemsize
            return self.of_rows(rows).solution(v, 1.0)

        return layers.live_bytes(solve, batch, batch.params) + beside

    def whole(self, batch: Batch) -> Jacobian:
        """B of all examples of this device at once.

        Args:
            batch: these.
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

        gather = traced_once(functools.partial(rows_of, pull, columns.count))
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
        axis = self.axis_name
        return total if axis is None else jax.lax.psum(total, axis)

    def visit(self, layout: Layout) -> Visit:
        """What `written_rows` takes of an example: its rows and √w.

        Args:
            layout: of the parameters.
        """

        def visit(z, pull, example):
            scores, weights = self.labels.columns(self.model, z, example)
            roots = root(weights).astype(layout.dtype)

            def scaled(leaf):
                rows = leaf.astype(layout.dtype).reshape((roots.size, -1))
                return roots[:, None] * rows

            return list(map(scaled, jax.tree.leaves(jax.vmap(pull)(scores)))), roots

        return visit

    def written_rows(
        self, layout: Layout, total: Array, rows: list[Array], roots: Array
    ) -> Jacobian:
        """B of examples from their rows.

        Args:
            layout: of the parameters.
            total: Σ_n ω_n of the whole batch.
            rows: of each leaf, [N, K, size].
            roots: √w, [N, K].
        """
        scale = jnp.sqrt(total).astype(layout.dtype)

        def piece(leaf):  # [K, N, 1, 1, size]
            n, k, size = leaf.shape  # a transpose of one column makes XLA copy it later
            leaf = jnp.swapaxes(leaf, 0, 1) if k > 1 else leaf
            return DenseRows((leaf.reshape((k, n, 1, 1, size)) / scale,))

        pieces = tuple(map(piece, rows))
        return Jacobian(layout, None, pieces, self._centre(roots[:, 0], total))

    def _require(self, samples: int, rows: int, params: Params) -> None:
        if self.chunk_size is not None:  # the rows are not alive together
            rows = 0
        layout = Layout.of(params)
        require_memory(
            min(samples, layout.size) ** 2 + rows,
            layout.dtype,
            f"Gram's rows of {samples} score columns, and their matrix",
            "chunk_size='auto', Sketched(1) labels, fewer examples, or MatrixFree",
        )

    def _centre(self, roots: Array, total: Array) -> Array | None:
        """√(ω_n / Σω), [N], for centred labels, whose scores are unit vectors."""
        return roots / jnp.sqrt(total) if self.labels.centred else None
