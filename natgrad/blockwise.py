"""Metrics that treat each captured block by itself, as a matrix [lead..., I (+1), O].

Parameters that no block reads have F = 0.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from natgrad.layers import Block
from natgrad.metric import Metric
from natgrad.tree import Layout
from natgrad.typing import Array, Params


class BlockwiseMetric(Metric):
    """A metric that is block diagonal over what `natgrad.layers` captured.

    Attributes:
        layout: of the parameters.
        blocks: what was captured.
    """

    layout: Layout
    blocks: tuple[Block, ...]

    def blockwise(
        self,
        v: Params,
        functions: Sequence[Callable[[Array], Array]],
        rest: Callable[[Array], Array] = jnp.zeros_like,
    ) -> Params:
        """Each block's matrix through its function; other parameters through `rest`."""
        leaves = [leaf.astype(self.layout.dtype) for leaf in jax.tree.leaves(v)]
        out = [rest(leaf) for leaf in leaves]
        for block, function in zip(self.blocks, functions, strict=True):
            out = block.from_matrix(function(block.to_matrix(leaves)), out)
        cast = [
            leaf.astype(dtype)
            for leaf, dtype in zip(out, self.layout.dtypes, strict=True)
        ]
        return jax.tree.unflatten(self.layout.treedef, cast)

    def placed(self, matrices: Sequence[Array]) -> Array:
        """[P, P] from [lead..., D, D] over each block's D = (I+1) O entries."""
        whole = jnp.zeros((self.layout.size,) * 2, self.layout.dtype)
        for places, matrix in zip(self._places(), matrices, strict=True):
            size = places.shape[-1]
            for where, piece in zip(
                places, matrix.reshape(-1, size, size), strict=True
            ):
                whole = whole.at[np.ix_(where, where)].set(piece)
        return whole

    def split(self, matrices: Sequence[Array]) -> Params:
        """A tree like the parameters in the working dtype, zero outside the blocks."""
        vector = jnp.zeros(self.layout.size, self.layout.dtype)
        for places, matrix in zip(self._places(), matrices, strict=True):
            vector = vector.at[np.ravel(places)].set(matrix.reshape(-1))
        return self.layout.split(vector)

    @property
    def outside(self) -> int:
        """The number of parameters that no block reads."""
        return self.layout.size - sum(int(np.prod(b.shape)) for b in self.blocks)

    def _places(self) -> list[np.ndarray]:
        """For each block the places of its entries in the vector: [lead, (I+1) O]."""
        indices = [self.layout.positions(i) for i in range(len(self.layout.shapes))]
        leaves = [
            places.reshape(shape)
            for places, shape in zip(indices, self.layout.shapes, strict=True)
        ]
        found = []
        for block in self.blocks:
            with jax.ensure_compile_time_eval():
                matrix = np.asarray(block.to_matrix(leaves))
            found.append(matrix.reshape(-1, block.rows * block.outputs))
        return found
