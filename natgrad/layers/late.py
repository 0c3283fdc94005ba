"""Uses that are computed once for all examples, read where they meet the examples.

A table of positions is looked up, or a constant multiplied by a weight, before there is
a batch: u = op(w). The gradient of u is then a sum over examples and tells nothing of
one example. Each example's own gradient g_n of u exists where u meets the batch, entry
by entry (u + x, u ∘ x). The tap sits there, and each g_n goes through the rows of `op`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from natgrad.layers.rows import LookupRows, Rows
from natgrad.layers.scale_shift import EntrywiseUse
from natgrad.layers.uses import Use, require
from natgrad.typing import Array


@dataclasses.dataclass(frozen=True)
class LateUse(Use):
    """A use whose result meets the examples later.

    Attributes:
        early: the use itself.
        meeting: the entrywise use of its result.
    """

    early: Use
    meeting: EntrywiseUse

    @property
    def kind(self) -> str:
        """That of the use itself."""
        return self.early.kind

    @property
    def looks_up(self) -> bool:
        """Are its inputs rows of the identity?"""
        return self.early.looks_up

    def rows(self, operands: Sequence[Array], scale: tuple, g: Array) -> Rows:
        """The rows of the early use, once for every example's gradient of its result.

        Args:
            operands: of the equation where it meets the examples.
            scale: (what the result was multiplied by, the operands of the early use,
                what its parameter was multiplied by).
            g: gradient of the meeting's result.
        """
        scale, operands_early, scale_early = scale
        each = self.meeting.rows(operands, scale, g).g[..., 0, :]
        # [batch..., N, O] of the meeting is [N, u's shape] with its axes moved.
        each = jnp.moveaxis(each, -2, 0)
        each = each.reshape((each.shape[0], *self.early.result.shape))
        count = each.shape[0]

        def one(g):
            rows = self.early.rows(operands_early, scale_early, g)
            lookup = isinstance(rows, LookupRows)
            return rows.index if lookup else rows.x, rows.g

        x, g = jax.vmap(one, out_axes=(None, 0))(each)
        g = jnp.moveaxis(g[..., 0, :, :], 0, -3)
        if x.ndim == 2:
            index = jnp.broadcast_to(x, (count, x.shape[-1]))
            table = self.early.table
            return LookupRows(None, g, separate=True, index=index, table=table)
        x = jnp.broadcast_to(x, (*x.shape[:-3], count, *x.shape[-2:]))
        return Rows(x, g)


def match(early: Use, meeting: Use) -> LateUse:
    """A use of the result of a use."""
    require(
        isinstance(meeting, EntrywiseUse) and meeting.separate,
        "it was computed once for all examples and meets them otherwise than entry "
        "by entry",
    )
    require(early.result is not None, "it was computed once for all examples")
    fields = {
        field.name: getattr(early, field.name) for field in dataclasses.fields(Use)
    }
    fields |= {"path": meeting.path, "mixed": None, "result": None}
    fields |= {"primitive": meeting.primitive, "operand": meeting.operand}
    return LateUse(**fields, early=early, meeting=meeting)
