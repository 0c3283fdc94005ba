"""Rows of B for a chunk of examples at a time: `Gram(chunk_size=...)`.

Factors of layers, N (I + K O) numbers, are computed chunk by chunk and kept. Rows that
have to be written out, P numbers a score column, are not kept: each product with B, and
each pair of chunks of B Bᵀ, forms those of its chunks anew. So activations and rows of
two chunks are alive at a time, and M² numbers.

Examples that need each other (batch statistics, one dropout key) go through the model
together, and their rows are written out chunk by chunk.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Float

from natgrad import tree
from natgrad.curvature import chunks
from natgrad.curvature.layer_rows import captured_layers
from natgrad.curvature.row_source import RowSource, kept_factors, part_shapes
from natgrad.layers import Block, RowFactors
from natgrad.model.batch import Batch
from natgrad.solvers.jacobian_blocks import JacobianBlock, Parts
from natgrad.solvers.score_jacobian import Jacobian
from natgrad.tree import Layout, metric_pytree
from natgrad.typing import Array, Params


def rows_in_chunks(of: Any, given: Batch, size: int) -> Jacobian:
    """B of a batch in chunks of examples.

    Args:
        of: a curvature of rows.
        given: the batch.
        size: examples at once.
    """
    alone = chunks.depends_on_itself_alone(of.model, given)
    captured = captured_layers(of, given) if alone else None
    source = RowSource.of(of, given, captured is not None)
    parts = tree.device_parts(source.count)
    shapes = jax.eval_shape(source.rows, source.each)
    centre, factors = None, None
    if shapes.centre is not None:
        centre = tree.map_over_chunks(
            lambda each: source.rows(each).centre, source.each, size, parts
        )
    cheap = [] if captured is None else list(map(RowFactors.are_cheaper, shapes.blocks))
    if any(cheap):
        factors = kept_factors(source, size)
        if all(cheap):
            return dataclasses.replace(factors, centre=centre)
    columns, layout = (shapes.columns[0], source.count), shapes.layout

    def written(layout, factors, block=None):
        dtype, captures = str(layout.dtype), captured is not None
        return ChunkedRows(
            of, captures, size, columns, dtype, layout, block, given, factors
        )

    if not of.by_block:
        return Jacobian(layout, None, (written(layout, factors),), centre)
    pieces = [] if factors is None else list(factors.pieces)
    layouts = map(Layout.of, part_shapes(source))
    for i, (own, _) in enumerate(zip(layouts, shapes.pieces, strict=True)):
        if not any(cheap[i : i + 1]):
            block = i if captured is None else shapes.blocks[i].name
            pieces.insert(i, written(own, None, block))
    return Jacobian(layout, shapes.blocks, tuple(pieces), centre)


@metric_pytree(
    "curvature", "captured", "chunk_size", "shape", "dtype", "layout", "block"
)
class ChunkedRows(JacobianBlock):
    """Rows that are formed when they are needed; the parts are the layout's leaves.

    Attributes:
        curvature: whose rows.
        captured: do the layers give them?
        chunk_size: examples at once.
        shape: (K, N).
        dtype: of the products of rows.
        layout: of the parameters, or of the block's parts.
        block: its name, or its place where layers do not give the rows; None for all.
        given: the batch.
        factors: the columns of B that are kept, of all blocks.
        scale: what the columns are multiplied by, a tree of the layout.
    """

    curvature: Any
    captured: bool
    chunk_size: int
    shape: tuple[int, int]
    dtype: str
    layout: Layout
    block: str | int | None
    given: Batch
    factors: Jacobian | None = None
    scale: Params | None = None

    @property
    def columns(self) -> tuple[int, int]:
        """(K, N)."""
        return self.shape

    def push(self, v: Parts) -> Float[Array, "K N"]:
        """B v, chunk by chunk; v are the leaves."""
        v = self._params(v)

        @jax.checkpoint
        def of_chunk(each):
            rows = self._rows(each)
            return rows.push(v).reshape(rows.columns).T

        found = self._own(tree.map_over_chunks(of_chunk, *self._chunks)).T
        kept = self.factors
        return found if kept is None else found + kept.push(v).reshape(self.columns)

    def pull(self, u: Float[Array, "K N"]) -> Parts:
        """Bᵀ u, summed over chunks; the leaves."""

        def of_chunk(chunk):
            each, u = chunk
            return self._rows(each).pull(u.T.reshape(-1))

        each, size, parts = self._chunks
        count = jax.tree.leaves(each)[0].shape[0]
        filled = tree.zeros_for_filled(u.T, count, parts)
        return self._with_kept(
            tree.sum_over_chunks(of_chunk, (each, filled), size, parts),
            lambda kept: kept.pull(u.reshape(-1)),
        )

    def gram(self, other: Any = None) -> Float[Array, "K N K n"]:
        """B Bᵀ, chunk against chunk."""

        def product(rows, others):
            return rows.gram(others).reshape((*rows.columns, *others.columns))

        kept = self.factors
        if other is None:
            each = self._source.each, *self._sizes
            found = tree.pairs_of_chunks(self._wide_rows, product, *each)
        else:
            found = self._against(other, product)
        if kept is None:
            return found
        others = None if other is None else other.factors.astype(self.dtype)
        return found + kept.astype(self.dtype).gram(others).reshape(found.shape)

    def _against(self, other: ChunkedRows, product: Callable) -> Array:
        def of_chunk(each):
            rows = self._wide_rows(each)

            def of_other(each):  # [n', K', K, n]
                block = product(rows, other._wide_rows(each))
                return block.transpose((3, 2, 0, 1))

            found = tree.map_over_chunks(jax.checkpoint(of_other), *other._chunks)
            return other._own(found).transpose((3, 2, 1, 0))  # [n, K, K', N']

        found = self._own(tree.map_over_chunks(of_chunk, *self._chunks))
        return jnp.swapaxes(found, 0, 1)

    def _wide_rows(self, each: Any) -> Jacobian:
        return self._rows(each).astype(self.dtype)

    def explicit(self) -> Sequence[Float[Array, "K N ..."]]:
        """B written out, all of it."""

        def of_chunk(each):
            rows = self._rows(each)
            found = rows.explicit().reshape((*rows.columns, -1))
            return jnp.swapaxes(found, 0, 1)

        each = self._source.each, *self._sizes
        found = jnp.swapaxes(tree.map_over_chunks(of_chunk, *each), 0, 1)
        if self.factors is not None:
            found = found + self.factors.explicit().reshape(found.shape)
        split = jax.vmap(jax.vmap(self.layout.split))(found)
        return jax.tree.leaves(split)

    def squares(self) -> Parts:
        """The diagonal of Bᵀ B, summed over chunks."""
        return self._with_kept(
            tree.sum_over_chunks(
                lambda each: self._rows(each).diagonal(),
                self._source.each,
                *self._sizes,
            ),
            Jacobian.diagonal,
        )

    def astype(self, dtype: Any) -> ChunkedRows:
        """With products of rows in another dtype; the rows are computed as before."""
        return dataclasses.replace(self, dtype=str(jnp.dtype(dtype)))

    def scaled(self, v: Parts) -> ChunkedRows:
        """B diag(v); v are leaves that are constant."""
        v = self._params(v)
        kept = None if self.factors is None else self.factors.scaled(v)
        if self.scale is not None:
            v = jax.tree.map(jnp.multiply, self.scale, v)
        return dataclasses.replace(self, factors=kept, scale=v)

    def part_shapes(self) -> list[jax.ShapeDtypeStruct]:
        """The leaves."""
        layout = self.layout
        return [jax.ShapeDtypeStruct(shape, layout.dtype) for shape in layout.shapes]

    @property
    def most_written_out(self) -> int:
        """Less where a budget holds less: Q, R and copies take some eight times B."""
        numbers = self.curvature.memory_budget // (8 * jnp.dtype(self.dtype).itemsize)
        return min(super().most_written_out, numbers)

    @property
    def _source(self) -> RowSource:
        return RowSource.of(self.curvature, self.given, self.captured)

    @property
    def _sizes(self) -> tuple[int, int]:
        """How many examples at once, and in how many parts."""
        return self.chunk_size, tree.device_parts(self.columns[1])

    @property
    def _chunks(self) -> tuple[Any, int, int]:
        """What the loops over chunks take: filled up examples, how many at once."""
        sizes = self._sizes
        return tree.filled(self._source.each, *sizes), *sizes

    def _own(self, found: Array) -> Array:
        """Of examples that were filled up, [N', ...], those of the batch."""
        return tree.unfilled(found, self.columns[1], self._sizes[1])

    def _rows(self, each: Any) -> Jacobian:
        """The rows of some examples that are not kept, not centred."""
        source = self._source
        rows = source.rows(each, self._wanted) if self.captured else source.rows(each)
        rows = dataclasses.replace(rows, centre=None)
        if self.block is not None:
            rows = rows.apart()[0 if isinstance(self.block, str) else self.block]
        return rows if self.scale is None else rows.scaled(self.scale)

    def _wanted(self, block: Block) -> bool:
        if self.block is None:
            return not RowFactors.are_cheaper(block)
        return block.name == self.block

    def _params(self, leaves: Parts) -> Params:
        return jax.tree.unflatten(self.layout.treedef, list(leaves))

    def _with_kept(
        self, found: Params, of_kept: Callable[[Jacobian], Params]
    ) -> list[Array]:
        if self.factors is not None:
            found = jax.tree.map(jnp.add, found, of_kept(self.factors))
        return jax.tree.leaves(found)
