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
import itertools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Float

from natgrad import tree
from natgrad.solvers.dense import mirrored
from natgrad.solvers.spectral import HIGHEST
from natgrad.tree import metric_pytree
from natgrad.typing import Array

# Block rows of a product of rows with themselves, and from how many rows on.
_BLOCKS, _MANY = 4, 512
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
    def gram(self) -> Float[Array, "K N K N"]:
        """B Bᵀ."""

    @abc.abstractmethod
    def explicit(self) -> Sequence[Float[Array, "K N L I O"]]:
        """B itself, [K, N, L, I, O] and, if there is a bias, [K, N, L, 1, O]."""

    def squares(self) -> Parts:
        """The diagonal of Bᵀ B, [L, I, O] and, if there is a bias, [L, 1, O]."""
        return [jnp.sum(part**2, axis=(0, 1)) for part in self.explicit()]


def product(subscripts: str, *operands: Array) -> Array:
    """An einsum at full precision, so that TF32 cannot touch a Gram matrix.

    Args:
        subscripts: as those of `jnp.einsum`.
        operands: arrays.
    """
    return jnp.einsum(subscripts, *operands, precision=HIGHEST)


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
        y = _each(jnp.matmul, self._rows(self.x), v[0])
        y = y.reshape((*self.x.shape[:-1], -1))
        if self.bias:
            y = y + v[1][:, None]
        return jnp.sum(self.g * y[None], axis=(1, 3, 4))

    def pull(self, u: Float[Array, "K N"]) -> Parts:
        """Σ_n,t x (u g)ᵀ and Σ_n,t u g; arguments as in `JacobianBlock`."""
        g = jnp.sum(self.g * u[:, None, :, None, None], axis=0)
        rows = self._rows(self.x), self._rows(g)
        matrix = _each(lambda x, g: jnp.matmul(x.T, g), *rows)
        return [matrix, jnp.sum(g, axis=(1, 2))[:, None]] if self.bias else [matrix]

    def gram(self) -> Float[Array, "K N K N"]:
        """Σ_l,t,s (X Xᵀ + bias) ∘ (G Gᵀ), one l and t at a time."""

        def of_position(pairs):
            (x, y), (g, h) = pairs
            inner = product("ni,msi->nms", x, y) + float(self.bias)
            outer = product("kno,jmso->knjms", g, h)
            return jnp.sum(inner[None, :, None] * outer, axis=-1)

        return _over_positions(of_position, self.x, jnp.moveaxis(self.g, 1, 0))

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

    def gram(self) -> Float[Array, "K N K N"]:
        """Σ_t,s [same row] ⟨g_t, g_s⟩."""
        index = self.rows_read
        valid = (index < self.table)[None, ..., None]
        g = jnp.moveaxis(jnp.where(valid, self.g, 0), 1, 0)

        def of_position(pairs):
            (i, j), (g, h) = pairs
            same = (i[:, None, None] == j[None]).astype(g.dtype)
            outer = product("kno,jmso->knjms", g, h)
            return jnp.sum(same[None, :, None] * outer, axis=-1)

        return _over_positions(of_position, index, g)

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
        pairs = zip(self.rows, v, strict=True)
        terms = [product("knlio,lio->kn", rows, part) for rows, part in pairs]
        return functools.reduce(jnp.add, terms)

    def pull(self, u: Float[Array, "K N"]) -> Parts:
        """Σ_kn u rows; arguments as in `JacobianBlock`."""
        return [product("knlio,kn->lio", rows, u) for rows in self.rows]

    def gram(self) -> Float[Array, "K N K N"]:
        """The inner products of the rows."""
        k, n = self.columns
        terms = [_row_products(rows.reshape((k * n, -1))) for rows in self.rows]
        return functools.reduce(jnp.add, terms).reshape((k, n, k, n))

    def explicit(self) -> Sequence[Float[Array, "K N L I O"]]:
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


def _each(function: Callable[..., Array], *stacks: Array) -> Array:
    """function of every layer's matrices at full precision; one layer's own as 2-d."""
    with jax.default_matmul_precision("highest"):
        if stacks[0].shape[0] > 1:
            return jax.vmap(function)(*stacks)
        return function(*(stack[0] for stack in stacks))[None]


def _over_positions(
    of_position: Callable[..., Array],
    x: Float[Array, "L N T ..."],
    g: Float[Array, "L K N T O"],
) -> Array:
    """Σ_lt of_position(((x_lt, x_l), (g_lt, g_l))), one term alive at a time."""
    layers, positions = x.shape[0], x.shape[2]

    def one_position(a, axis):
        shape = (layers * positions, *a.shape[1:axis], *a.shape[axis + 1 :])
        return jnp.moveaxis(a, axis, 1).reshape(shape)

    def all_positions(a):
        return jnp.repeat(a, positions, axis=0)

    terms = (
        (one_position(x, 2), all_positions(x)),
        (one_position(g, 3), all_positions(g)),
    )
    return tree.sum_over_chunks(
        lambda chunk: of_position(jax.tree.map(lambda a: a[0], chunk)), terms, 1
    )
