"""Charts of an exponential family: points, tangents and covectors that know theirs.

A point of the family is a law. Its coordinates x depend on the chart: natural η,
expectation μ = ∇A(η), a named source chart such as mean/sd, or the user's own
diffeomorphism x -> η. From chart x to chart y, with J = ∂y/∂x,

    point  y(x),      tangent  v_y = J v_x,      covector  g_x = Jᵀ g_y.

So the three are three types, and each carries its chart. Adding them up, or handing one
where another is wanted, is an error.

A chart covers a convex domain, given by concave functions that are positive inside it
(`margins`); `natgrad.geometry.domain` takes its steps by them.

Source: Amari, Information Geometry and Its Applications (2016), sections 1.3 and 2.1.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, final

import jax
import jax.numpy as jnp

from natgrad.families.base import ExponentialFamily
from natgrad.typing import Array, ArrayLike, Key

Map = Callable[[Array], Array]


def whole_space(x: Array) -> Array:
    """No margins, [0]: every x is a point."""
    del x
    return jnp.zeros(0)


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
    """A decorator: the function from a family of this class to its `Atlas`."""

    def keep(atlas: Callable[[Any], Atlas]) -> Callable[[Any], Atlas]:
        _ATLASES[cls] = atlas
        _known_charts.cache_clear()
        return atlas

    return keep


def charts(family: ExponentialFamily) -> dict[str, Chart]:
    """The charts known for a family, by name: natural, expectation, then others.

    Raises:
        ValueError: unless `family` is an exponential family.
    """
    if not isinstance(family, ExponentialFamily):
        raise ValueError(
            f"{family!r} was given; expected an ExponentialFamily, whose natural and "
            "expectation parameters the charts are. A family under other parameters "
            "is the exponential family in a source chart."
        )
    return dict(_known_charts(family))


def chart_of(family: ExponentialFamily, chart: Chart | str) -> Chart:
    """The chart itself, or the family's chart of that name; ValueError if unknown."""
    if isinstance(chart, Chart):
        return chart
    known = charts(family)
    if chart not in known:
        raise ValueError(
            f"chart {chart!r} was given; {family!r} has the charts "
            f"{', '.join(map(repr, known))}. Make another with geometry.Chart."
        )
    return known[chart]


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
        raise ValueError(
            f"The {name} domain of {family!r} is not known, so no step can promise to "
            "stay in it: give it with geometry.register, or step in a Chart with "
            "margins."
        )

    return margins


@final
@jax.tree_util.register_pytree_with_keys_class
@dataclasses.dataclass(frozen=True)
class Point:
    """A law of a family, by its coordinates in a chart. A pytree of the coordinates.

    Attributes:
        family: the exponential family; hashable.
        chart: a Chart, or the name of one of `charts(family)`.
        coordinates: x, floating; several factors are one point of their product.
    """

    family: ExponentialFamily
    chart: Chart
    coordinates: Array

    def __post_init__(self):
        chart = chart_of(self.family, self.chart)
        coordinates = jnp.asarray(self.coordinates)
        if not jnp.issubdtype(coordinates.dtype, jnp.floating):
            raise ValueError(
                f"coordinates have dtype {coordinates.dtype}; expected real floating "
                f"numbers, the coordinates {chart.name!r} of {self.family!r}."
            )
        object.__setattr__(self, "chart", chart)
        object.__setattr__(self, "coordinates", coordinates)

    @property
    def natural(self) -> Array:
        """The natural parameters η."""
        return self.chart.to_natural(self.coordinates)

    @property
    def mean(self) -> Array:
        """The expectation parameters μ."""
        return mean_map(self)(self.coordinates)

    def at(self, coordinates: Array) -> Point:
        """The point with other coordinates in the same chart."""
        return Point(self.family, self.chart, coordinates)

    def to(self, chart: Chart | str) -> Point:
        """The same law in another chart."""
        chart = chart_of(self.family, chart)
        change = change_of_coordinates(self, chart)
        return Point(self.family, chart, change(self.coordinates))

    def tangent(self, components: Array) -> Tangent:
        """A tangent at this point, by its components in this chart."""
        return Tangent(self, components)

    def covector(self, components: Array) -> Covector:
        """A covector at this point, by its components in this chart."""
        return Covector(self, components)

    def inside(self) -> Array:
        """Boolean scalar: do the coordinates lie in the chart's domain?"""
        return inside(self.chart, self.coordinates)

    def kl(self, other: Point) -> Array:
        """KL(self ‖ other) in nats, shape ()."""
        same_family(self, other)
        return self.family.kl(self.natural, other.natural)

    def log_prob(self, y: Array) -> Array:
        """The log-probability of y in nats, shape ()."""
        return self.family.log_prob(self.natural, y)

    def sample(self, key: Key) -> Array:
        """A draw of this law."""
        return self.family.sample(key, self.natural)

    def __add__(self, other):
        raise ValueError(
            f"a {type(other).__name__} was added to a Point; expected a step along a "
            "Tangent that stays in the domain: geometry.retract(tangent, h)."
        )

    __sub__ = __radd__ = __rsub__ = __add__

    def tree_flatten_with_keys(self):
        key = jax.tree_util.GetAttrKey("coordinates")
        return ((key, self.coordinates),), (self.family, self.chart)

    @classmethod
    def tree_unflatten(cls, static, children):
        return _unchecked(cls, *static, *children)


class _Vector:
    """Components at a point, and the arithmetic of a vector space."""

    point: Point
    components: Array

    def __post_init__(self):
        expected(Point, self.point, f"the base of a {type(self).__name__}")
        components = jnp.asarray(self.components)
        shape = self.point.coordinates.shape
        if components.shape != shape:
            raise ValueError(
                f"{type(self).__name__}: components have shape {components.shape}; "
                f"expected {shape}, that of the coordinates in the chart "
                f"{self.point.chart.name!r}."
            )
        object.__setattr__(self, "components", components)

    def __add__(self, other):
        expected(type(self), other, f"the other summand of a {type(self).__name__}")
        same_chart(self.point, other.point)
        return type(self)(self.point, self.components + other.components)

    def __sub__(self, other):
        return self + -1 * other

    def __neg__(self):
        return type(self)(self.point, -self.components)

    def __mul__(self, factor: ArrayLike):
        return type(self)(self.point, self.components * factor)

    __rmul__ = __mul__

    def tree_flatten_with_keys(self):
        names = ("point", "components")
        keys = map(jax.tree_util.GetAttrKey, names)
        values = (self.point, self.components)
        return tuple(zip(keys, values, strict=True)), None

    @classmethod
    def tree_unflatten(cls, static, children):
        del static
        return _unchecked(cls, *children)


@final
@jax.tree_util.register_pytree_with_keys_class
@dataclasses.dataclass(frozen=True)
class Tangent(_Vector):
    """A velocity at a point: components v^i in the point's chart. A pytree."""

    point: Point
    components: Array

    def to(self, chart: Chart | str) -> Tangent:
        """The same tangent in another chart, J v."""
        chart = chart_of(self.point.family, chart)
        change = change_of_coordinates(self.point, chart)
        x, v = jax.jvp(change, (self.point.coordinates,), (self.components,))
        return Tangent(Point(self.point.family, chart, x), v)


@final
@jax.tree_util.register_pytree_with_keys_class
@dataclasses.dataclass(frozen=True)
class Covector(_Vector):
    """A gradient at a point: components g_i = ∂L/∂x^i in the point's chart. A pytree."""

    point: Point
    components: Array

    def to(self, chart: Chart | str) -> Covector:
        """The same covector in another chart, J⁻ᵀ g."""
        there = self.point.to(chart)
        back = change_of_coordinates(there, self.point.chart)
        (g,) = jax.vjp(back, there.coordinates)[1](self.components)
        return Covector(there, g)

    def __call__(self, tangent: Tangent) -> Array:
        """⟨g, v⟩ = Σ g_i v^i, the same in every chart, shape ()."""
        expected(Tangent, tangent, "what a Covector is applied to")
        same_chart(self.point, tangent.point)
        return jnp.vdot(self.components, tangent.components, precision="highest")


def gradient(loss: Callable[[Point], Array], point: Point) -> Covector:
    """The differential of `loss`, a function of a Point, in the point's chart."""
    expected(Point, point, "gradient")
    components = jax.grad(lambda x: loss(point.at(x)))(point.coordinates)
    return Covector(point, components)


def mean_map(point: Point) -> Map:
    """The map x -> μ in the point's chart."""
    chart, family = point.chart, point.family
    return chart.to_mean or (lambda x: family.mean(chart.to_natural(x)))


def change_of_coordinates(point: Point, chart: Chart) -> Map:
    """The map from the coordinates of the point's chart to those of another."""
    if chart == point.chart:
        return lambda x: x
    return lambda x: chart.from_natural(point.chart.to_natural(x))


def inside(chart: Chart, x: Array) -> Array:
    """Boolean scalar: is x finite, and are all margins positive?"""
    return jnp.all(chart.margins(x) > 0) & jnp.all(jnp.isfinite(x))


def expected(cls: type, given: Any, what: str) -> None:
    """Raise a ValueError unless `given` is a `cls`."""
    if not isinstance(given, cls):
        raise ValueError(
            f"{what}: a {type(given).__name__} was given; expected a {cls.__name__}."
            + _CURES.get(cls.__name__, "")
        )


def same_family(point: Point, other: Any) -> None:
    """Raise a ValueError unless `other` is a point of the same family."""
    expected(Point, other, "the other law")
    if other.family != point.family:
        raise ValueError(
            f"a point of {other.family!r} was given; expected one of {point.family!r}."
        )


def same_chart(point: Point, other: Point) -> None:
    """Raise a ValueError unless both points are in one chart of one family."""
    same_family(point, other)
    if other.chart != point.chart:
        raise ValueError(
            f"the chart {other.chart.name!r} was given; expected {point.chart.name!r}. "
            f"Convert with .to({point.chart.name!r})."
        )


_CURES = {
    "Point": " Points are made by geometry.Point(family, chart, coordinates).",
    "Tangent": " Covectors become tangents by geometry.sharp, arrays by point.tangent.",
    "Covector": " Tangents become covectors by geometry.flat, arrays by "
    "point.covector.",
}


def _unchecked(cls, *fields):
    """An instance without __post_init__: JAX fills trees with all kinds of leaves."""
    self = object.__new__(cls)
    for field, value in zip(dataclasses.fields(cls), fields, strict=True):
        object.__setattr__(self, field.name, value)
    return self
