"""Rows of a weight that is multiplied entry by entry before it is used.

    z = (M ∘ W)ᵀ x,     V_n = M ∘ Σ_t x gᵀ

where M has no examples: a mask, one over a norm that is held fixed, another parameter.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import jax.numpy as jnp

from natgrad.layers.rows import BATCH, INPUT, OUTPUT, Rows, batch_shape, contract
from natgrad.layers.views import Atom
from natgrad.typing import Array


@dataclasses.dataclass(frozen=True)
class MaskedRows(Rows):
    """Rows of a weight that is multiplied entry by entry before: V = M ∘ Σ x gᵀ.

    Attributes:
        mask: M, [batch..., I, O].
    """

    mask: Array | None = None

    def whole_mask(self) -> Array:
        """M, with ones for the bias's row."""
        if self.bias is None:
            return self.mask
        one = jnp.ones_like(self.mask[..., :1, :])
        return jnp.concatenate([self.mask, one], axis=-2)

    def gradient(self) -> Array:
        """M ∘ Σ x gᵀ with the bias's row, [batch..., I(+1), O]."""
        return self.whole_mask() * super().gradient()

    def per_example(self) -> Array:
        """V_n, [N, batch..., I(+1), O]."""
        return self.whole_mask()[None] * super().per_example()

    def squares(self) -> Array:
        """Σ_n V_n², entry by entry, [batch..., I(+1), O]."""
        if self.x.shape[-2] > 1:
            return jnp.sum(self.per_example() ** 2, axis=0)
        squared = Rows(self.x**2, self.g**2, self.bias).gradient()
        return self.whole_mask() ** 2 * squared

    def projected_squares(self, left: Array | None, right: Array) -> Array:
        """Σ_n (Lᵀ V_n R)², with bases L [..., I(+1), i] and R [..., O, o]."""
        turned = contract("...io,...op->...ip", self.per_example(), right[None])
        turned = contract("...io,...ij->...jo", turned, left[None])
        return jnp.sum(turned**2, axis=0)


def as_matrix(array: Array, axes: Sequence[Sequence[tuple[Atom, str]]]) -> Array:
    """What has the shape of a view, as [batch..., I, O] in the parameter's own order.

    Args:
        array: the array.
        axes: the atoms of each of its axes, each with what it holds: B, I or O.
    """
    pieces = [pair for axis in axes for pair in axis]
    array = array.reshape([atom.size for atom, _ in pieces])
    flips = [i for i, (atom, _) in enumerate(pieces) if atom.step < 0]
    array = jnp.flip(array, flips) if flips else array
    place = lambda i: (pieces[i][0].axis, -abs(pieces[i][0].step))
    groups = [
        sorted((i for i, pair in enumerate(pieces) if pair[1] == holds), key=place)
        for holds in (BATCH, INPUT, OUTPUT)
    ]
    batch = batch_shape([pieces[i][0] for i in groups[0]])
    sizes = [math.prod(pieces[i][0].size for i in group) for group in groups[1:]]
    order = [i for group in groups for i in group]
    return array.transpose(order).reshape((*batch, *sizes))
