"""Experts: a matrix looked up for every example, and then multiplied.

    z_n = x_n W_{e(n)},     W [E, I, O]

Looked at alone, the lookup reads rows of I O numbers, whose second moment has (I O)²
entries. Looked at with the product that follows, it is E dense layers, each of which
sees the examples sent to it: x and g are zero for the others, as if all experts worked
on all examples and the results were masked. What differs is the mean of x xᵀ, which is
over the rows that reach the expert. Where the factors of the table are smaller, as they
are of vectors that are looked up and multiplied, it stays a table.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Sequence

import jax.numpy as jnp
from jaxtyping import Float

from natgrad.layers.dense import met_axes
from natgrad.layers.embedding import LookupUse
from natgrad.layers.rows import (
    EXAMPLE,
    INPUT,
    OUTPUT,
    POSITION,
    Piece,
    Rows,
    arrange,
    contract,
    pieces_of,
    positions,
)
from natgrad.layers.uses import Scale, Site, Use, require
from natgrad.layers.views import Atom, View, count
from natgrad.typing import Array


@dataclasses.dataclass(frozen=True)
class RoutedRows(Rows):
    """Rows each of which belongs to one matrix of the batch, and is zero in the others.

    Attributes:
        sent: one where a row belongs to a matrix, else zero, [batch..., N, T].
    """

    sent: Float[Array, "*batch N T"] = dataclasses.field(kw_only=True)

    def number(
        self, weights: Float[Array, " N"] | None = None
    ) -> Float[Array, "*shape"]:
        """How many rows each matrix has, weighted by example: [batch...]."""
        each = jnp.sum(self.sent, axis=-1)
        weights = jnp.ones(each.shape[-1:], each.dtype) if weights is None else weights
        return contract("...n,n->...", each, weights)

    def reduced(self) -> Rows:
        """Averages and sums over the positions that belong to a matrix."""
        count = jnp.sum(self.sent, axis=-1, keepdims=True)
        mean = jnp.sum(self.x, -2) / jnp.maximum(count, 1)
        return dataclasses.replace(
            self,
            x=mean[..., None, :],
            g=jnp.sum(self.g, axis=-2, keepdims=True),
            sent=jnp.minimum(count, 1),
        )


@dataclasses.dataclass(frozen=True)
class RoutedUse(Use):
    """A `dot_general` of looked-up matrices with something else.

    Attributes:
        lookup: the lookup.
        x_pieces, g_pieces, index_pieces: what the axes of the other operand, the result
            and the indices hold; after the axes come positions that they are repeated
            over.
    """

    lookup: LookupUse
    x_pieces: tuple[Piece, ...]
    g_pieces: tuple[Piece, ...]
    index_pieces: tuple[Piece, ...]

    @property
    def routed(self) -> bool:
        """Does each row belong to one matrix of the batch?"""
        return True

    def rows(self, operands: Sequence[Array], scale: Scale, g: Array) -> Rows:
        """X and G of each expert, zero where a row was not sent to it.

        Args:
            operands: the operands of the product.
            scale: (None, the operands of the lookup, what its table was multiplied by).
            g: the gradient of the product.

        Returns:
            X [E, N, T, I] and G [E, N, T, O] for E experts.
        """
        _, looked_up, factor = scale
        x = operands[1 - self.operand].astype(g.dtype)
        x = x if factor is None else x * factor.astype(g.dtype)
        x = arrange(_repeated(x, self.x_pieces), self.x_pieces, ())
        g = arrange(g, self.g_pieces, ())
        one = (*self.index_pieces, Piece(INPUT, 1))
        index = _repeated(self.lookup.index(looked_up), one)
        index = arrange(index, one, ())[None, ..., 0]
        experts = jnp.arange(self.lookup.table)[:, None, None]
        sent = (index == experts).astype(g.dtype)
        mask = sent[..., None]
        return RoutedRows(
            mask * x[None], mask * g[None], separate=self.separate, sent=sent
        )


def _repeated(array: Array, pieces: Sequence[Piece]) -> Array:
    """The array with the axes it lacks, which come last."""
    shape = [piece.size for piece in pieces]
    lacking = math.prod(shape) // max(array.size, 1)
    return jnp.broadcast_to(array.reshape(-1, 1), (array.size, lacking))


def _digits(pieces: Sequence[Piece]) -> list[tuple[str, int]]:
    return [(piece.holds, piece.size) for piece in pieces if piece.size > 1]


@dataclasses.dataclass(frozen=True)
class _LookedUp:
    """The result of a lookup, as an operand of a product sees it.

    Its axes are those of the result of the lookup: some run over lookups (`spots`), the
    others over the entries of a matrix. An axis of the operand is one or more of them.
    """

    lookup: LookupUse
    view: View
    spots: dict[int, tuple[Piece, ...]]

    @classmethod
    def of(cls, site: Site, lookup: LookupUse) -> _LookedUp:
        return cls(lookup, site.view, dict(lookup.spots))

    def axes(self, axis: int) -> list[int]:
        """The axes of the looked-up array that an axis of the operand consists of."""
        atoms, sizes = self.view.axes[axis], self.lookup.result.shape
        uncut = all(a.step == 1 and a.size == sizes[a.axis] for a in atoms)
        require(uncut, "the looked-up matrices are cut")
        return [a.axis for a in atoms]

    def entries(self, axis: int, holds: str) -> list[Piece]:
        """The pieces of an axis that runs over entries of the matrices."""
        pieces = []
        for a in self.axes(axis):
            require(a not in self.spots, "it is summed over lookups")
            pieces += pieces_of(self.lookup.result.axes[a], holds, (a,))
        return pieces

    def lookups(self, axis: int) -> list[Piece]:
        """The pieces of an axis that runs over lookups."""
        axes = self.axes(axis)
        inside = all(a in self.spots for a in axes)
        require(inside, "its matrices are used by entries")
        return [piece for a in axes for piece in self.spots[a]]

    def free(self, axis: int) -> list[Piece]:
        """The pieces of an axis that the product keeps: lookups, or columns."""
        over = {a in self.spots for a in self.axes(axis)}
        require(len(over) <= 1, "lookups and entries are merged")
        return self.lookups(axis) if over == {True} else self.entries(axis, OUTPUT)

    def atoms(self, axes: Iterable[int]) -> list[Atom]:
        """The atoms of the table that these axes of the operand walk."""
        result = self.lookup.result.axes
        inside = [a for axis in axes for a in self.axes(axis) if a not in self.spots]
        return [atom for a in inside for atom in result[a]]


def match(site: Site, lookup: LookupUse) -> RoutedUse:
    """Reads a product of looked-up matrices with something else.

    Args:
        site: a `dot_general`, whose view is of the result of the lookup.
        lookup: the lookup.

    Returns:
        The use of the table as one matrix for each of its rows.

    Raises:
        NotUnderstoodError: the product is not one matrix for every example, or the
            table has smaller factors as it is.
    """
    require(not lookup.batch and lookup.separate, "the lookup is not one an example")
    require(len(lookup.inputs) == 1 and lookup.table > 1, "the table is cut")
    own, looked_up = site.operand, _LookedUp.of(site, lookup)
    meets, beside, columns = met_axes(site)
    x_pieces, rest = _other_pieces(site, looked_up, meets, beside)
    shared = site.params["dimension_numbers"][1][own]
    tail = [piece for axis in columns for piece in looked_up.free(axis)]
    lead = [piece for axis in shared for piece in looked_up.lookups(axis)]
    g_pieces = [*lead, *(tail + rest if own == 0 else rest + tail)]
    places = [piece for piece in g_pieces if piece.holds in (EXAMPLE, POSITION)]
    along = sum(piece.holds == EXAMPLE for piece in places)
    require(along == 1 or site.size == 1, "its rows are not one an example")
    index_pieces = [piece for _, pieces in lookup.spots for piece in pieces]
    rows = looked_up.atoms(meets.values())
    outputs = looked_up.atoms(columns)
    _require_smaller(count(rows), count(outputs), lookup.table)
    own_site = dataclasses.replace(site, view=lookup.view)
    return RoutedUse(
        **own_site.fields(lookup.inputs, rows, outputs),
        kind="dense",
        result=None,
        mixed=None,
        positions=math.prod(p.size for p in places if p.holds == POSITION),
        lookup=lookup,
        x_pieces=(*x_pieces, *(p for p in places if p not in x_pieces)),
        g_pieces=tuple(g_pieces),
        index_pieces=(*index_pieces, *(p for p in places if p not in index_pieces)),
    )


def _other_pieces(
    site: Site, looked_up: _LookedUp, meets: dict[int, int], beside: dict[int, int]
) -> tuple[list[Piece], list[Piece]]:
    """The pieces of the other operand, and of its axes that the product keeps."""
    other, pieces, rest = 1 - site.operand, [], []
    for axis, size in enumerate(site.shape(other)):
        if axis in meets:
            pieces += looked_up.entries(meets[axis], INPUT)
            continue
        example = site.example_along(other, axis)
        own = positions(size, example, site.size, (100 + axis,))
        if axis not in beside:
            pieces, rest = pieces + own, rest + own
            continue
        lookups = looked_up.lookups(beside[axis])
        alike = example is None or _digits(own) == _digits(lookups)
        require(alike, "inputs and indices hold the examples otherwise")
        pieces += lookups
    return pieces, rest


def _require_smaller(inputs: int, outputs: int, experts: int) -> None:
    """Refuses matrices whose factors are larger than those of the table of them."""
    smaller = experts * (inputs**2 + outputs**2) <= experts + (inputs * outputs) ** 2
    require(smaller, "as a table it has smaller factors")
