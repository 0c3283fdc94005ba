"""Kronecker factors of weighted examples.

    A = Σ_n ω_n Σ_t x xᵀ,     rows = Σ_n ω_n T

The output gradients g need nothing: their score columns carry √ω already.
"""

from __future__ import annotations

import dataclasses
from typing import final

import jax.numpy as jnp

from natgrad.layers import Block, Expand, LookupRows, Reduce, Rows, Statistic
from natgrad.layers.required import require_examples
from natgrad.solvers import HIGHEST
from natgrad.typing import Array


@final
@dataclasses.dataclass(frozen=True, eq=False)
class Weighted(Statistic):
    """What `Expand` or `Reduce` gives, with a weight for each example's inputs.

    Attributes:
        sharing: `Expand()` or `Reduce()`.
        weights: ω, [N].
    """

    sharing: Expand
    weights: Array

    def context(self, block: Block) -> Array:
        """ω for every layer of a stack."""
        weights = self.weights.astype(block.dtype)
        return jnp.broadcast_to(weights, (*block.stack, *weights.shape))

    def zero(self, block: Block) -> dict[str, Array]:
        """Zeros as for the sharing; needs rows that can be told apart by example."""
        require_examples(block, "weighted Kronecker factors")
        return self.sharing.zero(block)

    def of(self, block: Block, rows: Rows, context: Array) -> dict[str, Array]:
        """The sharing's factors, that of the inputs weighted.

        Swapped rows hold the inputs in place of the gradients.
        """
        found = self.sharing.of(block, rows, ())
        if isinstance(self.sharing, Reduce):
            rows = rows.reduced()
        role = "_swapped" * rows.swapped
        moment = _swapped_moment if rows.swapped else _moment
        number = jnp.broadcast_to(rows.number(context), found["rows" + role].shape)
        return found | {
            ("G" if rows.swapped else "A") + role: moment(rows, context),
            "rows" + role: number.astype(block.dtype),
        }


def _moment(rows: Rows, weights: Array) -> Array:
    if isinstance(rows, LookupRows):
        each = jnp.broadcast_to(weights[:, None], rows.index.shape)
        counts = jnp.zeros(rows.table, weights.dtype)
        counts = counts.at[rows.index.reshape(-1)].add(each.reshape(-1), mode="drop")
        return jnp.diag(counts) if rows.dense else counts
    return _product(rows.homogeneous, weights)


def _swapped_moment(rows: Rows, weights: Array) -> Array:
    return _product(rows.g, weights)


def _product(x: Array, weights: Array) -> Array:
    """Σ_n ω_n Σ_t x xᵀ of x [batch..., N, T, I]."""
    omega = weights.reshape((1,) * (x.ndim - 3) + (-1, 1, 1))
    return jnp.einsum("...nti,...ntj->...ij", omega * x, x, precision=HIGHEST)
