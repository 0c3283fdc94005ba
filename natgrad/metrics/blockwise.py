"""Metrics that treat each captured block by itself, as a matrix [lead..., I (+1), O].

Parameters that no block reads have F = 0.
"""

from __future__ import annotations

import abc
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import final

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float

from natgrad.layers import Block
from natgrad.metrics.base import Metric
from natgrad.solvers.matrix_functions import Spectral
from natgrad.solvers.spectral import HIGHEST
from natgrad.tree import Layout
from natgrad.typing import Array, ArrayLike, Params


class BlockwiseMetric(Metric):
    """A metric that is block diagonal over what `natgrad.layers` captured.

    Attributes:
        layout: of the parameters.
        blocks: what was captured.
    """

    layout: Layout
    blocks: tuple[Block, ...]

    @abc.abstractmethod
    def functions(self, f: Spectral) -> Sequence[Callable[[Array], Array]]:
        """For each block V -> the matrix of f(F_b) vec V.

        Args:
            f: of eigenvalues.
        """

    @abc.abstractmethod
    def traces(self, f: Spectral) -> Sequence[Float[Array, "..."]]:
        """Of each block numbers that add up to tr f(F_b).

        Args:
            f: of eigenvalues.
        """

    @abc.abstractmethod
    def diagonals(self, f: Spectral) -> Sequence[Float[Array, "*lead I O"]]:
        """diag f(F_b) of each block.

        Args:
            f: of eigenvalues.
        """

    @final
    def function(self, f: Spectral, v: Params) -> Params:
        """Each block in its eigenbasis; see `Metric.function`."""
        zero = self._at_zero(f)
        return self.blockwise(v, self.functions(f), lambda leaf: zero * leaf)

    @final
    def trace_of(self, f: Spectral) -> Float[Array, ""]:
        """Σ f(s), and f(0) for each parameter outside; see `Metric.trace_of`."""
        total = functools.reduce(jnp.add, map(jnp.sum, self.traces(f)))
        return total + self.outside * self._at_zero(f) if self.outside else total

    @final
    def diagonal_of(self, f: Spectral) -> Params:
        """That of each block, and f(0) outside; see `Metric.diagonal_of`."""
        return self.split(self.diagonals(f), self._at_zero(f))

    def blockwise(
        self,
        v: Params,
        functions: Sequence[Callable[[Array], Array]],
        rest: Callable[[Array], Array] = jnp.zeros_like,
    ) -> Params:
        """Each block's matrix through its function; other parameters through `rest`.

        Args:
            v: a tree like the parameters.
            functions: for each block [lead..., I (+1), O] -> the same shape.
            rest: for each other leaf, an array -> the same shape.

        Returns:
            A tree like the parameters, in their dtypes.
        """
        leaves = [leaf.astype(self.layout.dtype) for leaf in jax.tree.leaves(v)]
        out = [rest(leaf) for leaf in leaves]
        for block, function in zip(self.blocks, functions, strict=True):
            out = block.from_matrix(function(block.to_matrix(leaves)), out)
        cast = [
            leaf.astype(dtype)
            for leaf, dtype in zip(out, self.layout.dtypes, strict=True)
        ]
        return jax.tree.unflatten(self.layout.treedef, cast)

    def outer_inverse(
        self, damping: Float[Array, ""]
    ) -> tuple[Callable[[Array], Array], Bool[Array, ""]]:
        """V -> V/λ, or 0 for λ = 0, where no block reads; and is F + λI singular there?

        Args:
            damping: λ >= 0, in the units of F.
        """
        zero = damping == 0

        def inverse(x):
            return jnp.where(zero, 0, x / jnp.where(zero, 1, damping))

        return inverse, zero & (self.outside > 0)

    def placed(self, matrices: Sequence[Float[Array, "*lead D D"]]) -> Array:
        """A matrix [P, P] from those of the blocks, zero elsewhere.

        Args:
            matrices: over each block's D = I(+1) O entries.
        """
        total = jnp.zeros((self.layout.size,) * 2, self.layout.dtype)
        for places, matrix in zip(self._places(), matrices, strict=True):
            stack = matrix.reshape(-1, *matrix.shape[-2:])
            for indices, part in zip(places, stack, strict=True):
                total = total.at[np.ix_(indices, indices)].set(part)
        return total

    def split(
        self, matrices: Sequence[Float[Array, "*lead I O"]], outside: ArrayLike = 0
    ) -> Params:
        """A tree like the parameters in the working dtype.

        Args:
            matrices: of each block.
            outside: the entries of parameters that no block reads.
        """
        vector = jnp.full(self.layout.size, outside, self.layout.dtype)
        for places, matrix in zip(self._places(), matrices, strict=True):
            vector = vector.at[np.ravel(places)].set(matrix.reshape(-1))
        return self.layout.split(vector)

    @property
    def outside(self) -> int:
        """The number of parameters that no block reads."""
        return self.layout.size - sum(int(np.prod(b.shape)) for b in self.blocks)

    def _at_zero(self, f: Spectral) -> Array:
        return f(jnp.zeros((), self.layout.dtype))

    def _places(self) -> list[np.ndarray]:
        """For each block the places of its entries in the vector: [lead, I(+1) O]."""
        with jax.ensure_compile_time_eval():
            leaves = [
                jnp.asarray(self.layout.positions(i).reshape(shape))
                for i, shape in enumerate(self.layout.shapes)
            ]
            matrices = [np.asarray(block.to_matrix(leaves)) for block in self.blocks]
        return [
            matrix.reshape(-1, block.rows * block.outputs)
            for block, matrix in zip(self.blocks, matrices, strict=True)
        ]


def kron_matvec(
    a: Float[Array, "*A"], g: Float[Array, "*lead O O"]
) -> Callable[[Array], Array]:
    """V -> A V G for V [lead..., I(+1), O].

    Args:
        a: A, a matrix [lead..., I(+1), I(+1)] or the diagonal of one.
        g: G.
    """

    def apply(v):
        v = jnp.matmul(v, g, precision=HIGHEST)
        if a.ndim < g.ndim:
            return a[..., :, None] * v
        return jnp.matmul(a, v, precision=HIGHEST)

    return apply


def kron_matvec_low_rank(
    a: Float[Array, "*lead I I"],
    g: Float[Array, "*lead O O"],
    block: Block,
    rows: Mapping[str, Array],
) -> Callable[[Array], Array]:
    """The same of V = Xᵀ C, which is not read: (X A)ᵀ (C G), for symmetric A.

    Args:
        a: A, with the bias's row and column if the block has a bias.
        g: G.
        block: whose rows they are.
        rows: X [lead..., N, T, I] as "x" and C [lead..., N, T, O] as "g".
    """

    def flat(array):
        rows = array.reshape((*array.shape[:-3], -1, array.shape[-1]))
        return rows.astype(g.dtype)

    x, c = flat(rows["x"]), flat(rows["g"])
    if block.bias:
        one = jnp.ones((*x.shape[:-1], 1), x.dtype)
        x = jnp.concatenate([x, one], axis=-1)

    def apply(_):
        left = jnp.matmul(x, a, precision=HIGHEST)
        right = jnp.matmul(c, g, precision=HIGHEST)
        return jnp.matmul(left.mT, right, precision=HIGHEST)

    return apply
