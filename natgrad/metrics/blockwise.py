"""Metrics that treat each captured block by itself, as a matrix [lead..., I (+1), O].

Parameters that no block reads have F = 0.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from natgrad.layers import Block
from natgrad.metrics.base import Metric
from natgrad.solvers.spectral import HIGHEST
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

    def outer_inverse(self, damping: Array) -> tuple[Callable[[Array], Array], Array]:
        """V -> V/λ, or 0 for λ = 0, where no block reads; and is F + λI singular there?

        Args:
            damping: λ >= 0.
        """
        zero = damping == 0
        inverse = lambda x: jnp.where(zero, 0, x / jnp.where(zero, 1, damping))
        return inverse, zero & (self.outside > 0)

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


def kron_matvec(a: Array, g: Array) -> Callable[[Array], Array]:
    """V -> A V G, for A a matrix or the diagonal of one."""

    def apply(v):
        v = jnp.matmul(v, g, precision=HIGHEST)
        if a.ndim < g.ndim:
            return a[..., :, None] * v
        return jnp.matmul(a, v, precision=HIGHEST)

    return apply


def kron_matvec_low_rank(
    a: Array, g: Array, block: Block, rows: Mapping[str, Array]
) -> Callable[[Array], Array]:
    """The same of V = Xᵀ C, which is not read: (X A)ᵀ (C G), for symmetric A.

    Args:
        a: A, [lead..., I(+1), I(+1)].
        g: G, [lead..., O, O].
        block: whose rows.
        rows: X [lead..., N, T, I] as "x" and C [lead..., N, T, O] as "g".
    """
    flat = lambda m: m.reshape((*m.shape[:-3], -1, m.shape[-1])).astype(g.dtype)
    x, c = flat(rows["x"]), flat(rows["g"])
    if block.bias:
        one = jnp.ones((*x.shape[:-1], 1), x.dtype)
        x = jnp.concatenate([x, one], axis=-1)

    def apply(_):
        left = jnp.matmul(x, a, precision=HIGHEST)
        right = jnp.matmul(c, g, precision=HIGHEST)
        return jnp.matmul(left.mT, right, precision=HIGHEST)

    return apply
