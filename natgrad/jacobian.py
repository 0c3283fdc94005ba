"""The scaled score Jacobian B of a batch, kept as what its layers multiply.

    F = Bᵀ B,     row m = (k, n) of B:   √(w_nk / Σω) J_nᵀ s_nk              [M, P]

with M = K·N. One layer's part of a row is Σ_t x_nt g_nktᵀ, so B is never formed where a
layer's inputs X [N, T, I] and output gradients G [K, N, T, O] say the same in less:

    B v     Σ_t ⟨x_nt, V g_nkt⟩          Bᵀ u    Σ_t X_tᵀ (u G)_t
    B Bᵀ    Σ_ts (X_t X_sᵀ) ∘ (G_t G_sᵀ)       (the Khatri-Rao Gram matrix)

`Factored` and `Lookups` hold these, `Explicit` holds the rows themselves, for layers
that several uses add to, or where T² (I + O) > I O makes the rows cheaper.
`Jacobian` puts the layers together; `centre` projects rows to mean zero.

Source: Ren & Goldfarb (2019), Efficient subsampled Gauss-Newton and natural gradient
methods for training neural networks, section 4.
"""

from __future__ import annotations

import abc
import dataclasses
import math

import jax
import jax.numpy as jnp

from natgrad import tree
from natgrad.layers import Block
from natgrad.metric import metric_pytree
from natgrad.solvers import HIGHEST
from natgrad.tree import Layout
from natgrad.typing import Array, Params


class Piece(abc.ABC):
    """The columns of B that belong to one block, whose matrix is [L, I, O].

    L = lead is flattened; the last of the I rows is the block's bias, if it has one.
    """

    @abc.abstractmethod
    def push(self, v: Array) -> Array:
        """B v, [K, N], for v [L, I, O]."""

    @abc.abstractmethod
    def pull(self, u: Array) -> Array:
        """Bᵀ u, [L, I, O], for u [K, N]."""

    @abc.abstractmethod
    def gram(self) -> Array:
        """B Bᵀ, [K, N, K, N]."""

    @abc.abstractmethod
    def explicit(self) -> Array:
        """B itself, [K, N, L, I, O]."""

    def squares(self) -> Array:
        """The diagonal of Bᵀ B, [L, I, O]."""
        return jnp.sum(self.explicit() ** 2, axis=(0, 1))


def product(subscripts: str, *operands: Array) -> Array:
    """An einsum at full precision, so that TF32 cannot touch a Gram matrix."""
    return jnp.einsum(subscripts, *operands, precision=HIGHEST)


@metric_pytree("bias")
class Factored(Piece):
    """Inputs and output gradients of a layer's one use.

    Attributes:
        x: [L, N, T, I].
        g: [K, L, N, T, O].
        bias: whether the matrix has a last row whose input is 1.
    """

    x: Array
    g: Array
    bias: bool

    def push(self, v: Array) -> Array:
        """Σ_t ⟨x V, g⟩."""
        y = product("lnti,lio->lnto", self.x, v[:, : self.x.shape[-1]])
        if self.bias:
            y = y + v[:, None, -1:]
        return product("klnto,lnto->kn", self.g, y)

    def pull(self, u: Array) -> Array:
        """Σ_n,t x (u g)ᵀ."""
        g = product("klnto,kn->lnto", self.g, u)
        matrix = product("lnti,lnto->lio", self.x, g)
        if not self.bias:
            return matrix
        return jnp.concatenate([matrix, jnp.sum(g, axis=(1, 2))[:, None]], axis=1)

    def gram(self) -> Array:
        """Σ_l,t,s (X Xᵀ + bias) ∘ (G Gᵀ), one l and t at a time."""

        def of(one):
            (x, y), (g, h) = one
            inner = product("ni,msi->nms", x, y) + float(self.bias)
            outer = product("kno,jmso->knjms", g, h)
            return product("nms,knjms->knjm", inner, outer)

        return _over_positions(of, self.x, jnp.moveaxis(self.g, 1, 0))

    def explicit(self) -> Array:
        """Σ_t x gᵀ for each row."""
        x = self.x
        if self.bias:
            one = jnp.ones((*x.shape[:-1], 1), x.dtype)
            x = jnp.concatenate([x, one], axis=-1)
        return product("lnti,klnto->knlio", x, self.g)

    def squares(self) -> Array:
        """Without the rows, where each has one position."""
        if self.x.shape[2] > 1:
            return Piece.squares(self)
        squared = Factored(self.x**2, jnp.sum(self.g**2, axis=0)[None], self.bias)
        return squared.pull(jnp.ones((1, self.x.shape[1]), self.x.dtype))


@metric_pytree("table")
class Lookups(Piece):
    """A table's lookups: each input is a row of the identity, kept as its index.

    Attributes:
        index: [L, N, T], whole numbers in floating dtype; outside the table they count
            for nothing.
        g: [K, L, N, T, O].
        table: I, rows of the table.
    """

    index: Array
    g: Array
    table: int

    def push(self, v: Array) -> Array:
        """Σ_t ⟨v_index, g⟩."""
        index = self._index()
        rows = jax.vmap(lambda v, i: v.at[i].get(mode="fill", fill_value=0))(v, index)
        return product("klnto,lnto->kn", self.g, rows)

    def pull(self, u: Array) -> Array:
        """The gradients u g, added up at their rows."""
        g = product("klnto,kn->lnto", self.g, u)
        zeros = jnp.zeros((g.shape[0], self.table, g.shape[-1]), g.dtype)
        add = lambda zero, index, g: zero.at[index].add(g, mode="drop")
        return jax.vmap(add)(zeros, self._index(), g)

    def gram(self) -> Array:
        """Σ_t,s [same row] ⟨g_t, g_s⟩."""
        index = self._index()
        valid = (index < self.table)[None, ..., None]
        g = jnp.moveaxis(jnp.where(valid, self.g, 0), 1, 0)

        def of(one):
            (i, j), (g, h) = one
            same = (i[:, None, None] == j[None]).astype(g.dtype)
            return product("nms,knjms->knjm", same, product("kno,jmso->knjms", g, h))

        return _over_positions(of, index, g)

    def explicit(self) -> Array:
        """The rows with the lookups written out."""
        x = jax.nn.one_hot(self._index(), self.table, dtype=self.g.dtype)
        return product("lnti,klnto->knlio", x, self.g)

    def _index(self) -> Array:
        """Whole numbers; those below the table go above it, so none wraps around."""
        index = self.index.astype(jnp.int32)
        return jnp.where(index < 0, self.table, index)


@metric_pytree()
class Explicit(Piece):
    """The rows of B.

    Attributes:
        rows: [K, N, L, I, O].
    """

    rows: Array

    def push(self, v: Array) -> Array:
        """Σ rows v."""
        return product("knlio,lio->kn", self.rows, v)

    def pull(self, u: Array) -> Array:
        """Σ_kn u rows."""
        return product("knlio,kn->lio", self.rows, u)

    def gram(self) -> Array:
        """The inner products of the rows."""
        k, n = self.rows.shape[:2]
        flat = self.rows.reshape((k * n, -1))
        return product("mp,np->mn", flat, flat).reshape((k, n, k, n))

    def explicit(self) -> Array:
        """The rows."""
        return self.rows


def _over_positions(of, x: Array, g: Array) -> Array:
    """Σ over l, t of of(((x_lt, x_l), (g_lt, g_l))): x [L, N, T, ...], g [L, K, N, T, O].

    One term is alive at a time.
    """
    layers, positions = x.shape[0], x.shape[2]
    first = lambda a, axis: jnp.moveaxis(a, axis, 1).reshape(
        (layers * positions, *a.shape[1:axis], *a.shape[axis + 1 :])
    )
    whole = lambda a: jnp.repeat(a, positions, axis=0)
    terms = ((first(x, 2), whole(x)), (first(g, 3), whole(g)))
    return tree.sum_over_chunks(
        lambda chunk: of(jax.tree.map(lambda a: a[0], chunk)), terms, 1
    )


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
    pieces: tuple[Piece, ...]
    centre: Array | None

    @property
    def columns(self) -> tuple[int, int]:
        """(K, N)."""
        shape = jax.eval_shape(lambda: self.pieces[0].gram()).shape
        return shape[:2]

    @property
    def size(self) -> int:
        """M = K·N."""
        return math.prod(self.columns)

    def push(self, v: Params) -> Array:
        """B v, [M]."""
        pairs = zip(self.pieces, self._matrices(v), strict=True)
        total = sum(piece.push(matrix) for piece, matrix in pairs)
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

    def _matrices(self, v: Params) -> list[Array]:
        wide = [leaf.astype(self.layout.dtype) for leaf in jax.tree.leaves(v)]
        if self.blocks is None:
            flat = jnp.concatenate([leaf.reshape(-1) for leaf in wide])
            return [flat.reshape((1, -1, 1))]
        return [
            block.to_matrix(wide).reshape((-1, block.rows, block.outputs))
            for block in self.blocks
        ]

    def _params(self, matrices: list[Array]) -> Params:
        if self.blocks is None:
            return self.layout.split(matrices[0].reshape(-1))
        leaves = [jnp.zeros(s, self.layout.dtype) for s in self.layout.shapes]
        for block, matrix in zip(self.blocks, matrices, strict=True):
            leaves = block.from_matrix(matrix.reshape(block.shape), leaves)
        return jax.tree.unflatten(self.layout.treedef, leaves)

    def _centred(self, u: Array) -> Array:
        if self.centre is None:
            return u
        return u - self.centre * jnp.vdot(self.centre, u, precision=HIGHEST)
