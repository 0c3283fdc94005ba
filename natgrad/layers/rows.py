"""A use of a parameter, read as rows: inputs x and output gradients g.

Whatever the op, its parameter's gradient is Σ_{n,t} x_{nt} g_{nt}ᵀ over the examples n
and the positions t at which one example uses it, once axes are moved into the order

    X [batch..., N, T, I]       G [batch..., N, T, O]       gradient [batch..., I, O].

`batch` are axes of the parameter that index separate matrices (heads, groups, members).
A bias adds a row of ones to Xᵀ, the *homogeneous* coordinate, on the uses that add it.
In shapes `i` stands for I rows, or I + 1 where the block has a bias.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Float, Shaped

from natgrad.layers.examples import ExampleAxis
from natgrad.layers.views import Atom
from natgrad.typing import Array

# What a piece of an axis holds.
BATCH, INPUT, OUTPUT, EXAMPLE, POSITION, SUMMED = "BIONTS"


@dataclasses.dataclass(frozen=True)
class Piece:
    """A piece of an axis.

    Attributes:
        holds: what its entries are: one of the letters above.
        size: how many entries it has.
        key: sorts the pieces of one letter: the smaller key is the slower digit.
        flipped: whether it runs against the order of the parameter.
    """

    holds: str
    size: int
    key: tuple = ()
    flipped: bool = False


def pieces_of(atoms: Sequence[Atom], holds: str, key: tuple) -> list[Piece]:
    """The pieces of an axis that a view describes, one for each atom.

    Args:
        atoms: the atoms of the axis.
        holds: what an atom of the parameter holds.
        key: the first entries of a repeated atom's key.

    Returns:
        The pieces in the order of the atoms. Repeated atoms hold positions where the
        others are batch axes, and are summed over where they are inputs or outputs.
    """
    otherwise = SUMMED if holds in (INPUT, OUTPUT) else POSITION
    return [
        Piece(otherwise, atom.size, (*key, i))
        if atom.repeated
        else Piece(holds, atom.size, (atom.axis, -abs(atom.step)), atom.step < 0)
        for i, atom in enumerate(atoms)
    ]


def positions(
    size: int, example: ExampleAxis | None, examples: int | None, key: tuple
) -> list[Piece]:
    """The pieces of an axis that the parameter does not have.

    Args:
        size: the length of the axis.
        example: the example axis, where it is this one; None where it is not.
        examples: N; known where `example` is given.
        key: the first entries of the pieces' keys.

    Returns:
        One piece of positions; or outer positions, examples and inner positions.
    """
    if example is None:
        return [Piece(POSITION, size, (*key, 0))]
    assert examples is not None  # nothing has an example axis where there are none
    return [
        Piece(POSITION, example.outer, (*key, 0)),
        Piece(EXAMPLE, examples),
        Piece(POSITION, example.inner, (*key, 1)),
    ]


def arrange(
    array: Shaped[Array, "*shape"], pieces: Sequence[Piece], batch: Sequence[int]
) -> Shaped[Array, "*batch N T D"]:
    """Moves the axes of an operand into the order of rows.

    Args:
        array: an array whose axes, one after the other, consist of the pieces.
        pieces: what the axes hold, slowest first.
        batch: the sizes of the batch axes of the result.

    Returns:
        The array as [batch..., N, T, D], where D is I or O. SUMMED pieces are summed
        over.
    """
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


def contract(
    subscripts: str, *operands: Float[Array, "*shape"]
) -> Float[Array, "*shape"]:
    """The einsum of `operands` by `subscripts`, at full precision on every device."""
    return jnp.einsum(subscripts, *operands, precision=jax.lax.Precision.HIGHEST)


@dataclasses.dataclass(frozen=True)
class Rows:
    """The rows of one use, and the sums that statistics take over them.

    Sums over examples are raw, and in the units of x and g. With a bias, V_n has the
    bias's gradient as its last row.

    Attributes:
        x: inputs [batch..., N, T, I]; of lookups the index [N, T].
        g: gradients of the outputs [batch..., N, T, O].
        bias: whether the use adds the block's bias; None if the block has none.
        separate: whether the N axis really separates examples.
        swapped: whether the use reads the block's matrix transposed; x and g are then
            already exchanged, and x is the gradient.
    """

    x: Shaped[Array, "*batch N T I"]
    g: Float[Array, "*batch N T O"]
    bias: bool | None = None
    separate: bool = True
    swapped: bool = False

    @property
    def homogeneous(self) -> Float[Array, "*batch N T i"]:
        """X with the bias's coordinate: [batch..., N, T, I (+1)]."""
        if self.bias is None:
            return self.x
        one = jnp.full((*self.x.shape[:-1], 1), float(self.bias), self.x.dtype)
        return jnp.concatenate([self.x, one], axis=-1)

    @property
    def count(self) -> int:
        """N T, the number of rows."""
        return self.x.shape[-3] * self.x.shape[-2]

    def number(
        self, weights: Float[Array, " N"] | None = None
    ) -> Float[Array, "*batch"] | float:
        """How many rows there are.

        Args:
            weights: a weight for each example; None counts each once.

        Returns:
            Σ_n w_n T: one number for all matrices, or [batch...] where each row belongs
            to one matrix.
        """
        if weights is None:
            return float(self.count)
        return jnp.sum(weights) * (self.count / weights.shape[0])

    def reduced(self) -> Rows:
        """Rows with inputs averaged and gradients summed over positions: T = 1."""
        return dataclasses.replace(
            self,
            x=jnp.mean(self.x, axis=-2, keepdims=True),
            g=jnp.sum(self.g, axis=-2, keepdims=True),
        )

    def input_moment(self) -> Float[Array, "*shape"]:
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

    def output_moment(self) -> Float[Array, "*batch O O"]:
        """Σ g gᵀ over examples and positions."""
        g = self.g.reshape((*self.g.shape[:-3], -1, self.g.shape[-1]))
        return contract("...no,...np->...op", g, g)

    def gradient(self) -> Float[Array, "*batch i O"]:
        """Σ x gᵀ over examples and positions, with the bias's row."""
        matrix = contract("...nti,...nto->...io", self.x, self.g)
        if self.bias is None:
            return matrix
        row = float(self.bias) * jnp.sum(self.g, axis=(-3, -2))
        return jnp.concatenate([matrix, row[..., None, :]], axis=-2)

    def per_example(self) -> Float[Array, "N *batch i O"]:
        """V_n = Σ_t x gᵀ, the gradient of every example."""
        each = contract("...nti,...nto->...nio", self.homogeneous, self.g)
        return jnp.moveaxis(each, -3, 0)

    def squares(self) -> Float[Array, "*batch i O"]:
        """Σ_n V_n², entry by entry."""
        if self.x.shape[-2] == 1:
            squared = dataclasses.replace(self, x=self.x**2, g=self.g**2)
            return squared.gradient()
        return jnp.sum(self.per_example() ** 2, axis=0)

    def projected_squares(
        self, left: Float[Array, "*batch i j"] | None, right: Float[Array, "*batch O o"]
    ) -> Float[Array, "*batch j o"]:
        """Σ_n (Lᵀ V_n R)², entry by entry.

        Args:
            left: L, the basis of the inputs; None for the identity.
            right: R, the basis of the outputs.

        Returns:
            The sum of squares over the examples.
        """
        x = self.homogeneous
        x = x if left is None else contract("...nti,...ij->...ntj", x, left)
        g = contract("...nto,...op->...ntp", self.g, right)
        return Rows(x, g).squares()
