"""Table lookups: `gather` of whole rows of a parameter, as embeddings do.

A lookup is a product with rows of the identity, x = e_index, so its input moment is the
diagonal matrix of how often each row was looked up, and is kept as that diagonal.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Float, Integer

from natgrad.layers.rows import (
    INPUT,
    OUTPUT,
    Piece,
    Rows,
    arrange,
    contract,
    pieces_of,
    positions,
)
from natgrad.layers.uses import Scale, Site, Use, require
from natgrad.layers.views import View, repeated
from natgrad.typing import Array


@dataclasses.dataclass(frozen=True)
class LookupRows(Rows):
    """Rows of a table lookup: each x is a row of the identity, kept as its index.

    Attributes:
        x: the row looked up, [N, T]; an index outside the table counts for nothing.
        table: I, the number of rows of the table.
        dense: whether the block's input moment is kept whole rather than diagonal.
    """

    table: int = dataclasses.field(kw_only=True)
    dense: bool = False

    @property
    def index(self) -> Integer[Array, "N T"]:
        """The row that each lookup reads."""
        return self.x

    @property
    def homogeneous(self) -> Float[Array, "N T I"]:
        """The rows of the identity, written out."""
        return jax.nn.one_hot(self.index, self.table, dtype=self.g.dtype)

    @property
    def count(self) -> int:
        """N T, the number of lookups."""
        return self.index.size

    def _written(self) -> Rows:
        return Rows(self.homogeneous, self.g, None, self.separate, self.swapped)

    def reduced(self) -> Rows:
        """Rows with inputs averaged and gradients summed over positions: T = 1."""
        return self._written().reduced()

    def input_moment(self) -> Float[Array, "*shape"]:
        """How often each row was looked up: [I], or as a diagonal matrix [I, I]."""
        ones = jnp.ones(self.index.shape, self.g.dtype)
        counts = self._sum(ones.reshape(-1))
        return jnp.diag(counts) if self.dense else counts

    def gradient(self) -> Float[Array, "I O"]:
        """The gradients of each row of the table, added up."""
        return self._sum(self.g.reshape((-1, self.g.shape[-1])))

    def per_example(self) -> Float[Array, "N I O"]:
        """V_n, the gradient of every example."""
        return self._written().per_example()

    def squares(self) -> Float[Array, "I O"]:
        """Σ_n V_n²: positions of one example at one row are added first."""
        same = self.index[:, :, None] == self.index[:, None, :]
        merged = contract("nst,nto->nso", same.astype(self.g.dtype), self.g)
        # Σ_s g_s · (Σ_t g_t of the same row) is the square of the row's sum.
        products = self.g * merged
        return self._sum(products.reshape((-1, self.g.shape[-1])))

    def projected_squares(
        self, left: Float[Array, "I j"] | None, right: Float[Array, "O o"]
    ) -> Float[Array, "j o"]:
        """Σ_n (Lᵀ V_n R)², where L reads rows of the table by their index."""
        g = contract("nto,op->ntp", self.g, right)
        if left is None:
            return dataclasses.replace(self, g=g).squares()
        x = left.at[self.index].get(mode="fill", fill_value=0.0)
        return Rows(x, g).squares()

    def _sum(self, values: Float[Array, "*shape"]) -> Float[Array, "*shape"]:
        """Adds up values of lookups [N T, ...] by the row that they read: [I, ...]."""
        total = jnp.zeros((self.table, *values.shape[1:]), values.dtype)
        return total.at[self.index.reshape(-1)].add(values, mode="drop")


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
    result: View

    @property
    def looks_up(self) -> bool:
        """Are its inputs rows of the identity?"""
        return True

    def index(self, operands: Sequence[Array]) -> Integer[Array, "*shape"]:
        """The rows of the table that are looked up.

        Args:
            operands: the table and the indices of the `gather`.

        Returns:
            Indices from 0 to I, where I stands for those outside the table.
        """
        index = operands[1][..., self.component]
        if self.clipped:
            index = jnp.clip(index, 0, self.table - 1)
        # An index outside the table reads a constant: send it where it is dropped.
        outside = (index < 0) | (index >= self.table)
        return jnp.where(outside, self.table, index)

    def rows(self, operands: Sequence[Array], scale: Scale, g: Array) -> LookupRows:
        """The indices as [N, T] and the gradients as [N, T, O], see `Use.rows`."""
        index = self.index(operands)
        one = Piece(INPUT, 1)
        index = arrange(index, (*self.index_pieces, one), ())[..., 0]
        g = g if scale is None else g * scale.astype(g.dtype)
        g = arrange(g, self.g_pieces, ())
        return LookupRows(index, g, separate=self.separate, table=self.table)


def match(site: Site) -> LookupUse:
    """Reads a `gather` whose table is a parameter.

    Args:
        site: the equation, with the parameter as its first operand.

    Returns:
        The use.

    Raises:
        NotUnderstoodError: the parameter is not the table, or the lookup is not of
            whole rows along one axis.
    """
    require(site.operand == 0, "it is used as an index")
    require(site.scaled != "array", "it is multiplied entry by entry before the lookup")
    axes, shape = site.view.axes, site.shape(1)
    axis = _table_axis(site)
    numbers = site.params["dimension_numbers"]
    columns = [a for a in range(len(axes)) if a not in numbers.collapsed_slice_dims]
    # A looked-up axis that stays has one entry, and nothing to walk.
    read = [() if a == axis else atoms for a, atoms in enumerate(axes)]

    example, rank = site.example(1), len(shape) - 1
    spots = [
        positions(shape[a], site.example_along(1, a), site.size, (a,))
        for a in range(rank)
    ]
    offsets = numbers.offset_dims
    free = [a for a in range(rank + len(offsets)) if a not in offsets]
    pairs = list(zip(offsets, columns, strict=True))
    held = dict(zip(free, spots, strict=True))
    held |= {a: pieces_of(read[b], OUTPUT, (b,)) for a, b in pairs}
    described = dict(zip(free, (repeated(n) for n in shape[:-1]), strict=True))
    described |= {a: read[b] for a, b in pairs}
    order = range(rank + len(offsets))
    examples = 1 if example is None or site.size is None else site.size
    return LookupUse(
        **site.fields((), axes[axis], [a for b in columns for a in read[b]]),
        kind="embedding",
        result=site.view.with_axes([described[a] for a in order]),
        mixed=site.mixture(example is not None),
        positions=math.prod(shape[:-1]) // examples,
        index_pieces=tuple(p for spot in spots for p in spot),
        g_pieces=tuple(p for a in order for p in held[a]),
        spots=tuple((a, tuple(held[a])) for a in free),
        table=site.view.shape[axis],
        component=numbers.start_index_map.index(axis),
        clipped=site.params["mode"] == jax.lax.GatherScatterMode.CLIP,
    )


def _table_axis(site: Site) -> int:
    """The axis of the parameter whose rows are looked up."""
    numbers, sizes = site.params["dimension_numbers"], site.params["slice_sizes"]
    collapsed, shape = numbers.collapsed_slice_dims, site.view.shape
    partial = [a for a, n in enumerate(shape) if a in collapsed or sizes[a] != n]
    require(
        len(partial) == 1
        and partial[0] in numbers.start_index_map
        and sizes[partial[0]] == 1
        and not numbers.operand_batching_dims,
        "the lookup is not of whole rows along one axis",
    )
    (axis,) = partial
    backwards = any(atom.step < 0 for atom in site.view.axes[axis])
    require(not backwards, "the table is reversed")
    return axis
