"""Charts: coordinates of an exponential family, and the domains they cover.

The coordinates x of a law depend on the chart: natural η, expectation μ = ∇A(η), a
named source chart such as mean/sd, or the user's own diffeomorphism x -> η.

A chart covers a convex domain, given by concave functions that are positive inside it
(`margins`); `natgrad.geometry.domain` takes its steps by them.

Source: Amari, Information Geometry and Its Applications (2016), sections 1.3 and 2.1.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
from jaxtyping import Bool, Float

from natgrad.families.base import ExponentialFamily, Family
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


_ATLASES: dict[type, Callable[[Any], Atlas]] = {}


def register(cls: type) -> Callable:
    """Registers the charts and domains of a class of families, as a decorator.

    Args:
        cls: the class of families; its subclasses use the same atlas.

    Returns:
        A decorator of a function from a family of this class to its `Atlas`.
    """

    def keep(atlas: Callable[[Any], Atlas]) -> Callable[[Any], Atlas]:
        _ATLASES[cls] = atlas
        _known_charts.cache_clear()
        return atlas

    return keep


def charts(family: Family) -> dict[str, Chart]:
    """The charts that are known for a family.

    Args:
        family: an exponential family.

    Returns:
        Name -> chart: "natural", "expectation", then the source charts.

    Raises:
        ValueError: the family is not an `ExponentialFamily`.
    """
    if not isinstance(family, ExponentialFamily):
        raise ValueError(
            f"{family!r} was given; expected an ExponentialFamily, whose natural and "
            "expectation parameters the charts are. A family under other parameters "
            "is the exponential family in a source chart."
        )
    return dict(_known_charts(family))


def chart_of(family: ExponentialFamily, chart: Chart | str) -> Chart:
    """A chart by its name.

    Args:
        family: whose charts are searched.
        chart: the name, or a chart, which is returned as it is.

    Returns:
        The chart.

    Raises:
        ValueError: the family has no chart of that name.
    """
    if isinstance(chart, Chart):
        return chart
    known = charts(family)
    if chart not in known:
        raise ValueError(
            f"chart {chart!r} was given; {family!r} has the charts "
            f"{', '.join(map(repr, known))}. Make another with geometry.Chart."
        )
    return known[chart]


def inside(chart: Chart, x: Float[Array, "*x"]) -> Bool[Array, ""]:
    """Whether coordinates are a point of a chart.

    Args:
        chart: the chart.
        x: coordinates, of any shape that the chart reads.

    Returns:
        A boolean of shape (): x is finite and all margins are positive.
    """
    return jnp.all(chart.margins(x) > 0) & jnp.all(jnp.isfinite(x))


@functools.lru_cache(maxsize=256)
def _known_charts(family: ExponentialFamily) -> tuple[tuple[str, Chart], ...]:
    for cls in type(family).__mro__:
        if cls in _ATLASES:
            atlas = _ATLASES[cls](family)
            break
    else:
        atlas = Atlas(_unknown(family, "natural"), _unknown(family, "expectation"))
    identity = lambda x: x
    natural = Chart(
        "natural", identity, identity, atlas.natural, family.mean, atlas.gauge
    )
    mean = Chart(
        "expectation", family.natural, family.mean, atlas.mean, None, atlas.gauge
    )
    return tuple((chart.name, chart) for chart in (natural, mean, *atlas.sources))


def _unknown(family: ExponentialFamily, name: str) -> Map:
    def margins(x: Array) -> Array:
        del x
        raise ValueError(
            f"The {name} domain of {family!r} is not known, so no step can promise to "
            "stay in it: give it with geometry.register, or step in a Chart with "
            "margins."
        )

    return margins
