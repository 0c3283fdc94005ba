"""The exact damped step in sample space: an M×M matrix instead of a P×P one.

    F = Bᵀ B,     (F + λI)⁻¹ v = (v − Bᵀ (B Bᵀ + λI)⁻¹ B v)/λ,     B [M, P],  M = K·N

for N examples and K score columns each. B is kept as its layers' inputs and output
gradients (`natgrad.solvers.score_jacobian`), read off the taps of `natgrad.layers`: one
backward pass a score column, and nothing of size M·P. Where a layer's uses are not
understood, their rows cannot be told apart by example, or examples interact, B is
written out by pullbacks of each example's columns, in chunks: the same matrix, at M·P
memory.

Equal to `Dense` whatever M and P are (where M > P, B gives the smaller matrix Bᵀ B),
and the better of the two where M < P: memory Σ N (I + K O) + M², time M² Σ (I + O) +
M³/3 and two products with B (four where all but a hundredth of |v|² lies in the range
of Bᵀ), each as long as one of the gradient's three. With `Sampled(1)` labels M = N.

The metric is that of the current batch and parameters: an average of several would need
all their rows. `GramBlocks` keeps F's diagonal blocks alone, each from its own columns
B_b of B: (B_bᵀ B_b + λI)⁻¹ takes an M×M matrix a block.

Source: Ren & Goldfarb (2019), Efficient subsampled Gauss-Newton and natural gradient
methods for training neural networks; Chen & Heyl (2024), Empowering deep neural quantum
states through efficient optimization (minSR), for centred scores.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, ClassVar, NamedTuple, final

import jax
import jax.numpy as jnp
import numpy as np

from natgrad import layers
from natgrad.curvature.base import Curvature, require_memory
from natgrad.curvature.columns import law_of_outputs, root
from natgrad.curvature.visits import visits
from natgrad.layers import Block, PerExample, RowFactors
from natgrad.metrics.gram import GramMetric
from natgrad.metrics.gram_blocks import GramBlocksMetric
from natgrad.model.batch import Batch
from natgrad.solvers.jacobian_blocks import (
    DenseRows,
    EmbeddingBlock,
    JacobianBlock,
    LinearBlock,
)
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
        """B of the batch `inputs`, which must be given; arguments as of `metric`."""
        targets = targets if self.labels.needs_targets else None
        batch = Batch(params, inputs, targets, statistics.key)
        program = layers.trace(self.model.raw_outputs, params, inputs)
        captured = self._captured(batch, program)
        return self._written_out(batch) if captured is None else captured

    def writes_out(self, params: Params, inputs: Inputs) -> bool:
        """Must B be written out, for want of layers that tell examples apart?"""
        program = layers.trace(self.model.raw_outputs, params, inputs)
        return self._layers(Batch(params, inputs), program) is None

    def _layers(self, batch: Batch, program: Any) -> layers.Captured | None:
        """The layers; None where they cannot give every example's gradient."""
        model, params, inputs = self.model, batch.params, batch.inputs
        apply, axes = model.apply_real, model.in_axes
        found = layers.dependence(apply, params, inputs, axes, program)
        if found is layers.Dependence.OTHERS:
            return None
        try:
            captured = layers.capture(
                apply,
                params,
                inputs,
                in_axes=axes,
                declared=self.declared,
                program=program,
            )
        except layers.NotCapturedError:
            return None
        separate = all(block.separate and block.examples for block in captured.blocks)
        return captured if separate else None

    def _captured(self, batch: Batch, program: Any) -> Jacobian | None:
        """B from taps; None where they cannot give it."""
        captured = self._layers(batch, program)
        if captured is None:
            return None
        params = batch.params
        blocks = captured.blocks
        z, pullback = captured.pull(row_statistics, params, batch.inputs)
        law = law_of_outputs(self.model)
        columns, total = self.labels.of_batch(law, z, batch._replace(params=z))
        count = columns.roots(0).shape[0]
        if count != z.shape[0]:
            return None

        def pull(k):
            return pullback((columns.column(k) / jnp.sqrt(total)).astype(z.dtype))[1]

        answers = jax.tree.leaves(jax.eval_shape(lambda: rows_of(pull, columns.count)))
        self._require(columns.count * count, sum(a.size for a in answers), params)
        rows = rows_of(pull, columns.count)
        pieces = tuple(jacobian_block(block, *rows[block.name]) for block in blocks)
        layout = Layout.of(params)
        return Jacobian(layout, blocks, pieces, self._centre(columns.roots(0), total))

    def _written_out(self, batch: Batch) -> Jacobian:
        """B by pullbacks of each example's columns."""
        layout = Layout.of(batch.params)
        found = visits(self.model, self.labels, batch)
        samples = found.columns * found.count
        self._require(samples, samples * layout.size, batch.params)

        def visit(z, pull, example):
            scores, weights = self.labels.columns(self.model, z, example)
            rows = jax.vmap(lambda s: layout.ravel(pull(s)))(scores)
            roots = root(weights).astype(layout.dtype)
            return roots[:, None] * rows, roots

        rows, roots = found.stack(visit)
        scale = jnp.sqrt(found.total).astype(layout.dtype)
        rows = jnp.swapaxes(rows, 0, 1)[:, :, None, :, None] / scale  # [K, N, 1, P, 1]
        ends = np.cumsum(layout.sizes)[:-1]
        pieces = tuple(DenseRows((leaf,)) for leaf in jnp.split(rows, ends, 3))
        return Jacobian(layout, None, pieces, self._centre(roots[:, 0], found.total))

    def _require(self, samples: int, rows: int, params: Params) -> None:
        layout = Layout.of(params)
        require_memory(
            min(samples, layout.size) ** 2 + rows,
            layout.dtype,
            f"Gram's rows of {samples} score columns, and their matrix",
            "Sampled(1) labels, fewer examples, or MatrixFree",
        )

    def _centre(self, roots: Array, total: Array) -> Array | None:
        """√(ω_n / Σω), [N], for centred labels, whose scores are unit vectors."""
        return roots / jnp.sqrt(total) if self.labels.centred else None


@final
@dataclasses.dataclass(frozen=True, eq=False)
class Gram(RowCurvature):
    """F through the Gram matrix of its score columns."""

    keeps_all_of_f: ClassVar[bool] = True

    def metric(
        self,
        statistics: Statistics,
        params: Params,
        inputs: Inputs = None,
        targets: Array | None = None,
    ) -> GramMetric:
        """The metric of the batch `inputs`, which must be given."""
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
        """The metric of the batch `inputs`, which must be given."""
        jacobian = self.jacobian(statistics, params, inputs, targets)
        return GramBlocksMetric(jacobian.layout, jacobian)


def row_statistics(block: Block) -> dict[str, layers.Statistic]:
    """What to ask of a block for its columns of B: factors where they are cheaper."""
    cheap = RowFactors.are_cheaper(block)
    return {"rows": RowFactors() if cheap else PerExample()}


def rows_of(
    pull: Callable[[Any], Mapping], count: int
) -> Mapping[str, tuple[Any, Array]]:
    """Block's name -> its answer to one pull, and what depends on the column for all.

    Args:
        pull: k -> block's name -> the answers to `row_statistics` for score column k.
        count: K.
    """

    def outputs_of(k):
        """What depends on the column: G or whole rows, block by block."""
        answers = {name: answer["rows"] for name, answer in pull(k).items()}
        return {
            name: rows["g"] if isinstance(rows, dict) else rows
            for name, rows in answers.items()
        }

    if count == 1:
        each = jax.tree.map(lambda a: a[None], outputs_of(0))
    else:
        each = jax.lax.map(outputs_of, jnp.arange(count))
    return {name: (one["rows"], each[name]) for name, one in pull(0).items()}


def jacobian_block(block: Block, one: Any, each: Array) -> JacobianBlock:
    """B's columns of a block, from what one pull gave and from what each gave.

    The last two, three or four axes of each array are a row's own; before them come
    K (of `each`) and the block's lead axes, which are flattened.
    """
    if not isinstance(one, dict):  # [K, N, lead..., I, O]
        rows = each.reshape((*each.shape[:2], -1, block.rows, block.outputs))
        matrix, bias = rows[..., : block.inputs, :], rows[..., block.inputs :, :]
        return DenseRows((matrix, bias) if block.bias else (matrix,))

    def flat(a, axes, own):
        return a.reshape((*axes, -1, *a.shape[a.ndim - own :]))

    g = flat(each, each.shape[:1], 3)
    if "index" in one:
        return EmbeddingBlock(flat(one["index"], (), 2), g, block.inputs)
    return LinearBlock(flat(one["x"], (), 3), g, block.bias)
