"""Charts: coordinates of an exponential family, and the domains they cover.

The coordinates x of a law depend on the chart: natural η, expectation μ = ∇A(η), a
named source chart such as mean/sd, or the user's own diffeomorphism x -> η.

A chart covers a convex domain, given by concave functions that are positive inside it
(`margins`); `natgrad.geometry.domain` takes its steps by them.

Source: Amari, Information Geometry and Its Applications (2016), sections 1.3 and 2.1.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax.numpy as jnp
from jaxtyping import Bool, Float

from natgrad.families.base import ExponentialFamily
from natgrad.typing import Array

Map = Callable[[Array], Array]


def whole_space(x: Float[Array, "*x"]) -> Float[Array, " M"]:
    """The margins of a chart whose every array is a point: there are none.

    Args:
        x: coordinates.

    Returns:
        An empty array.
    """
    return jnp.zeros(0, x.dtype)


@dataclasses.dataclass(frozen=True)
class Chart:
    """Coordinates x of a family, by the diffeomorphism to its natural parameters.

    Two charts are the same if their fields are: make a chart once and keep it.

    Attributes:
        name: what errors and reports call it.
        to_natural: x -> η.
        from_natural: η -> x.
        margins: x -> [M], concave functions that are positive exactly on the domain;
            `whole_space` for none. They may be NaN outside.
        to_mean: x -> μ, where there is a more accurate way than through η.
        gauge: where different x give the same law, a linear map v -> G v with F + G
            regular and G v = 0 for the tangents to be used; None for a true chart.
    """

    name: str
    to_natural: Map = dataclasses.field(repr=False)
    from_natural: Map = dataclasses.field(repr=False)
    margins: Map = dataclasses.field(default=whole_space, repr=False)
    to_mean: Map | None = dataclasses.field(default=None, repr=False)
    gauge: Map | None = dataclasses.field(default=None, repr=False)

    def mean_map(self, family: ExponentialFamily) -> Map:
        """The map x -> μ of a family in this chart.

        Args:
            family: the family.

        Returns:
            The chart's own map where it has one, else the map through η.
        """
        return self.to_mean or (lambda x: family.mean(self.to_natural(x)))

    def change_to(self, chart: Chart) -> Map:
        """The map from the coordinates of this chart to those of another.

        Args:
            chart: another chart of the same family.

        Returns:
            A function of coordinates.
        """
        if chart == self:
            return lambda x: x
        return lambda x: chart.from_natural(self.to_natural(x))


@dataclasses.dataclass(frozen=True)
class Atlas:
    """What the geometry knows of a class of families.

    Attributes:
        natural: margins of the natural parameters.
        mean: margins of the expectation parameters.
        sources: further charts.
        gauge: of the natural and the expectation chart, see `Chart`.
    """

    natural: Map
    mean: Map
    sources: tuple[Chart, ...] = ()
    gauge: Map | None = None


def inside(chart: Chart, x: Float[Array, "*x"]) -> Bool[Array, ""]:
    """Whether coordinates are a point of a chart.

    Args:
        chart: the chart.
        x: coordinates, of any shape that the chart reads.

    Returns:
        A boolean of shape (): x is finite and all margins are positive.
    """
    return jnp.all(chart.margins(x) > 0) & jnp.all(jnp.isfinite(x))
