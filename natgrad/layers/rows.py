"""A use of a parameter, read as rows: inputs x and output gradients g.

Whatever the op, its parameter's gradient is Σ_{n,t} x_{nt} g_{nt}ᵀ over examples n and
the positions t at which one example uses it, once axes are moved into the order

    X [batch..., N, T, I]       G [batch..., N, T, O]       gradient [batch..., I, O].

`batch` are axes of the parameter that index separate matrices (heads, groups, members).
A bias adds a row of ones to Xᵀ, the *homogeneous* coordinate, on the uses that add it.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from natgrad.layers.views import Atom, natural
from natgrad.typing import Array

# What a piece of an axis holds.
BATCH, INPUT, OUTPUT, EXAMPLE, POSITION, SUMMED = "BIONTS"


@dataclasses.dataclass(frozen=True)
class Piece:
    """A piece of an axis: what it holds, its size, its place among its like."""

    holds: str
    size: int
    key: tuple = ()
    flipped: bool = False


def pieces_of(atoms: Sequence[Atom], holds: str, key: tuple) -> list[Piece]:
    """One piece an atom; the repeated ones hold positions, or are summed over."""
    otherwise = SUMMED if holds in (INPUT, OUTPUT) else POSITION
    return [
        Piece(otherwise, atom.size, (*key, i))
        if atom.repeated
        else Piece(holds, atom.size, (atom.axis, -abs(atom.step)), atom.step < 0)
        for i, atom in enumerate(atoms)
    ]


def positions(size: int, example, examples: int | None, key: tuple) -> list[Piece]:
    """An axis that the parameter does not have: positions, and perhaps examples."""
    if example is None:
        return [Piece(POSITION, size, (*key, 0))]
    return [
        Piece(POSITION, example.outer, (*key, 0)),
        Piece(EXAMPLE, examples),
        Piece(POSITION, example.inner, (*key, 1)),
    ]


def arrange(array: Array, pieces: Sequence[Piece], batch: Sequence[int]) -> Array:
    """The array [pieces...] as [batch..., N, T, I or O], summed over SUMMED pieces."""
    array = array.reshape([piece.size for piece in pieces])
    flips = [axis for axis, piece in enumerate(pieces) if piece.flipped]
    array = jnp.flip(array, flips) if flips else array
    summed = [axis for axis, piece in enumerate(pieces) if piece.holds == SUMMED]
    array = jnp.sum(array, summed) if summed else array
    kept = [piece for piece in pieces if piece.holds != SUMMED]
    groups = [
        sorted(
            (i for i, piece in enumerate(kept) if piece.holds in holds),
            key=lambda i: kept[i].key,
        )
        for holds in (BATCH, EXAMPLE, POSITION, INPUT + OUTPUT)
    ]
    sizes = [math.prod(kept[i].size for i in group) for group in groups[1:]]
    return array.transpose([i for group in groups for i in group]).reshape(
        (*batch, *sizes)
    )


def batch_shape(atoms: Sequence[Atom]) -> tuple[int, ...]:
    """The batch axes of rows whose batch pieces walk these atoms."""
    return tuple(atom.size for atom in natural(atoms))


def contract(subscripts: str, *operands: Array) -> Array:
    """An einsum at full precision."""
    return jnp.einsum(subscripts, *operands, precision=jax.lax.Precision.HIGHEST)


@dataclasses.dataclass(frozen=True)
class Rows:
    """Dense rows of one use.

    Attributes:
        x: inputs [batch..., N, T, I]; None for lookups.
        g: gradients of the outputs [batch..., N, T, O].
        bias: whether the use adds the block's bias; None if the block has none.
        separate: whether the N axis really separates examples.
        swapped: whether the use reads the block's matrix transposed; x and g are then
            already exchanged, and x is the gradient.
    """

    x: Array | None
    g: Array
    bias: bool | None = None
    separate: bool = True
    swapped: bool = False

    @property
    def homogeneous(self) -> Array:
        """X with the bias's coordinate: [batch..., N, T, I (+1)]."""
        if self.bias is None:
            return self.x
        one = jnp.full((*self.x.shape[:-1], 1), float(self.bias), self.x.dtype)
        return jnp.concatenate([self.x, one], axis=-1)

    @property
    def count(self) -> int:
        """N T, the number of rows."""
        return self.x.shape[-3] * self.x.shape[-2]

    def number(self, weights: Array | None = None) -> Array | float:
        """How many rows there are, weighted by example: one for all matrices."""
        if weights is None:
            return float(self.count)
        return jnp.sum(weights) * (self.count / weights.shape[0])

    def reduced(self) -> Rows:
        """Inputs averaged, gradients summed over the positions: T becomes 1."""
        return dataclasses.replace(
            self,
            x=jnp.mean(self.x, axis=-2, keepdims=True),
            g=jnp.sum(self.g, axis=-2, keepdims=True),
        )

    def input_moment(self) -> Array:
        """Σ x xᵀ with the bias's coordinate, [batch..., I(+1), I(+1)]."""
        # Of few rows a column of ones is less to write than a row and a column of XᵀX.
        few = self.count < self.x.shape[-1]
        x = self.homogeneous if few else self.x
        x = x.reshape((*x.shape[:-3], -1, x.shape[-1]))
        moment = contract("...ni,...nj->...ij", x, x)
        if self.bias is None or few:
            return moment
        # [[XᵀX, Xᵀ1], [1ᵀX, n]] without writing a column of ones.
        edge = float(self.bias) * jnp.sum(x, axis=-2)[..., None]
        corner = jnp.full_like(edge[..., :1, :], float(self.bias) * self.count)
        lower = jnp.concatenate([jnp.swapaxes(edge, -1, -2), corner], axis=-1)
        return jnp.concatenate(
            [jnp.concatenate([moment, edge], axis=-1), lower], axis=-2
        )

    def output_moment(self) -> Array:
        """Σ g gᵀ, [batch..., O, O]."""
        g = self.g.reshape((*self.g.shape[:-3], -1, self.g.shape[-1]))
        return contract("...no,...np->...op", g, g)

    def gradient(self) -> Array:
        """Σ x gᵀ with the bias's row, [batch..., I(+1), O]."""
        matrix = contract("...nti,...nto->...io", self.x, self.g)
        if self.bias is None:
            return matrix
        row = float(self.bias) * jnp.sum(self.g, axis=(-3, -2))
        return jnp.concatenate([matrix, row[..., None, :]], axis=-2)

    def per_example(self) -> Array:
        """V_n = Σ_t x gᵀ, [N, batch..., I(+1), O]."""
        each = contract("...nti,...nto->...nio", self.homogeneous, self.g)
        return jnp.moveaxis(each, -3, 0)

    def squares(self) -> Array:
        """Σ_n V_n², entry by entry, [batch..., I(+1), O]."""
        if self.x.shape[-2] == 1:
            squared = dataclasses.replace(self, x=self.x**2, g=self.g**2)
            return squared.gradient()
        return jnp.sum(self.per_example() ** 2, axis=0)

    def projected_squares(self, left: Array | None, right: Array) -> Array:
        """Σ_n (Lᵀ V_n R)², with bases L [..., I(+1), i] and R [..., O, o]."""
        x = contract("...nti,...ij->...ntj", self.homogeneous, left)
        g = contract("...nto,...op->...ntp", self.g, right)
        return Rows(x, g).squares()


@dataclasses.dataclass(frozen=True)
class LookupRows(Rows):
    """Rows of a table lookup: each x is a row of the identity, kept as its index.

    Attributes:
        index: the row looked up, [N, T]; outside the table it counts for nothing.
        table: I, the number of rows of the table.
        dense: whether the block's input moment is kept whole rather than diagonal.
    """

    index: Array | None = None
    table: int = 0
    dense: bool = False

    @property
    def homogeneous(self) -> Array:
        """The rows written out: [N, T, I]."""
        return jax.nn.one_hot(self.index, self.table, dtype=self.g.dtype)

    @property
    def count(self) -> int:
        """N T, the number of lookups."""
        return self.index.size

    def _written(self) -> Rows:
        return Rows(self.homogeneous, self.g, None, self.separate, self.swapped)

    def reduced(self) -> Rows:
        """Inputs averaged, gradients summed over the positions: T becomes 1."""
        return self._written().reduced()

    def input_moment(self) -> Array:
        """How often each row was looked up: [I], or as a diagonal matrix [I, I]."""
        ones = jnp.ones(self.index.shape, self.g.dtype)
        counts = self._sum(ones.reshape(-1))
        return jnp.diag(counts) if self.dense else counts

    def gradient(self) -> Array:
        """The gradients of each row, added up, [I, O]."""
        return self._sum(self.g.reshape((-1, self.g.shape[-1])))

    def per_example(self) -> Array:
        """V_n, [N, I, O]."""
        return self._written().per_example()

    def squares(self) -> Array:
        """Σ_n V_n², [I, O]: positions of one example at one row are added first."""
        same = self.index[:, :, None] == self.index[:, None, :]
        merged = contract("nst,nto->nso", same.astype(self.g.dtype), self.g)
        # Σ_s g_s · (Σ_t g_t of the same row) is the square of the row's sum.
        products = self.g * merged
        return self._sum(products.reshape((-1, self.g.shape[-1])))

    def projected_squares(self, left: Array | None, right: Array) -> Array:
        """Σ_n (Lᵀ V_n R)²; a diagonal L is given as None, the identity."""
        g = contract("nto,op->ntp", self.g, right)
        if left is None:
            return dataclasses.replace(self, g=g).squares()
        x = left.at[self.index].get(mode="fill", fill_value=0.0)
        return Rows(x, g).squares()

    def _sum(self, values: Array) -> Array:
        total = jnp.zeros((self.table, *values.shape[1:]), values.dtype)
        return total.at[self.index.reshape(-1)].add(values, mode="drop")
