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
from jaxtyping import Float

from natgrad.families.base import ExponentialFamily
from natgrad.geometry.atlases import Chart, chart_of, inside
from natgrad.geometry.points import Point
from natgrad.geometry.roots import newton_root
from natgrad.geometry.validation import expected, same_family
from natgrad.typing import Array


@final
@dataclasses.dataclass(frozen=True)
class Potential:
    """The log-normaliser of a family as a convex function, and its dual.

    Attributes:
        family: the exponential family.
    """

    family: ExponentialFamily

    def __call__(self, eta: Float[Array, "*x"]) -> Float[Array, ""]:
        """The log-normaliser.

        Args:
            eta: natural parameters.

        Returns:
            A(η) in nats, shape ().
        """
        return self.family.log_normalizer(eta)

    def mean(self, eta: Float[Array, "*x"]) -> Float[Array, "*x"]:
        """The gradient of A.

        Args:
            eta: natural parameters.

        Returns:
            ∇A(η) = μ, the expectation parameters, shaped like η.
        """
        return self.family.mean(eta)

    def natural(self, mu: Float[Array, "*x"]) -> Float[Array, "*x"]:
        """The gradient of the dual A*, which inverts `mean`.

        Args:
            mu: expectation parameters.

        Returns:
            ∇A*(μ) = η, the natural parameters, shaped like μ.
        """
        return self.family.natural(mu)

    def bregman(
        self, eta: Float[Array, "*x"], eta2: Float[Array, "*x"]
    ) -> Float[Array, ""]:
        """The Bregman divergence D_A(η, η2) = A(η) − A(η2) − ⟨η − η2, ∇A(η2)⟩.

        Args:
            eta: natural parameters.
            eta2: natural parameters of the same shape.

        Returns:
            KL(p_η2 ‖ p_η) in nats, shape (), by the family's own formula, which does
            not cancel.
        """
        return self.family.kl(eta2, eta)

    @property
    def dual(self) -> DualPotential:
        """The Legendre conjugate A*."""
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

    def __call__(self, mu: Float[Array, "*x"]) -> Float[Array, ""]:
        """The Legendre conjugate of the log-normaliser.

        Args:
            mu: expectation parameters.

        Returns:
            A*(μ) in nats, shape ().
        """
        return self.family.conjugate(mu)

    def mean(self, mu: Float[Array, "*x"]) -> Float[Array, "*x"]:
        """The gradient of A*.

        Args:
            mu: expectation parameters.

        Returns:
            ∇A*(μ) = η, the natural parameters, shaped like μ.
        """
        return self.family.natural(mu)

    def natural(self, eta: Float[Array, "*x"]) -> Float[Array, "*x"]:
        """The gradient of the dual A, which inverts `mean`.

        Args:
            eta: natural parameters.

        Returns:
            ∇A(η) = μ, the expectation parameters, shaped like η.
        """
        return self.family.mean(eta)

    def bregman(
        self, mu: Float[Array, "*x"], mu2: Float[Array, "*x"]
    ) -> Float[Array, ""]:
        """The Bregman divergence D_A*(μ, μ2).

        Args:
            mu: expectation parameters.
            mu2: expectation parameters of the same shape.

        Returns:
            KL(p_μ ‖ p_μ2) in nats, shape ().
        """
        return self.family.kl(self.family.natural(mu), self.family.natural(mu2))

    @property
    def dual(self) -> Potential:
        """The log-normaliser A, whose conjugate this is."""
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
    """The law of a subspace that is nearest to another law.

    Attributes:
        point: the projection, in the chart of `origin`.
        residual: how far the line from p to the projection is from orthogonal to the
            subspace, shape (); 0 up to rounding.
    """

    point: Point
    residual: Float[Array, ""]


def m_projection(
    point: Point, origin: Point, directions: Float[Array, " K *x"]
) -> Projection:
    """The law of η ∈ origin + span(directions) that minimises KL(point ‖ ·).

    It matches moments: ⟨d, μ⟩ is that of `point` for every direction d.

    Args:
        point: p.
        origin: a law of the e-flat family.
        directions: [K, ...] in η, linearly independent.

    Returns:
        The projection and its residual.

    Raises:
        ValueError: the points are of different families, or the directions of another
            shape.
    """
    return _projection(Potential(_family(point, origin)), point, origin, directions)


def e_projection(
    point: Point, origin: Point, directions: Float[Array, " K *x"]
) -> Projection:
    """The law of μ ∈ origin + span(directions) that minimises KL(· ‖ point).

    Args:
        point: p.
        origin: a law of the m-flat family.
        directions: [K, ...] in μ, linearly independent.

    Returns:
        The projection and its residual.

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
