"""The scaled score Jacobian B of a batch, kept block by block as `natgrad.pieces`.

    F = Bᵀ B,     row m = (k, n) of B:   √(w_nk / Σω) J_nᵀ s_nk              [M, P]

with M = K·N. Centred rows are (I − q qᵀ) B for the unit vector q = √(ω_n / Σω): each
row less the weighted mean of all.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from natgrad.layers import Block
from natgrad.solvers.jacobian_blocks import JacobianBlock, Parts
from natgrad.solvers.spectral import HIGHEST
from natgrad.tree import Layout, metric_pytree
from natgrad.typing import Array, Params


@metric_pytree("layout", "blocks")
class Jacobian:
    """B, a map from trees like the parameters to M numbers.

    Attributes:
        layout: of the parameters.
        blocks: what the pieces belong to; None where one piece holds all parameters.
        pieces: B, block by block.
        centre: a unit vector q [M] to which rows of B are made orthogonal,
            (I − q qᵀ) B; None for none.
    """

    layout: Layout
    blocks: tuple[Block, ...] | None
    pieces: tuple[JacobianBlock, ...]
    centre: Array | None

    @property
    def columns(self) -> tuple[int, int]:
        """(K, N)."""
        return self.pieces[0].columns

    @property
    def size(self) -> int:
        """M = K·N."""
        return math.prod(self.columns)

    def push(self, v: Params) -> Array:
        """B v, [M]."""
        pairs = zip(self.pieces, self._parts(v), strict=True)
        total = sum(piece.push(parts) for piece, parts in pairs)
        return self._centred(total.reshape(-1))

    def pull(self, u: Array) -> Params:
        """Bᵀ u in the working dtype, for u [M]."""
        u = self._centred(u).reshape(self.columns)
        return self._params([piece.pull(u) for piece in self.pieces])

    def gram(self) -> Array:
        """B Bᵀ, [M, M]."""
        size = self.size
        total = sum(piece.gram() for piece in self.pieces).reshape((size, size))
        if self.centre is None:
            return total
        half = jax.vmap(self._centred)(total)
        return jax.vmap(self._centred, 1, 1)(half)

    def explicit(self) -> Array:
        """B, [M, P]."""
        rows = [piece.explicit() for piece in self.pieces]
        flat = lambda rows: self.layout.ravel(self._params(rows))
        matrix = jax.vmap(jax.vmap(flat))(rows).reshape((self.size, -1))
        return matrix if self.centre is None else jax.vmap(self._centred, 1, 1)(matrix)

    def diagonal(self) -> Params:
        """The diagonal of Bᵀ B, a tree in the working dtype."""
        squares = self._params([piece.squares() for piece in self.pieces])
        if self.centre is None:
            return squares
        whole = dataclasses.replace(self, centre=None).pull(self.centre)
        return jax.tree.map(lambda s, m: s - m**2, squares, whole)

    def _parts(self, v: Params) -> list[Parts]:
        wide = [leaf.astype(self.layout.dtype) for leaf in jax.tree.leaves(v)]
        if self.blocks is None:
            flat = jnp.concatenate([leaf.reshape(-1) for leaf in wide])
            return [[flat.reshape((1, -1, 1))]]
        flat = lambda part: part.reshape((-1, *part.shape[-2:]))
        return [[flat(p) for p in block.to_parts(wide)] for block in self.blocks]

    def _params(self, parts: Sequence[Parts]) -> Params:
        if self.blocks is None:
            return self.layout.split(parts[0][0].reshape(-1))
        leaves = [jnp.zeros(s, self.layout.dtype) for s in self.layout.shapes]
        for block, mine in zip(self.blocks, parts, strict=True):
            shaped = [part.reshape((*block.lead, *part.shape[-2:])) for part in mine]
            leaves = block.from_parts(shaped, leaves)
        return jax.tree.unflatten(self.layout.treedef, leaves)

    def _centred(self, u: Array) -> Array:
        if self.centre is None:
            return u
        return u - self.centre * jnp.vdot(self.centre, u, precision=HIGHEST)
