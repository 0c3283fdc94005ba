"""Duality of the natural and the expectation parameters.

The log-normaliser A(η) and its Legendre conjugate A*(μ) = sup_η ⟨η, μ⟩ − A(η) have
inverse gradients, μ = ∇A(η) and η = ∇A*(μ), and one divergence in two orientations:

    KL(p ‖ q) = D_A(η_q, η_p) = D_A*(μ_p, μ_q).

Projections. Among the laws with η in an affine subspace (an e-flat family) the m-
projection of p minimises KL(p ‖ ·); among those with μ in an affine subspace (m-flat)
the e-projection minimises KL(· ‖ p). With q the projection, and r any law of the
subspace, Pythagoras holds:

    KL(p ‖ r) = KL(p ‖ q) + KL(q ‖ r),     KL(r ‖ p) = KL(r ‖ q) + KL(q ‖ p).

Source: Amari (2016), sections 1.3 to 1.6 and 2.4.
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple, final

import jax.numpy as jnp

from natgrad.families.base import ExponentialFamily
from natgrad.geometry.charts import Chart, chart_of, inside
from natgrad.geometry.points import Point, expected, same_family
from natgrad.geometry.roots import newton_root
from natgrad.typing import Array


@final
@dataclasses.dataclass(frozen=True)
class Potential:
    """The log-normaliser of a family as a convex function, and its dual.

    Attributes:
        family: the exponential family.
    """

    family: ExponentialFamily

    def __call__(self, eta: Array) -> Array:
        """A(η), shape ()."""
        return self.family.log_normalizer(eta)

    def mean(self, eta: Array) -> Array:
        """∇A(η) = μ."""
        return self.family.mean(eta)

    def natural(self, mu: Array) -> Array:
        """∇A*(μ) = η."""
        return self.family.natural(mu)

    def bregman(self, eta: Array, eta2: Array) -> Array:
        """D_A(η, η2) = A(η) − A(η2) − ⟨η − η2, ∇A(η2)⟩, by the accurate divergence."""
        return self.family.kl(eta2, eta)

    @property
    def dual(self) -> DualPotential:
        """A*."""
        return DualPotential(self.family)

    @property
    def chart(self) -> Chart:
        """The chart whose coordinates A reads."""
        return chart_of(self.family, "natural")

    @property
    def dual_chart(self) -> Chart:
        """The chart of its gradients."""
        return chart_of(self.family, "expectation")


@final
@dataclasses.dataclass(frozen=True)
class DualPotential:
    """A* of a family, as a potential on the expectation parameters.

    Attributes:
        family: the exponential family.
    """

    family: ExponentialFamily

    def __call__(self, mu: Array) -> Array:
        """A*(μ), shape ()."""
        return self.family.conjugate(mu)

    def mean(self, mu: Array) -> Array:
        """∇A*(μ) = η."""
        return self.family.natural(mu)

    def natural(self, eta: Array) -> Array:
        """∇A(η) = μ."""
        return self.family.mean(eta)

    def bregman(self, mu: Array, mu2: Array) -> Array:
        """D_A*(μ, μ2) = KL(p_μ ‖ p_μ2)."""
        return self.family.kl(self.family.natural(mu), self.family.natural(mu2))

    @property
    def dual(self) -> Potential:
        """A."""
        return Potential(self.family)

    @property
    def chart(self) -> Chart:
        """The chart whose coordinates A* reads."""
        return chart_of(self.family, "expectation")

    @property
    def dual_chart(self) -> Chart:
        """The chart of its gradients."""
        return chart_of(self.family, "natural")


class Projection(NamedTuple):
    """A nearest law.

    Attributes:
        point: the projection, in the chart of `origin`.
        residual: how far from orthogonal the way there is; 0 up to rounding.
    """

    point: Point
    residual: Array


def m_projection(point: Point, origin: Point, directions: Array) -> Projection:
    """The law of η ∈ origin + span(directions) that minimises KL(point ‖ ·).

    It matches moments: ⟨d, μ⟩ is that of `point` for every direction d.

    Args:
        point: p.
        origin: a law of the e-flat family.
        directions: [K, ...] in η, linearly independent.

    Raises:
        ValueError: for points of different families and directions of another shape.
    """
    return _projection(Potential(_family(point, origin)), point, origin, directions)


def e_projection(point: Point, origin: Point, directions: Array) -> Projection:
    """The law of μ ∈ origin + span(directions) that minimises KL(· ‖ point).

    Args:
        point: p.
        origin: a law of the m-flat family.
        directions: [K, ...] in μ, linearly independent.

    Raises:
        ValueError: as for `m_projection`.
    """
    potential = DualPotential(_family(point, origin))
    return _projection(potential, point, origin, directions)


def _family(point: Point, origin: Point) -> ExponentialFamily:
    expected(Point, point, "a projection")
    same_family(point, origin)
    return point.family


def _projection(potential, point, origin, directions) -> Projection:
    """The minimum of D(·, p) on the flat, a convex problem, by Newton's method."""
    target = point.to(potential.dual_chart).coordinates
    start = origin.to(potential.chart)
    x0 = start.coordinates
    if directions.shape[1:] != x0.shape:
        raise ValueError(
            f"directions have shape {directions.shape}; expected [K, ...] with the "
            f"shape {x0.shape} of the coordinates {potential.chart.name!r}."
        )
    basis = directions.reshape(directions.shape[0], -1)

    def position(a):
        return x0 + jnp.tensordot(a, directions, axes=1, precision="highest")

    def misfit(a):
        x = position(a)
        gap = (potential.mean(x) - target).ravel()
        slope = jnp.matmul(basis, gap, precision="highest")
        return jnp.where(inside(potential.chart, x), slope, jnp.nan)

    a, residual = newton_root(misfit, jnp.zeros(basis.shape[0], x0.dtype))
    return Projection(start.at(position(a)).to(origin.chart), residual)
