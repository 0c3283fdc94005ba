"""SOAP: Adam in the eigenbases of Shampoo's factors. For symbols see `rule`."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, final

import jax
import jax.numpy as jnp

from natgrad.metrics import tensor_factors
from natgrad.transforms.gradients.rule import (
    LeafGradient,
    LeafStep,
    Rule,
    each,
    root_mean_square,
)
from natgrad.typing import Array


@final
@dataclasses.dataclass(frozen=True)
class Soap(Rule):
    """Adam in the bases of the factors; the scale is v, like the parameter."""

    def init(self, zeros: Array, factored: Sequence[bool]) -> Array:
        """v = 0."""
        del factored
        return zeros

    def pack(self, scales: Sequence[Any], structure: Any) -> Any:
        """A tree like the parameters."""
        return jax.tree.unflatten(structure, scales)

    def unpack(self, packed: Any) -> Sequence[Any]:
        """Its leaves."""
        return jax.tree.leaves(packed)

    def factored_step(self, leaf: LeafGradient) -> LeafStep:
        """Adam's step in the bases; the first is by the mean square."""
        turned = tensor_factors.to_bases(leaf.gradient, leaf.bases)
        mean = tensor_factors.to_bases(leaf.mean, leaf.bases)
        begins = leaf.age <= 1
        square = jnp.where(begins, 0, self.averaged(leaf.scale, turned**2))
        moves = tensor_factors.above_rounding(square, leaf.largest)
        direction = self.adam(mean, square, jnp.maximum(leaf.age - 1, 1))
        first = mean / (root_mean_square(leaf.gradient) + self.eps)
        direction = jnp.where(begins, first, jnp.where(moves, direction, 0))

        def new_factor(factor, axis):
            return self.averaged(factor, tensor_factors.moment(leaf.gradient, axis))

        factors = each(new_factor, leaf.factors, range(leaf.gradient.ndim))
        return LeafStep(leaf.back(direction, factors), factors, square)
