"""What one block contributes to the scaled score Jacobian B: its rows, or less.

One layer's part of row m = (k, n) is Σ_t x_nt g_nktᵀ, so its rows need not be formed
where its inputs X [N, T, I] and output gradients G [K, N, T, O] say the same in less:

    B v     Σ_t ⟨x_nt, V g_nkt⟩          Bᵀ u    Σ_t X_tᵀ (u G)_t
    B Bᵀ    Σ_ts (X_t X_sᵀ) ∘ (G_t G_sᵀ)       (the Khatri-Rao Gram matrix)

`LinearBlock` and `EmbeddingBlock` hold these. `DenseRows` holds the rows themselves,
for layers that several uses add to, or where T² (I + O) > I O makes the rows cheaper.

Source: Ren & Goldfarb (2019), Efficient subsampled Gauss-Newton and natural gradient
methods for training neural networks.
"""

from __future__ import annotations

import abc
import itertools
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from natgrad import tree
from natgrad.solvers.dense import mirrored
from natgrad.solvers.spectral import HIGHEST
from natgrad.tree import metric_pytree
from natgrad.typing import Array

# Block rows of a product of rows with themselves, and from how many rows on.
_BLOCKS, _MANY = 4, 512
# A block's matrix as [L, I, O] and, if it has a bias, that row as [L, 1, O].
Parts = Sequence[Array]


class JacobianBlock(abc.ABC):
    """The columns of B that belong to one block; L = lead is flattened."""

    @property
    @abc.abstractmethod
    def columns(self) -> tuple[int, int]:
        """(K, N)."""

    @abc.abstractmethod
    def push(self, v: Parts) -> Array:
        """B v, [K, N]."""

    @abc.abstractmethod
    def pull(self, u: Array) -> Parts:
        """Bᵀ u for u [K, N]."""

    @abc.abstractmethod
    def gram(self) -> Array:
        """B Bᵀ, [K, N, K, N]."""

    @abc.abstractmethod
    def explicit(self) -> Parts:
        """B itself, [K, N, L, I, O] and perhaps [K, N, L, 1, O]."""

    def squares(self) -> Parts:
        """The diagonal of Bᵀ B."""
        return [jnp.sum(part**2, axis=(0, 1)) for part in self.explicit()]


def product(subscripts: str, *operands: Array) -> Array:
    """An einsum at full precision, so that TF32 cannot touch a Gram matrix."""
    return jnp.einsum(subscripts, *operands, precision=HIGHEST)


@metric_pytree("bias")
class LinearBlock(JacobianBlock):
    """Inputs and output gradients of a layer's one use.

    Attributes:
        x: [L, N, T, I].
        g: [K, L, N, T, O].
        bias: whether the matrix has a last row whose input is 1.
    """

    x: Array
    g: Array
    bias: bool

    @property
    def columns(self) -> tuple[int, int]:
        """(K, N)."""
        return self.g.shape[0], self.g.shape[2]

    def push(self, v: Parts) -> Array:
        """Σ_t ⟨x V + bias, g⟩."""
        y = _each(jnp.matmul, self._rows(self.x), v[0])
        y = y.reshape((*self.x.shape[:-1], -1))
        if self.bias:
            y = y + v[1][:, None]
        return jnp.sum(self.g * y[None], axis=(1, 3, 4))

    def pull(self, u: Array) -> Parts:
        """Σ_n,t x (u g)ᵀ, and Σ_n,t u g."""
        g = jnp.sum(self.g * u[:, None, :, None, None], axis=0)
        matrix = _each(lambda x, g: jnp.matmul(x.T, g), *map(self._rows, (self.x, g)))
        return [matrix, jnp.sum(g, axis=(1, 2))[:, None]] if self.bias else [matrix]

    def gram(self) -> Array:
        """Σ_l,t,s (X Xᵀ + bias) ∘ (G Gᵀ), one l and t at a time."""

        def of(one):
            (x, y), (g, h) = one
            inner = product("ni,msi->nms", x, y) + float(self.bias)
            outer = product("kno,jmso->knjms", g, h)
            return jnp.sum(inner[None, :, None] * outer, axis=-1)

        return _over_positions(of, self.x, jnp.moveaxis(self.g, 1, 0))

    def explicit(self) -> Parts:
        """Σ_t x gᵀ and Σ_t g for each row."""
        matrix = product("lnti,klnto->knlio", self.x, self.g)
        if not self.bias:
            return [matrix]
        return [matrix, jnp.einsum("klnto->knlo", self.g)[..., None, :]]

    def squares(self) -> Parts:
        """Without the rows, where each has one position."""
        if self.x.shape[2] > 1:
            return JacobianBlock.squares(self)
        squared = LinearBlock(self.x**2, jnp.sum(self.g**2, axis=0)[None], self.bias)
        return squared.pull(jnp.ones((1, self.x.shape[1]), self.x.dtype))

    def _rows(self, array: Array) -> Array:
        """[L, N, T, ...] with examples and positions in one axis."""
        return array.reshape((array.shape[0], -1, array.shape[-1]))


@metric_pytree("table")
class EmbeddingBlock(JacobianBlock):
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

    @property
    def columns(self) -> tuple[int, int]:
        """(K, N)."""
        return self.g.shape[0], self.g.shape[2]

    def push(self, v: Parts) -> Array:
        """Σ_t ⟨v_index, g⟩."""
        index = self._index()
        rows = jax.vmap(lambda v, i: v.at[i].get(mode="fill", fill_value=0))(
            v[0], index
        )
        return jnp.sum(self.g * rows[None], axis=(1, 3, 4))

    def pull(self, u: Array) -> Parts:
        """The gradients u g, added up at their rows."""
        g = jnp.sum(self.g * u[:, None, :, None, None], axis=0)
        zeros = jnp.zeros((g.shape[0], self.table, g.shape[-1]), g.dtype)
        add = lambda zero, index, g: zero.at[index].add(g, mode="drop")
        return [jax.vmap(add)(zeros, self._index(), g)]

    def gram(self) -> Array:
        """Σ_t,s [same row] ⟨g_t, g_s⟩."""
        index = self._index()
        valid = (index < self.table)[None, ..., None]
        g = jnp.moveaxis(jnp.where(valid, self.g, 0), 1, 0)

        def of(one):
            (i, j), (g, h) = one
            same = (i[:, None, None] == j[None]).astype(g.dtype)
            outer = product("kno,jmso->knjms", g, h)
            return jnp.sum(same[None, :, None] * outer, axis=-1)

        return _over_positions(of, index, g)

    def explicit(self) -> Parts:
        """The rows with the lookups written out."""
        x = jax.nn.one_hot(self._index(), self.table, dtype=self.g.dtype)
        return [product("lnti,klnto->knlio", x, self.g)]

    def _index(self) -> Array:
        """Whole numbers; those below the table go above it, so none wraps around."""
        index = self.index.astype(jnp.int32)
        return jnp.where(index < 0, self.table, index)


@metric_pytree()
class DenseRows(JacobianBlock):
    """The rows of B.

    Attributes:
        rows: [K, N, L, I, O] and, if there is a bias, [K, N, L, 1, O].
    """

    rows: tuple[Array, ...]

    @property
    def columns(self) -> tuple[int, int]:
        """(K, N)."""
        return self.rows[0].shape[:2]

    def push(self, v: Parts) -> Array:
        """Σ rows v."""
        pairs = zip(self.rows, v, strict=True)
        return sum(product("knlio,lio->kn", rows, part) for rows, part in pairs)

    def pull(self, u: Array) -> Parts:
        """Σ_kn u rows."""
        return [product("knlio,kn->lio", rows, u) for rows in self.rows]

    def gram(self) -> Array:
        """The inner products of the rows."""

        def of(rows):
            k, n = rows.shape[:2]
            return _row_products(rows.reshape((k * n, -1))).reshape((k, n, k, n))

        return sum(of(rows) for rows in self.rows)

    def explicit(self) -> Parts:
        """The rows."""
        return self.rows


def _row_products(x: Array) -> Array:
    """x xᵀ; of many rows in block rows up to the diagonal: ⅝ of the products."""
    size = x.shape[0]
    blocks = _BLOCKS if size >= _MANY else 1
    edges = [size * i // blocks for i in range(blocks + 1)]
    rows = [product("mp,np->mn", x[a:b], x[:b]) for a, b in itertools.pairwise(edges)]
    if blocks == 1:
        return rows[0]
    return mirrored(rows, edges)


def _each(function, *stacks: Array) -> Array:
    """function of every layer's matrices at full precision; one layer's own as 2-d."""
    with jax.default_matmul_precision("highest"):
        if stacks[0].shape[0] > 1:
            return jax.vmap(function)(*stacks)
        return function(*(stack[0] for stack in stacks))[None]


def _over_positions(of, x: Array, g: Array) -> Array:
    """Σ_lt of(((x_lt, x_l), (g_lt, g_l))), one term alive at a time.

    x is [L, N, T, ...] and g [L, K, N, T, O].
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
