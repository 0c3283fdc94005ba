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
import functools
from collections.abc import Sequence
from typing import Any, Self

import jax
import jax.numpy as jnp
from jaxtyping import Float

from natgrad.solvers.row_products import (
    each_layer,
    over_positions,
    product,
    row_products,
)
from natgrad.tree import metric_pytree
from natgrad.typing import Array

# Numbers in a B that may be written out for a QR decomposition.
WRITTEN_OUT = 2**24
# A block's matrix as [L, I, O] and, if it has a bias, that row as [L, 1, O].
Parts = Sequence[Float[Array, "L I O"]]


class JacobianBlock(abc.ABC):
    """The columns of B that belong to one block."""

    @property
    @abc.abstractmethod
    def columns(self) -> tuple[int, int]:
        """(K, N): score columns and examples."""

    @abc.abstractmethod
    def push(self, v: Parts) -> Float[Array, "K N"]:
        """B v.

        Args:
            v: [L, I, O] and, if there is a bias, [L, 1, O].
        """

    @abc.abstractmethod
    def pull(self, u: Float[Array, "K N"]) -> Parts:
        """Bᵀ u, [L, I, O] and, if there is a bias, [L, 1, O].

        Args:
            u: one number a row.
        """

    @abc.abstractmethod
    def gram(self, other: Any = None) -> Float[Array, "K N K n"]:
        """B Bᵀ.

        Args:
            other: B' for n other examples; B B'ᵀ then.
        """

    @abc.abstractmethod
    def explicit(self) -> Sequence[Float[Array, "K N L I O"]]:
        """B itself, [K, N, L, I, O] and, if there is a bias, [K, N, L, 1, O]."""

    def part_shapes(self) -> list[jax.ShapeDtypeStruct]:
        """The shapes of what `push` takes and `pull` gives."""
        dtype = jax.tree.leaves(self)[0].dtype
        u = jax.ShapeDtypeStruct(self.columns, dtype)
        return list(jax.eval_shape(self.pull, u))

    def astype(self, dtype: Any) -> Self:
        """The same in another dtype.

        Args:
            dtype: a floating one.
        """
        return jax.tree.map(lambda leaf: leaf.astype(dtype), self)

    @property
    def most_written_out(self) -> int:
        """Numbers that B may have to be written out for a QR decomposition."""
        return WRITTEN_OUT

    def squares(self) -> Parts:
        """The diagonal of Bᵀ B, [L, I, O] and, if there is a bias, [L, 1, O]."""
        return [jnp.sum(part**2, axis=(0, 1)) for part in self.explicit()]


@metric_pytree("bias")
class LinearBlock(JacobianBlock):
    """Inputs and output gradients of a layer's one use.

    Attributes:
        x: the inputs X.
        g: the output gradients G.
        bias: whether the matrix has a last row whose input is 1.
    """

    x: Float[Array, "L N T I"]
    g: Float[Array, "K L N T O"]
    bias: bool

    @property
    def columns(self) -> tuple[int, int]:
        """(K, N)."""
        return self.g.shape[0], self.g.shape[2]

    @property
    def homogeneous(self) -> Float[Array, "L N T i"]:
        """X with the bias's coordinate."""
        one = jnp.ones((*self.x.shape[:-1], int(self.bias)), self.x.dtype)
        return jnp.concatenate([self.x, one], axis=-1)

    def push(self, v: Parts) -> Float[Array, "K N"]:
        """Σ_t ⟨x V + bias, g⟩; arguments as in `JacobianBlock`."""
        y = each_layer(jnp.matmul, self._rows(self.x), v[0])
        y = y.reshape((*self.x.shape[:-1], -1))
        if self.bias:
            y = y + v[1][:, None]
        return jnp.sum(self.g * y[None], axis=(1, 3, 4))

    def pull(self, u: Float[Array, "K N"]) -> Parts:
        """Σ_n,t x (u g)ᵀ and Σ_n,t u g; arguments as in `JacobianBlock`."""
        g = jnp.sum(self.g * u[:, None, :, None, None], axis=0)
        rows = self._rows(self.x), self._rows(g)
        matrix = each_layer(lambda x, g: jnp.matmul(x.T, g), *rows)
        return [matrix, jnp.sum(g, axis=(1, 2))[:, None]] if self.bias else [matrix]

    def gram(self, other: Any = None) -> Float[Array, "K N K n"]:
        """Σ_l,t,s (X Xᵀ + bias) ∘ (G Gᵀ), one l and t at a time."""
        other = self if other is None else other

        def of_position(pairs):
            (x, y), (g, h) = pairs
            inner = product("ni,msi->nms", x, y) + float(self.bias)
            outer = product("kno,jmso->knjms", g, h)
            return jnp.sum(inner[None, :, None] * outer, axis=-1)

        return over_positions(
            of_position, (self.x, self.by_layer), (other.x, other.by_layer)
        )

    @property
    def by_layer(self) -> Float[Array, "L K N T O"]:
        """G with the layers first."""
        return jnp.moveaxis(self.g, 1, 0)

    def explicit(self) -> Sequence[Float[Array, "K N L I O"]]:
        """Σ_t x gᵀ and Σ_t g for each row."""
        matrix = product("lnti,klnto->knlio", self.x, self.g)
        if not self.bias:
            return [matrix]
        return [matrix, jnp.einsum("klnto->knlo", self.g)[..., None, :]]

    def squares(self) -> Parts:
        """The diagonal of Bᵀ B; from X² and G² where each example has one position."""
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
        index: whole numbers in floating dtype; those outside the table count for
            nothing.
        g: the output gradients G.
        table: I, the number of rows of the table.
    """

    index: Float[Array, "L N T"]
    g: Float[Array, "K L N T O"]
    table: int

    @property
    def columns(self) -> tuple[int, int]:
        """(K, N)."""
        return self.g.shape[0], self.g.shape[2]

    def push(self, v: Parts) -> Float[Array, "K N"]:
        """Σ_t ⟨v_index, g⟩; arguments as in `JacobianBlock`."""

        def look_up(table, index):
            return table.at[index].get(mode="fill", fill_value=0)

        rows = jax.vmap(look_up)(v[0], self.rows_read)
        return jnp.sum(self.g * rows[None], axis=(1, 3, 4))

    def pull(self, u: Float[Array, "K N"]) -> Parts:
        """The gradients u g, added up at their rows; arguments as in the base."""

        def add(table, index, g):
            return table.at[index].add(g, mode="drop")

        g = jnp.sum(self.g * u[:, None, :, None, None], axis=0)
        zeros = jnp.zeros((g.shape[0], self.table, g.shape[-1]), g.dtype)
        return [jax.vmap(add)(zeros, self.rows_read, g)]

    def gram(self, other: Any = None) -> Float[Array, "K N K n"]:
        """Σ_t,s [same row] ⟨g_t, g_s⟩."""
        other = self if other is None else other

        def of_position(pairs):
            (i, j), (g, h) = pairs
            same = (i[:, None, None] == j[None]).astype(g.dtype)
            outer = product("kno,jmso->knjms", g, h)
            return jnp.sum(same[None, :, None] * outer, axis=-1)

        both = [
            (block.rows_read, jnp.moveaxis(block.valid, 1, 0))
            for block in (self, other)
        ]
        return over_positions(of_position, *both)

    @property
    def valid(self) -> Float[Array, "K L N T O"]:
        """G, 0 where the index lies outside the table."""
        inside = self.rows_read < self.table
        return jnp.where(inside[None, ..., None], self.g, 0)

    def explicit(self) -> Sequence[Float[Array, "K N L I O"]]:
        """The rows with the lookups written out."""
        x = jax.nn.one_hot(self.rows_read, self.table, dtype=self.g.dtype)
        return [product("lnti,klnto->knlio", x, self.g)]

    @property
    def rows_read(self) -> Array:
        """The index as whole numbers; those below the table go above it, none wraps."""
        index = self.index.astype(jnp.int32)
        return jnp.where(index < 0, self.table, index)


@metric_pytree()
class DenseRows(JacobianBlock):
    """The rows of B.

    Attributes:
        rows: [K, N, L, I, O] and, if there is a bias, [K, N, L, 1, O].
    """

    rows: tuple[Float[Array, "K N L I O"], ...]

    @property
    def columns(self) -> tuple[int, int]:
        """(K, N)."""
        k, n = self.rows[0].shape[:2]
        return k, n

    def push(self, v: Parts) -> Float[Array, "K N"]:
        """Σ rows v; arguments as in `JacobianBlock`."""
        pairs = zip(self._flat, v, strict=True)
        terms = [product("mp,p->m", rows, part.reshape(-1)) for rows, part in pairs]
        return functools.reduce(jnp.add, terms).reshape(self.columns)

    def pull(self, u: Float[Array, "K N"]) -> Parts:
        """Σ_kn u rows; arguments as in `JacobianBlock`."""
        u, pairs = u.reshape(-1), zip(self._flat, self.rows, strict=True)
        return [
            product("mp,m->p", flat, u).reshape(rows.shape[2:]) for flat, rows in pairs
        ]

    def gram(self, other: Any = None) -> Float[Array, "K N K n"]:
        """The inner products of the rows."""
        columns = (self if other is None else other).columns
        if other is None:
            terms = list(map(row_products, self._flat))
        else:
            pairs = zip(self._flat, other._flat, strict=True)
            terms = [product("mp,np->mn", a, b) for a, b in pairs]
        return functools.reduce(jnp.add, terms).reshape((*self.columns, *columns))

    def explicit(self) -> Sequence[Float[Array, "K N L I O"]]:
        """The rows."""
        return self.rows

    @property
    def _flat(self) -> list[Float[Array, "M P"]]:
        """As matrices, of which XLA's products need no transposed copy."""
        k, n = self.columns
        return [rows.reshape((k * n, -1)) for rows in self.rows]
