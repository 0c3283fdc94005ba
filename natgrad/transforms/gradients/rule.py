"""What SOAP and KL-Shampoo keep of a parameter's gradients, and their directions.

G is the gradient of a matrix or tensor with k factored axes, Ĝ its average, corrected
for its start, and a bar a moving average with 1 − β₂. In bases Q of the factors S,

    SOAP          S̄_i = mat_i(G) mat_i(G)ᵀ,     v̄ = (Qᵀ G)²,
                  d = Q [Qᵀ Ĝ / (√v̂ + ε)]

    KL-Shampoo    S̄_i = mat_i(G) (⊗_{j≠i} S_j⁻¹) mat_i(G)ᵀ / Π_{j≠i} d_j,
                  λ̄_i = the diagonal of Q_iᵀ (the same) Q_i,
                  d = Q [Qᵀ Ĝ / (√(λ_1 ⊗ … ⊗ λ_k) + ε)]

The eigenvalues λ of S are averaged in bases that are up to a period old; so v is in
SOAP. The first gradient that is not 0 is as if all its entries had their mean square c:
d = Ĝ/(√c + ε). It chooses the bases; λ_i starts from c^{1/k}, the averages from 0. Both
are equivariant: G turned to U G Vᵀ turns d so.

Coordinates whose mean square is that of rounding are not moved, and neither are slices
of a parameter whose gradients were always 0, such as the rows of inputs that are 0: a
basis of what no gradient has reached yet mixes these with others. A parameter without
factored axes has Adam's direction.

Source: Vyas et al. (2024), SOAP: improving and stabilizing Shampoo using Adam,
algorithm 3; Lin et al. (2025), Understanding and improving Shampoo and SOAP via
Kullback-Leibler minimization, section 4, for the averages and for λ̄; Kingma & Ba
(2015), Adam. The authors' programs take no first step, and start λ from a constant.
"""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple

import jax.numpy as jnp

from natgrad.metrics import tensor_factors
from natgrad.metrics.tensor_factors import Axes
from natgrad.solvers.spd_inverse import diagonal
from natgrad.typing import Array, ArrayLike


class LeafGradient(NamedTuple):
    """A parameter's gradient, and what is known of those before.

    Attributes:
        gradient: G.
        mean: Ĝ.
        factors: S_i of each axis; None for the identity.
        bases: Q_i of each axis.
        scale: as the rule keeps it.
        age: the gradients from the first that was not 0 to this one, shape ().
        steps: all of them, shape ().
    """

    gradient: Array
    mean: Array
    factors: Axes
    bases: Axes
    scale: Any
    age: Array
    steps: Array

    @property
    def largest(self) -> int:
        """The size of the largest axis with a basis; 0 where none has one."""
        return max((len(basis) for basis in self.bases if basis is not None), default=0)

    def back(self, direction: Array, factors: Axes) -> Array:
        """A direction in the bases as one of the parameter.

        Args:
            direction: in the bases.
            factors: S_i with this gradient, whose diagonals say what was always 0.
        """
        seen = each(lambda factor: diagonal(factor) > 0, factors)
        return tensor_factors.times(
            tensor_factors.from_bases(direction, self.bases), seen
        )


class LeafStep(NamedTuple):
    """What follows for a parameter.

    Attributes:
        direction: d.
        factors: S_i with this gradient.
        scale: likewise.
    """

    direction: Array
    factors: tuple[Array | None, ...]
    scale: Any


@dataclasses.dataclass(frozen=True)
class Rule(abc.ABC):
    """How gradients make a direction.

    Attributes:
        b2: β₂, of the moving averages of squares.
        eps: ε, in the units of the gradient.
    """

    b2: ArrayLike
    eps: ArrayLike

    @abc.abstractmethod
    def init(self, zeros: Array, factored: Sequence[bool]) -> Any:
        """The scale before the first gradient.

        Args:
            zeros: like the parameter.
            factored: which axes have a factor.
        """

    @abc.abstractmethod
    def factored_step(self, leaf: LeafGradient) -> LeafStep:
        """The step of a parameter that has factored axes."""

    @abc.abstractmethod
    def pack(self, scales: Sequence[Any], structure: Any) -> Any:
        """The scales of all parameters as the state holds them.

        Args:
            scales: of each.
            structure: of the tree of parameters.
        """

    @abc.abstractmethod
    def unpack(self, packed: Any) -> Sequence[Any]:
        """The scales of each parameter: undoes `pack`."""

    def rebased(self, scale: Any, factors: Axes, bases: Axes, first: Array) -> Any:
        """The scale after new bases.

        Args:
            scale: before.
            factors: S_i.
            bases: the new Q_i.
            first: are they the first? Shape ().
        """
        del factors, bases, first
        return scale

    def step(self, leaf: LeafGradient) -> LeafStep:
        """The step of any parameter."""
        if leaf.largest:
            return self.factored_step(leaf)
        square = self.averaged(leaf.scale, leaf.gradient**2)
        direction = self.adam(leaf.mean, square, leaf.steps)
        return LeafStep(direction, tuple(leaf.factors), square)

    def averaged(self, old: Array, new: Array) -> Array:
        """β₂ old + (1 − β₂) new."""
        b2 = jnp.asarray(self.b2, old.dtype)
        return b2 * old + (1 - b2) * new

    def adam(self, mean: Array, square: Array, count: Array) -> Array:
        """Adam's direction.

        Args:
            mean: Ĝ.
            square: the average of G², from 0.
            count: how many were averaged, >= 1.
        """
        number = count.astype(square.dtype)
        corrected = square / (1 - jnp.asarray(self.b2, square.dtype) ** number)
        return mean / (jnp.sqrt(corrected) + self.eps)


def each(function: Any, *axes: Sequence[Any]) -> tuple[Any, ...]:
    """The function of each axis that has a first entry; None of the others.

    Args:
        function: of one entry of each of `axes`.
        axes: one entry an axis.
    """
    return tuple(
        None if entries[0] is None else function(*entries)
        for entries in zip(*axes, strict=True)
    )


def root_mean_square(tensor: Array) -> Array:
    """√c, without underflow.

    Args:
        tensor: G.
    """
    largest = jnp.max(jnp.abs(tensor))
    safe = jnp.where(largest > 0, largest, 1)
    return largest * jnp.sqrt(jnp.mean((tensor / safe) ** 2))
