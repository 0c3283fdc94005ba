"""Uses that are computed once for all examples, read where they meet the examples.

A table of positions is looked up, or a constant multiplied by a weight, before there is
a batch: u = op(w). The gradient of u is then a sum over examples and tells nothing of
one example. Each example's own gradient g_n of u exists where u meets the batch, entry
by entry (u + x, u ∘ x). The tap sits there, and each g_n goes through the rows of `op`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp

from natgrad.layers.dense import DenseUse
from natgrad.layers.embedding import LookupRows, LookupUse
from natgrad.layers.rows import (
    EXAMPLE,
    INPUT,
    POSITION,
    Piece,
    Rows,
    arrange,
    contract,
    pieces_of,
)
from natgrad.layers.scale_shift import EntrywiseUse
from natgrad.layers.uses import Scale, Use, require
from natgrad.layers.views import NotUnderstoodError, count
from natgrad.typing import Array


@dataclasses.dataclass(frozen=True)
class LateUse(Use):
    """A use whose result meets the examples later.

    Attributes:
        early: the use itself.
        meeting: the entrywise use of its result.
        shape: the shape of that result.
    """

    early: Use
    meeting: EntrywiseUse
    shape: tuple[int, ...]

    @property
    def looks_up(self) -> bool:
        """Are its inputs rows of the identity?"""
        return self.early.looks_up

    def rows(self, operands: Sequence[Array], scale: Scale, g: Array) -> Rows:
        """The rows of the early use, once for every example's gradient of its result.

        Args:
            operands: the operands of the equation where it meets the examples.
            scale: (what the result was multiplied by, the operands of the early use,
                what its parameter was multiplied by).
            g: the gradient of the meeting's result.

        Returns:
            X [batch..., N, T, I], the same for all examples, and G [batch..., N, T, O].
        """
        scale, operands_early, scale_early = scale
        each = self.meeting.rows(operands, scale, g).g[..., 0, :]
        # [batch..., N, O] of the meeting is [N, the result's shape], its axes moved.
        each = jnp.moveaxis(each, -2, 0)
        each = each.reshape((each.shape[0], *self.shape))
        examples = each.shape[0]

        def one(g: Array) -> tuple[Array, Array]:
            rows = self.early.rows(operands_early, scale_early, g)
            return rows.x, rows.g

        x, g = jax.vmap(one, out_axes=(None, 0))(each)
        g = jnp.moveaxis(g[..., 0, :, :], 0, -3)
        if isinstance(self.early, LookupUse):
            index = jnp.broadcast_to(x, (examples, x.shape[-1]))
            return LookupRows(index, g, table=self.early.table)
        return Rows(jnp.broadcast_to(x, (*x.shape[:-3], examples, *x.shape[-2:])), g)


@dataclasses.dataclass(frozen=True)
class ProductUse(Use):
    """A use of A or of B in x (A B), a product that is made before there are examples.

    As in (x A) B: A has the rows x and g Bᵀ, and B the rows x A and g.

    Attributes:
        early: the use in the product A B.
        meeting: the use of the product.
        pieces: how the axes of the product that the parameter has are ordered in it.
        first: whether those axes are the inputs of the meeting.
    """

    early: DenseUse
    meeting: DenseUse
    pieces: tuple[Piece, ...]
    first: bool

    def rows(self, operands: Sequence[Array], scale: Scale, g: Array) -> Rows:
        """The rows of the meeting, one side of them through the other factor.

        Args:
            operands: the operands of the equation where the product meets the examples.
            scale: as for `LateUse`.
            g: the gradient of the meeting's result.

        Returns:
            X [N, T, I] and G [N, T, O] of the parameter.
        """
        scale, operands_early, scale_early = scale
        met = self.meeting.rows(operands, scale, g)
        other = operands_early[1 - self.early.operand].astype(g.dtype)
        other = other if scale_early is None else other * scale_early.astype(g.dtype)
        other = arrange(other, self.early.x_pieces, ())[0]  # [Q, C]
        own, through = (met.x, met.g) if self.first else (met.g, met.x)
        n, t, _ = own.shape
        held = (Piece(EXAMPLE, n), Piece(POSITION, t), *self.pieces)
        own, through = arrange(own, held, ()), contract("ntq,qc->ntc", through, other)
        x, g = (own, through) if self.first else (through, own)
        return dataclasses.replace(met, x=x, g=g)


def match(early: Use, meeting: Use) -> Use:
    """The use of a parameter whose result is used once more, with the examples.

    Args:
        early: the use of the parameter, computed once for all examples.
        meeting: the use of its result.

    Returns:
        A use at the place of the meeting.

    Raises:
        NotUnderstoodError: the result meets the examples otherwise than entry by entry
            or in a product of matrices.
    """
    if isinstance(early, DenseUse) and isinstance(meeting, DenseUse):
        return _product(early, meeting)
    if not (isinstance(meeting, EntrywiseUse) and meeting.separate):
        raise NotUnderstoodError(
            "it was computed once for all examples and meets them otherwise than entry "
            "by entry"
        )
    if early.result is None:
        raise NotUnderstoodError("it was computed once for all examples")
    fields = _fields(early, meeting)
    return LateUse(**fields, early=early, meeting=meeting, shape=early.result.shape)


def _fields(early: Use, meeting: Use) -> dict[str, Any]:
    """The fields of the early use, at the place where its result meets the examples."""
    names = [field.name for field in dataclasses.fields(Use)]
    fields = {name: getattr(early, name) for name in names}
    at = ("path", "primitive", "operand", "mixed")
    return fields | {name: getattr(meeting, name) for name in at} | {"result": None}


def _product(early: DenseUse, meeting: DenseUse) -> ProductUse:
    held = early.result.axes
    own = {i for i, axis in enumerate(held) if axis and not axis[0].repeated}
    rest = {i for i, axis in enumerate(held) if axis and axis[0].repeated}
    inputs, outputs = ({a.axis for a in g} for g in (meeting.inputs, meeting.outputs))
    first = inputs <= own and outputs <= rest
    uncut = count(meeting.inputs) * count(meeting.outputs) == count(
        [atom for axis in held for atom in axis]
    )
    require(
        (first or (inputs <= rest and outputs <= own)) and uncut,
        "it is a factor of a product that is read otherwise than as a matrix",
    )
    plain = not (early.batch or meeting.batch or early.masked or meeting.masked)
    require(plain, "it is a factor of a product that is multiplied entry by entry")
    fields = _fields(early, meeting)
    sides = (early.outputs, early.inputs)
    fields["inputs"], fields["outputs"] = sides if first else sides[::-1]
    pieces = [p for i in sorted(own) for p in pieces_of(held[i], INPUT, (i,))]
    fields["positions"] = meeting.positions
    return ProductUse(
        **fields,
        early=early,
        meeting=meeting,
        pieces=tuple(pieces),
        first=first,
    )
