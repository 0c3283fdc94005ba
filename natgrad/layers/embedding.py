"""Table lookups: `gather` of whole rows of a parameter, as embeddings do.

A lookup is a product with rows of the identity, x = e_index, so its input moment is the
diagonal matrix of how often each row was looked up, and is kept as that diagonal.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import ClassVar

import jax
import jax.numpy as jnp

from natgrad.layers.rows import (
    INPUT,
    OUTPUT,
    LookupRows,
    Piece,
    Rows,
    arrange,
    pieces_of,
    positions,
)
from natgrad.layers.uses import Site, Use, mixture, ordered, require
from natgrad.layers.views import View, repeated
from natgrad.typing import Array


@dataclasses.dataclass(frozen=True)
class LookupUse(Use):
    """A `gather` along one axis of the parameter.

    Attributes:
        index_pieces, g_pieces: what the axes of the indices and the result hold.
        spots: axis of the result that an axis of the indices became -> what it holds.
        table: I, how many rows there are to look up.
        clipped: whether an index outside the table reads the nearest row.
        component: which entry of an index vector is the row.
    """

    index_pieces: tuple[Piece, ...]
    g_pieces: tuple[Piece, ...]
    spots: tuple[tuple[int, tuple[Piece, ...]], ...]
    table: int
    clipped: bool
    component: int

    kind: ClassVar[str] = "embedding"

    @property
    def looks_up(self) -> bool:
        """Are its inputs rows of the identity?"""
        return True

    def index(self, operands: Sequence[Array]) -> Array:
        """The rows that are looked up; those outside the table are the row I."""
        index = operands[1][..., self.component]
        if self.clipped:
            index = jnp.clip(index, 0, self.table - 1)
        # An index outside the table reads a constant: send it where it is dropped.
        outside = (index < 0) | (index >= self.table)
        return jnp.where(outside, self.table, index)

    def rows(self, operands: Sequence[Array], scale: Array | None, g: Array) -> Rows:
        """The indices as [N, T] and the gradients as [N, T, O]."""
        index = self.index(operands)
        one = Piece(INPUT, 1)
        index = arrange(index, (*self.index_pieces, one), ())[..., 0]
        g = g if scale is None else g * scale.astype(g.dtype)
        g = arrange(g, self.g_pieces, ())
        return LookupRows(
            None, g, separate=self.separate, index=index, table=self.table
        )


def match(site: Site) -> LookupUse:
    """Reads a `gather` whose table is a parameter."""
    require(site.operand == 0, "it is used as an index")
    require(site.scaled != "array", "it is multiplied entry by entry before the lookup")
    numbers, sizes = site.params["dimension_numbers"], site.params["slice_sizes"]
    axes, shape, rows = site.view.axes, site.shape(1), site.view.shape
    collapsed, searched = numbers.collapsed_slice_dims, numbers.start_index_map
    partial = [a for a in range(len(axes)) if a in collapsed or sizes[a] != rows[a]]
    require(
        len(partial) == 1
        and partial[0] in searched
        and sizes[partial[0]] == 1
        and not numbers.operand_batching_dims,
        "the lookup is not of whole rows along one axis",
    )
    (axis,) = partial
    require(not any(atom.step < 0 for atom in axes[axis]), "the table is reversed")
    kept = [a for a in range(len(axes)) if a not in collapsed]
    # A looked-up axis that stays has one entry, and nothing to walk.
    read = [() if a == axis else atoms for a, atoms in enumerate(axes)]

    example, rank = site.example(1), len(shape) - 1
    spots = [
        positions(
            shape[a],
            example if example and example.axis == a else None,
            site.size,
            (a,),
        )
        for a in range(rank)
    ]
    offsets = numbers.offset_dims
    free = [a for a in range(rank + len(offsets)) if a not in offsets]
    held = dict(zip(free, spots, strict=True))
    held |= {
        a: pieces_of(read[b], OUTPUT, (b,)) for a, b in zip(offsets, kept, strict=True)
    }
    described = dict(zip(free, (repeated(n) for n in shape[:-1]), strict=True))
    described |= {a: read[b] for a, b in zip(offsets, kept, strict=True)}
    order = range(rank + len(offsets))
    clip = jax.lax.GatherScatterMode.CLIP
    return LookupUse(
        site.path,
        site.equation.primitive.name,
        site.operand,
        site.view,
        **ordered((), axes[axis], [a for b in kept for a in read[b]]),
        result=View(
            site.view.leaf,
            site.view.start,
            tuple(described[a] for a in order),
            site.view.stack,
        ),
        mixed=mixture(site, example),
        positions=math.prod(shape[:-1]) // (site.size if example else 1),
        index_pieces=tuple(p for spot in spots for p in spot),
        g_pieces=tuple(p for a in order for p in held[a]),
        spots=tuple((a, tuple(held[a])) for a in free),
        table=rows[axis],
        component=searched.index(axis),
        clipped=site.params["mode"] == clip,
    )
