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

from natgrad import tree
from natgrad.layers import Block
from natgrad.metrics.base import Metric
from natgrad.solvers.base import Spectrum
from natgrad.solvers.damping import (
    DampingLike,
    EntryDamping,
    LeafDamping,
    Resolved,
    by_leaf,
    resolve_damping,
)
from natgrad.solvers.matrix_functions import Spectral, shifted
from natgrad.solvers.spectral import HIGHEST, spectrum
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
    def functions(self, fs: Sequence[Spectral]) -> Sequence[Callable[[Array], Array]]:
        """For each block V -> the matrix of f(F_b) vec V.

        Args:
            fs: f of each block, of eigenvalues.
        """

    @abc.abstractmethod
    def traces(self, fs: Sequence[Spectral]) -> Sequence[Float[Array, "..."]]:
        """Of each block numbers that add up to tr f(F_b).

        Args:
            fs: f of each block, of eigenvalues.
        """

    @abc.abstractmethod
    def diagonals(self, fs: Sequence[Spectral]) -> Sequence[Float[Array, "*lead I O"]]:
        """diag f(F_b) of each block.

        Args:
            fs: f of each block, of eigenvalues.
        """

    @final
    def function(self, f: Spectral, v: Params, damping: DampingLike = 0.0) -> Params:
        """Each block in its eigenbasis; see `Metric.function`."""
        fs, outside = self._shifted(f, damping)
        rest = [functools.partial(jnp.multiply, own) for own in outside]
        return self.blockwise(v, self.functions(fs), rest)

    @final
    def trace_of(self, f: Spectral, damping: DampingLike = 0.0) -> Float[Array, ""]:
        """Σ f(s), and f(0) for each parameter outside; see `Metric.trace_of`."""
        fs, _ = self._shifted(f, damping)
        outer = self._outer(resolve_damping(damping, self))
        terms = [count * f(own) for own, count in outer if count]
        return functools.reduce(jnp.add, [*map(jnp.sum, self.traces(fs)), *terms])

    @final
    def diagonal_of(self, f: Spectral, damping: DampingLike = 0.0) -> Params:
        """That of each block, and f(0) outside; see `Metric.diagonal_of`."""
        fs, outside = self._shifted(f, damping)
        return self.split(self.diagonals(fs), jnp.stack(outside))

    def _shifted(
        self, f: Spectral, damping: DampingLike
    ) -> tuple[list[Spectral], list[Array]]:
        """(s -> f(s + λ) of each block, f(λ) of each leaf)."""
        found = resolve_damping(damping, self)
        fs = [shifted(f, own) for own in self.block_dampings(found)]
        leaves = jax.tree.leaves(
            by_leaf(found, self.layout.treedef.unflatten(self.layout.sizes))
        )
        return fs, list(map(f, leaves))

    def spectrum(
        self, values: Sequence[Array], damping: Array | LeafDamping
    ) -> Spectrum:
        """What the eigenvalues of each block say of F + Λ, a resolved damping."""
        pairs = list(zip(values, self.block_dampings(damping), strict=True))
        outer = [(jnp.zeros(count), own) for own, count in self._outer(damping)]
        return spectrum(pairs + [(zeros, own) for zeros, own in outer if zeros.size])

    def blockwise(
        self,
        v: Params,
        functions: Sequence[Callable[[Array], Array]],
        rest: Sequence[Callable[[Array], Array]] | None = None,
    ) -> Params:
        """Each block's matrix through its function; other parameters through `rest`.

        Args:
            v: a tree like the parameters.
            functions: for each block [lead..., I (+1), O] -> the same shape.
            rest: for each leaf the function of what no block reads; None for zeros.

        Returns:
            A tree like the parameters, in their dtypes.
        """
        leaves = self.layout.leaves(v)
        rest = rest or [jnp.zeros_like] * len(leaves)
        out = [function(leaf) for function, leaf in zip(rest, leaves, strict=True)]
        for block, function in zip(self.blocks, functions, strict=True):
            out = block.from_matrix(function(block.to_matrix(leaves)), out)
        cast = [
            leaf.astype(dtype)
            for leaf, dtype in zip(out, self.layout.dtypes, strict=True)
        ]
        return jax.tree.unflatten(self.layout.treedef, cast)

    def block_dampings(self, damping: Resolved) -> list[Array]:
        """The λ of each block.

        Args:
            damping: as `natgrad.solvers.damping.resolve_damping` gives it.

        Raises:
            ValueError: leaves of one block have several.
        """
        if isinstance(damping, EntryDamping):
            raise ValueError(
                "F + Λ has the eigenbasis of each layer only where Λ is one number a "
                "layer; here every parameter has its own, as by ScaleInvariant: damp "
                "by natgrad.Relative, or take Dense, BlockDiagonal, Gram or MatrixFree."
            )
        if not isinstance(damping, LeafDamping):
            return [damping] * len(self.blocks)
        for block in self.blocks:
            if len({damping.index[leaf] for leaf in block.leaves}) > 1:
                names = tree.paths(self.layout.treedef.unflatten(self.layout.sizes))
                raise ValueError(
                    f"{[names[leaf] for leaf in block.leaves]} are one layer, and have "
                    "different damping, or such as is not known to be equal under jit: "
                    "give them one number, for their part of the tree or by "
                    "natgrad.ByPath; or take a curvature without layers, such as "
                    "natgrad.curvature.BlockDiagonal."
                )
        return [damping.values[damping.index[block.leaves[0]]] for block in self.blocks]

    def outer_inverse(
        self, damping: Array | LeafDamping
    ) -> tuple[list[Callable[[Array], Array]], Bool[Array, ""]]:
        """V -> V/λ, or 0 for λ = 0, of each leaf; and is F + λI singular outside?

        Args:
            damping: λ >= 0, in the units of F.
        """

        def inverse(zero, own):
            return lambda x: jnp.where(zero, 0, x / jnp.where(zero, 1, own))

        outer = self._outer(damping)
        zeros = [own == 0 for own, _ in outer]
        singular = [zero & (n > 0) for zero, (_, n) in zip(zeros, outer, strict=True)]
        functions = list(map(inverse, zeros, [own for own, _ in outer]))
        same = [0] * len(self.layout.shapes)
        index = damping.index if isinstance(damping, LeafDamping) else same
        return [functions[i] for i in index], functools.reduce(jnp.logical_or, singular)

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
            outside: the entries of parameters that no block reads, or of each leaf.
        """
        leaves = jnp.broadcast_to(jnp.asarray(outside), (len(self.layout.shapes),))
        split = [
            jnp.full(shape, own, self.layout.dtype)
            for shape, own in zip(self.layout.shapes, leaves, strict=True)
        ]
        for block, matrix in zip(self.blocks, matrices, strict=True):
            split = block.from_matrix(matrix, split)
        return jax.tree.unflatten(self.layout.treedef, split)

    @property
    def outside(self) -> int:
        """The number of parameters that no block reads."""
        return self.layout.size - sum(int(np.prod(b.shape)) for b in self.blocks)

    def _outer(self, damping: Array | LeafDamping) -> list[tuple[Array, int]]:
        """(λ, how many parameters that no block reads have it)."""
        if not isinstance(damping, LeafDamping):
            return [(damping, self.outside)]
        counts = np.bincount(damping.index, self.layout.sizes)
        for block in self.blocks:
            counts[damping.index[block.leaves[0]]] -= block.size
        return list(zip(damping.values, map(int, counts), strict=True))

    def leaf_groups(self) -> list[tuple[int, ...]]:
        """The leaves of each block."""
        return [block.leaves for block in self.blocks]

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
