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
from collections.abc import Sequence
from typing import ClassVar

import jax.numpy as jnp

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
from natgrad.layers.uses import Site, Use, ordered, require
from natgrad.layers.views import Atom, count
from natgrad.typing import Array


@dataclasses.dataclass(frozen=True)
class RoutedRows(Rows):
    """Rows each of which belongs to one matrix of the batch, and is zero in the others.

    Attributes:
        sent: one where a row belongs to a matrix, [batch..., N, T].
    """

    sent: Array | None = None

    def number(self, weights: Array | None = None) -> Array:
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

    kind: ClassVar[str] = "dense"

    @property
    def routed(self) -> bool:
        """Does each row belong to one matrix of the batch?"""
        return True

    def rows(self, operands: Sequence[Array], scale: tuple, g: Array) -> Rows:
        """X and G of each expert, zero where a row was not sent to it.

        Args:
            operands: of the product.
            scale: (None, the operands of the lookup, what its table was multiplied by).
            g: gradient of the product.
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


def match(site: Site, lookup: LookupUse) -> RoutedUse:
    """Reads a `dot_general` of the result of a lookup, whose view is of that result."""
    require(not lookup.batch and lookup.separate, "the lookup is not one an example")
    require(len(lookup.inputs) == 1 and lookup.table > 1, "the table is cut")
    mine, other = site.operand, 1 - site.operand
    contracted, shared = site.params["dimension_numbers"]
    x_shape, result = site.shape(other), lookup.result.axes
    sizes = lookup.result.shape
    spots = dict(lookup.spots)

    def axes_of(atoms: Sequence[Atom]) -> list[int]:
        """The axes of the looked-up array that an axis of its view consists of."""
        whole = all(a.step == 1 and a.size == sizes[a.axis] for a in atoms)
        require(whole, "the looked-up matrices are cut")
        return [a.axis for a in atoms]

    def entries(axis: int, holds: str) -> list[Piece]:
        pieces = []
        for a in axes_of(site.view.axes[axis]):
            require(a not in spots, "it is summed over lookups")
            pieces += pieces_of(result[a], holds, (a,))
        return pieces

    def looked(axis: int) -> list[Piece]:
        found = axes_of(site.view.axes[axis])
        require(all(a in spots for a in found), "its matrices are used by entries")
        return [piece for a in found for piece in spots[a]]

    meets = dict(zip(contracted[other], contracted[mine], strict=True))
    beside = dict(zip(shared[other], shared[mine], strict=True))
    free = [a for a in range(len(x_shape)) if a not in meets | beside]
    example = site.example(other)
    at = lambda a: example if example is not None and example.axis == a else None
    own = {a: positions(x_shape[a], at(a), site.size, (100 + a,)) for a in free}
    x_pieces = []
    for a in range(len(x_shape)):
        if a in meets:
            x_pieces += entries(meets[a], INPUT)
        else:
            x_pieces += looked(beside[a]) if a in beside else own[a]
            require(
                a not in beside
                or at(a) is None
                or _digits(positions(x_shape[a], at(a), site.size, ()))
                == _digits(looked(beside[a])),
                "inputs and indices hold the examples otherwise",
            )
    kept = [
        a
        for a in range(len(site.view.axes))
        if a not in meets.values() and a not in beside.values()
    ]
    tail = []
    for axis in kept:
        held = axes_of(site.view.axes[axis])
        mixed = {a in spots for a in held}
        require(len(mixed) <= 1, "lookups and entries are merged")
        tail += looked(axis) if mixed == {True} else entries(axis, OUTPUT)
    rest = [piece for a in free for piece in own[a]]
    lead = [piece for axis in shared[mine] for piece in looked(axis)]
    g_pieces = [*lead, *(tail + rest if mine == 0 else rest + tail)]
    places = [piece for piece in g_pieces if piece.holds in (EXAMPLE, POSITION)]
    along = sum(piece.holds == EXAMPLE for piece in places)
    require(along == 1 or site.size == 1, "its rows are not one an example")
    index_pieces = [piece for _, pieces in lookup.spots for piece in pieces]
    lacking = lambda pieces: [p for p in places if p not in pieces]
    atoms = lambda axes: [
        atom
        for axis in axes
        for a in axes_of(site.view.axes[axis])
        for atom in result[a]
        if a not in spots
    ]
    rows, columns = atoms(meets.values()), atoms(kept)
    one, two, experts = count(rows), count(columns), lookup.table
    require(
        experts * (one**2 + two**2) <= experts + (one * two) ** 2,
        "as a table it has smaller factors",
    )
    return RoutedUse(
        site.path,
        site.equation.primitive.name,
        mine,
        lookup.view,
        **ordered(lookup.inputs, rows, columns),
        result=None,
        mixed=None,
        positions=math.prod(p.size for p in places if p.holds == POSITION),
        lookup=lookup,
        x_pieces=tuple(x_pieces + lacking(x_pieces)),
        g_pieces=tuple(g_pieces),
        index_pieces=tuple(index_pieces + lacking(index_pieces)),
    )
