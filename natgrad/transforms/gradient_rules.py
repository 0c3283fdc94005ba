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
import math
from collections.abc import Sequence
from typing import Any, NamedTuple, final

import jax
import jax.numpy as jnp
from jaxtyping import Float

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
        seen = _each(lambda factor: diagonal(factor) > 0, factors)
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
        first = mean / (_root_mean_square(leaf.gradient) + self.eps)
        direction = jnp.where(begins, first, jnp.where(moves, direction, 0))

        def new_factor(factor, axis):
            return self.averaged(factor, tensor_factors.moment(leaf.gradient, axis))

        factors = _each(new_factor, leaf.factors, range(leaf.gradient.ndim))
        return LeafStep(leaf.back(direction, factors), factors, square)


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

        return _each(following, scale, factors, bases)

    def factored_step(self, leaf: LeafGradient) -> LeafStep:
        """S and λ with this gradient, and its direction by λ."""
        gradient, begins = leaf.gradient, leaf.age <= 1
        start = _start(gradient, sum(basis is not None for basis in leaf.bases))
        old = _each(lambda own: jnp.where(begins, start, own), leaf.scale)
        roots = _each(_inverse_root, old)
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
        factors = _each(new_factor, leaf.factors, axes)
        scale = _each(new_values, old, axes)
        used = _each(lambda a, b: jnp.where(begins, a, b), old, scale)
        inverse = tensor_factors.times(
            jnp.ones_like(gradient), _each(_inverse_root, used)
        )
        mean = tensor_factors.to_bases(leaf.mean, leaf.bases)
        direction = mean * (inverse / (1 + self.eps * inverse))
        return LeafStep(leaf.back(direction, factors), factors, scale)


def _each(function: Any, *axes: Sequence[Any]) -> tuple[Any, ...]:
    """The function of each axis that has a first entry."""
    return tuple(
        None if entries[0] is None else function(*entries)
        for entries in zip(*axes, strict=True)
    )


def _root_mean_square(tensor: Array) -> Array:
    """√c, without underflow."""
    largest = jnp.max(jnp.abs(tensor))
    safe = jnp.where(largest > 0, largest, 1)
    return largest * jnp.sqrt(jnp.mean((tensor / safe) ** 2))


def _start(gradient: Array, count: int) -> Array:
    """c^{1/k}."""
    root = _root_mean_square(gradient)
    return jnp.where(root > 0, jnp.where(root > 0, root, 1) ** (2 / count), 0)


def _inverse_root(values: Float[Array, " d"]) -> Float[Array, " d"]:
    """1/√λ; 0 where λ is rounding."""
    moves = tensor_factors.above_rounding(values, math.prod(values.shape))
    return jnp.where(moves, 1 / jnp.sqrt(jnp.where(moves, values, 1)), 0)
