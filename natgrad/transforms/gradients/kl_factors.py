"""KL-Shampoo: factors fitted to the gradients' covariance. For symbols see `rule`."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import Any, final

import jax.numpy as jnp
from jaxtyping import Float

from natgrad.metrics import tensor_factors
from natgrad.metrics.tensor_factors import Axes
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
class KLShampoo(Rule):
    """The factors' inverse square roots; the scale is λ_i of each axis."""

    def init(self, zeros: Array, factored: Sequence[bool]) -> Any:
        """λ = 0; v = 0 for a parameter without factors."""
        if not any(factored):
            return zeros
        return tuple(
            jnp.zeros(size, zeros.dtype) if own else None
            for size, own in zip(zeros.shape, factored, strict=True)
        )

    def pack(self, scales: Sequence[Any], structure: Any) -> Any:
        """One after the other."""
        del structure
        return tuple(scales)

    def unpack(self, packed: Any) -> Sequence[Any]:
        """As they are."""
        return packed

    def rebased(self, scale: Any, factors: Axes, bases: Axes, first: Array) -> Any:
        """The first bases are eigenvectors, and λ the eigenvalues and the start."""
        if not isinstance(scale, tuple):
            return scale

        def following(own, factor, basis):
            half = jnp.matmul(factor, basis, precision=tensor_factors.HIGHEST)
            values = jnp.sum(basis * half, 0)
            # The traces are those before: what λ has more is of the start.
            return jnp.where(first, values + jnp.mean(own) - jnp.mean(values), own)

        return each(following, scale, factors, bases)

    def factored_step(self, leaf: LeafGradient) -> LeafStep:
        """S and λ with this gradient, and its direction by λ."""
        gradient, begins = leaf.gradient, leaf.age <= 1
        start = _start(gradient, sum(basis is not None for basis in leaf.bases))
        old = each(lambda own: jnp.where(begins, start, own), leaf.scale)
        roots = each(_inverse_root, old)
        turned = tensor_factors.to_bases(gradient, leaf.bases)

        def new_factor(factor, axis):
            half = tensor_factors.to_bases(
                gradient, tensor_factors.without(leaf.bases, axis)
            )
            half = tensor_factors.times(half, tensor_factors.without(roots, axis))
            mean = tensor_factors.moment(half, axis) * (len(factor) / gradient.size)
            return self.averaged(factor, mean)

        def new_values(values, axis):
            others = tensor_factors.without(roots, axis)
            half = tensor_factors.times(turned, others)
            return self.averaged(values, tensor_factors.mean_square(half, axis))

        axes = range(gradient.ndim)
        factors = each(new_factor, leaf.factors, axes)
        scale = each(new_values, old, axes)
        used = each(lambda a, b: jnp.where(begins, a, b), old, scale)
        inverse = tensor_factors.times(
            jnp.ones_like(gradient), each(_inverse_root, used)
        )
        mean = tensor_factors.to_bases(leaf.mean, leaf.bases)
        direction = mean * (inverse / (1 + self.eps * inverse))
        return LeafStep(leaf.back(direction, factors), factors, scale)


def _start(gradient: Array, count: int) -> Array:
    """c^{1/k}."""
    root = root_mean_square(gradient)
    return jnp.where(root > 0, jnp.where(root > 0, root, 1) ** (2 / count), 0)


def _inverse_root(values: Float[Array, " d"]) -> Float[Array, " d"]:
    """1/√λ; 0 where λ is rounding."""
    moves = tensor_factors.above_rounding(values, math.prod(values.shape))
    return jnp.where(moves, 1 / jnp.sqrt(jnp.where(moves, values, 1)), 0)
