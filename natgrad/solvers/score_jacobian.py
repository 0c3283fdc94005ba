"""The scaled score Jacobian B of a batch, kept as `natgrad.solvers.jacobian_blocks`.

    F = Bᵀ B,     row m = (k, n) of B:   √(w_nk / Σω) J_nᵀ s_nk              [M, P]

with M = K·N. Centred rows are (I − q qᵀ) B for each k and the unit vector
q = √(ω_n / Σω): each row less the weighted mean of all of its score column.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Float

from natgrad.layers import Block
from natgrad.solvers.jacobian_blocks import (
    DenseRows,
    EmbeddingBlock,
    JacobianBlock,
    LinearBlock,
    Parts,
)
from natgrad.solvers.spectral import HIGHEST
from natgrad.tree import Layout, metric_pytree
from natgrad.typing import Array, Params


@metric_pytree("layout", "blocks")
class Jacobian:
    """B, a map from trees like the parameters to M numbers.

    Attributes:
        layout: of the parameters.
        blocks: the captured blocks, one for each of `pieces`; None where the leaves, in
            their order, are the parts of the pieces, but for their shapes.
        pieces: the columns of B that belong to each block.
        centre: a unit vector q [N] to which the rows of each score column are made
            orthogonal, (I − q qᵀ) B_k; None for none.
    """

    layout: Layout
    blocks: tuple[Block, ...] | None
    pieces: tuple[JacobianBlock, ...]
    centre: Float[Array, " N"] | None

    @property
    def columns(self) -> tuple[int, int]:
        """(K, N): score columns and examples."""
        return self.pieces[0].columns

    @property
    def size(self) -> int:
        """M = K·N, the number of rows."""
        return math.prod(self.columns)

    @property
    def is_small(self) -> bool:
        """May B be written out for a QR decomposition?"""
        limit = min(piece.most_written_out for piece in self.pieces)
        return self.size * self.layout.size <= limit

    def push(self, v: Params) -> Float[Array, " M"]:
        """B v.

        Args:
            v: a tree like the parameters.
        """
        pairs = zip(self.pieces, self.parts(v), strict=True)
        products = [piece.push(parts).reshape(-1) for piece, parts in pairs]
        return self._centred(functools.reduce(jnp.add, products))

    def pull(self, u: Float[Array, " M"]) -> Params:
        """Bᵀ u, a tree like the parameters in the working dtype.

        Args:
            u: one number a row.
        """
        rows = self._centred(u).reshape(self.columns)
        return self.params([piece.pull(rows) for piece in self.pieces])

    def gram(self, other: Jacobian | None = None) -> Float[Array, "M m"]:
        """B Bᵀ.

        Args:
            other: rows B' of m other columns, neither centred; B B'ᵀ then.
        """
        others = [None] * len(self.pieces) if other is None else other.pieces
        shape = (self.size, self.size if other is None else other.size)
        pairs = zip(self.pieces, others, strict=True)
        total = functools.reduce(
            jnp.add, [piece.gram(paired).reshape(shape) for piece, paired in pairs]
        )
        if self.centre is None:
            return total
        half = jax.vmap(self._centred)(total)
        return jax.vmap(self._centred, 1, 1)(half)

    def explicit(self) -> Float[Array, "M P"]:
        """B, written out."""

        def ravel(row):
            return self.layout.ravel(self.params(row))

        rows = [piece.explicit() for piece in self.pieces]
        matrix = jax.vmap(jax.vmap(ravel))(rows).reshape((self.size, -1))
        return matrix if self.centre is None else jax.vmap(self._centred, 1, 1)(matrix)

    def astype(self, dtype: Any) -> Jacobian:
        """B in another dtype, for trees in that of the layout.

        Args:
            dtype: a floating one.
        """
        pieces = tuple(piece.astype(dtype) for piece in self.pieces)
        centre = None if self.centre is None else self.centre.astype(dtype)
        return dataclasses.replace(self, pieces=pieces, centre=centre)

    def scaled(self, v: Params) -> Jacobian:
        """B diag(v).

        Args:
            v: a tree like the parameters, constant in each leaf.
        """
        pieces = map(_scaled, self.pieces, self.parts(v))
        return dataclasses.replace(self, pieces=tuple(pieces))

    def written_out(self, entries: Float[Array, " P"]) -> Jacobian:
        """B diag(d) by its rows, M·P numbers.

        Args:
            entries: d, any numbers.
        """
        rows = (self.explicit() * entries[None]).reshape((*self.columns, 1, 1, -1))
        ends = list(itertools.accumulate(self.layout.sizes))[:-1]
        pieces = tuple(DenseRows((leaf,)) for leaf in jnp.split(rows, ends, axis=4))
        return Jacobian(self.layout, None, pieces, None)

    def diagonal(self) -> Params:
        """The diagonal of Bᵀ B, a tree in the working dtype."""
        squares = self.params([piece.squares() for piece in self.pieces])
        if self.centre is None:
            return squares
        plain, units = dataclasses.replace(self, centre=None), jnp.eye(self.columns[0])
        each = jnp.einsum("kj,n->kjn", units, self.centre).reshape(-1, self.size)
        means = jax.vmap(plain.pull)(each.astype(self.layout.dtype))
        return jax.tree.map(lambda s, m: s - jnp.sum(m**2, axis=0), squares, means)

    def apart(self) -> list[Jacobian]:
        """The columns of each piece by themselves, a map from lists of its parts."""
        return [
            Jacobian(Layout.of(parts), None, (piece,), self.centre)
            for piece, parts in zip(self.pieces, self._shapes(), strict=True)
        ]

    def parts(self, v: Params) -> list[Parts]:
        """The matrices [L, I, O] of each piece, and its bias's row [L, 1, O].

        Args:
            v: a tree like the parameters.
        """
        leaves = self.layout.leaves(v)
        if self.blocks is None:
            shapes, structure = jax.tree.flatten(self._shapes())
            pairs = zip(leaves, shapes, strict=True)
            return jax.tree.unflatten(structure, [a.reshape(s.shape) for a, s in pairs])
        return [
            [part.reshape((-1, *part.shape[-2:])) for part in block.to_parts(leaves)]
            for block in self.blocks
        ]

    def params(self, parts: Sequence[Parts]) -> Params:
        """A tree like the parameters in the working dtype, 0 outside the pieces.

        Args:
            parts: as `parts` gives them.
        """
        shapes = self.layout.shapes
        if self.blocks is None:
            pairs = zip(jax.tree.leaves(parts), shapes, strict=True)
            leaves = [part.reshape(shape) for part, shape in pairs]
            return jax.tree.unflatten(self.layout.treedef, leaves)
        leaves = [jnp.zeros(shape, self.layout.dtype) for shape in shapes]
        for block, flat in zip(self.blocks, parts, strict=True):
            shaped = [part.reshape((*block.lead, *part.shape[-2:])) for part in flat]
            leaves = block.from_parts(shaped, leaves)
        return jax.tree.unflatten(self.layout.treedef, leaves)

    def _shapes(self) -> list:
        """What `parts` gives, as shapes."""
        return [piece.part_shapes() for piece in self.pieces]

    def _centred(self, u: Array) -> Array:
        if self.centre is None:
            return u
        rows = u.reshape(self.columns)
        means = jnp.matmul(rows, self.centre, precision=HIGHEST)
        return (rows - means[:, None] * self.centre[None]).reshape(u.shape)


def _scaled(piece: Any, v: Parts) -> JacobianBlock:
    if not isinstance(piece, DenseRows | LinearBlock | EmbeddingBlock):
        return piece.scaled(v)
    if isinstance(piece, DenseRows):
        rows = [b * part[None, None] for b, part in zip(piece.rows, v, strict=True)]
        return DenseRows(tuple(rows))
    weight, last = (
        v[0][0, 0, 0],
        v[-1][0, 0, 0],
    )  # last: a bias's, if there is one
    if isinstance(piece, LinearBlock):
        piece = dataclasses.replace(piece, x=piece.x * (weight / last))
    return dataclasses.replace(piece, g=piece.g * last)
