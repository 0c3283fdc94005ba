"""Points, tangents and covectors of an exponential family, each knowing its chart.

A point of the family is a law. From chart x to chart y, with J = ∂y/∂x,

    point  y(x),      tangent  v_y = J v_x,      covector  g_x = Jᵀ g_y.

So the three are three types, and each carries its chart. Adding them up, or handing one
where another is wanted, is an error. All three are pytrees of arrays.

Source: Amari, Information Geometry and Its Applications (2016), sections 1.3 and 2.1.
"""

from __future__ import annotations

import dataclasses
from typing import Self, final

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float

from natgrad.families.base import ExponentialFamily
from natgrad.geometry.atlases import Chart, chart_of, inside
from natgrad.geometry.validation import expected, same_family, same_point
from natgrad.typing import Array, ArrayLike, Key


@final
@jax.tree_util.register_pytree_with_keys_class
@dataclasses.dataclass(frozen=True, init=False)
class Point:
    """A law of a family, by its coordinates in a chart.

    `Point(family, chart, coordinates)` takes a Chart, or the name of one of
    `geometry.charts(family)`.

    Attributes:
        family: the exponential family; hashable.
        chart: the chart.
        coordinates: x, floating; several factors are one point of their product.

    Raises:
        ValueError: the family has no chart of that name, or the coordinates are not
            real floating numbers.
    """

    family: ExponentialFamily
    chart: Chart
    coordinates: Float[Array, "*x"]

    def __init__(
        self, family: ExponentialFamily, chart: Chart | str, coordinates: ArrayLike
    ):
        chart = chart_of(family, chart)
        coordinates = jnp.asarray(coordinates)
        if not jnp.issubdtype(coordinates.dtype, jnp.floating):
            raise ValueError(
                f"coordinates have dtype {coordinates.dtype}; expected real floating "
                f"numbers, the coordinates {chart.name!r} of {family!r}."
            )
        object.__setattr__(self, "family", family)
        object.__setattr__(self, "chart", chart)
        object.__setattr__(self, "coordinates", coordinates)

    @property
    def natural(self) -> Float[Array, "*x"]:
        """The natural parameters η."""
        return self.chart.to_natural(self.coordinates)

    @property
    def mean(self) -> Float[Array, "*x"]:
        """The expectation parameters μ."""
        return self.chart.mean_map(self.family)(self.coordinates)

    def at(self, coordinates: ArrayLike) -> Point:
        """The point with other coordinates x, floating, in the same chart."""
        return Point(self.family, self.chart, coordinates)

    def to(self, chart: Chart | str) -> Point:
        """The same law in another chart.

        Args:
            chart: the chart, or its name.

        Returns:
            The point.

        Raises:
            ValueError: the family has no chart of that name.
        """
        chart = chart_of(self.family, chart)
        change = self.chart.change_to(chart)
        return Point(self.family, chart, change(self.coordinates))

    def tangent(self, components: Array) -> Tangent:
        """A tangent at this point, with components v^i like the coordinates."""
        return Tangent(self, components)

    def covector(self, components: Array) -> Covector:
        """A covector at this point, with components g_i like the coordinates."""
        return Covector(self, components)

    def inside(self) -> Bool[Array, ""]:
        """Whether the coordinates lie in the chart's domain, a boolean ()."""
        return inside(self.chart, self.coordinates)

    def kl(self, other: Point) -> Float[Array, ""]:
        """The divergence of another law from this one.

        Args:
            other: a law of the same family, in any chart.

        Returns:
            KL(self ‖ other) in nats, shape ().

        Raises:
            ValueError: `other` is of another family.
        """
        same_family(self, other)
        return self.family.kl(self.natural, other.natural)

    def log_prob(self, y: Array) -> Float[Array, ""]:
        """log p(y) in nats, shape (), of a label y of the family."""
        return self.family.log_prob(self.natural, y)

    def sample(self, key: Key) -> Array:
        """A label drawn from this law by a random key."""
        return self.family.sample(key, self.natural)

    def __add__(self, other):
        raise ValueError(
            f"a {type(other).__name__} was added to a Point; expected a step along a "
            "Tangent that stays in the domain: geometry.retract(tangent, h)."
        )

    __sub__ = __radd__ = __rsub__ = __add__

    def tree_flatten_with_keys(self):
        """Gives jax.tree the coordinates as the only leaf."""
        key = jax.tree_util.GetAttrKey("coordinates")
        return ((key, self.coordinates),), (self.family, self.chart)

    @classmethod
    def tree_unflatten(cls, static, children):
        """Builds the point again for jax.tree, from leaves of any kind."""
        return _unchecked(cls, *static, *children)


@dataclasses.dataclass(frozen=True)
class _Vector:
    """Components at a point, and the arithmetic of a vector space."""

    point: Point
    components: Float[Array, "*x"]

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

    def __add__(self, other: Self) -> Self:
        expected(type(self), other, f"the other summand of a {type(self).__name__}")
        same_point(self.point, other.point)
        return type(self)(self.point, self.components + other.components)

    def __sub__(self, other: Self) -> Self:
        return self + -1 * other

    def __neg__(self) -> Self:
        return type(self)(self.point, -self.components)

    def __mul__(self, factor: ArrayLike) -> Self:
        return type(self)(self.point, self.components * factor)

    __rmul__ = __mul__

    def tree_flatten_with_keys(self):
        """Gives jax.tree the point and the components."""
        names = ("point", "components")
        keys = map(jax.tree_util.GetAttrKey, names)
        values = (self.point, self.components)
        return tuple(zip(keys, values, strict=True)), None

    @classmethod
    def tree_unflatten(cls, static, children):
        """Builds the vector again for jax.tree, from leaves of any kind."""
        del static
        return _unchecked(cls, *children)


@final
@jax.tree_util.register_pytree_with_keys_class
@dataclasses.dataclass(frozen=True)
class Tangent(_Vector):
    """A velocity at a point: components v^i in the point's chart."""

    def to(self, chart: Chart | str) -> Tangent:
        """The same tangent in another chart: J v, with J the derivative of the change.

        Args:
            chart: the chart, or its name.

        Returns:
            The tangent at the same law.
        """
        chart = chart_of(self.point.family, chart)
        change = self.point.chart.change_to(chart)
        x, v = jax.jvp(change, (self.point.coordinates,), (self.components,))
        return Tangent(Point(self.point.family, chart, x), v)


@final
@jax.tree_util.register_pytree_with_keys_class
@dataclasses.dataclass(frozen=True)
class Covector(_Vector):
    """A gradient at a point: components g_i = ∂L/∂x^i in the point's chart."""

    def to(self, chart: Chart | str) -> Covector:
        """The same covector in another chart: J⁻ᵀ g, with J the derivative of the
        change.

        Args:
            chart: the chart, or its name.

        Returns:
            The covector at the same law.
        """
        there = self.point.to(chart)
        back = there.chart.change_to(self.point.chart)
        (g,) = jax.vjp(back, there.coordinates)[1](self.components)
        return Covector(there, g)

    def __call__(self, tangent: Tangent) -> Float[Array, ""]:
        """The pairing ⟨g, v⟩ = Σ g_i v^i, the same in every chart.

        Args:
            tangent: v, at the same point and in the same chart.

        Returns:
            The pairing, shape ().

        Raises:
            ValueError: the argument is not a Tangent, or is in another chart, or at a
                point that is known to be another.
        """
        expected(Tangent, tangent, "what a Covector is applied to")
        same_point(self.point, tangent.point)
        return jnp.vdot(self.components, tangent.components, precision="highest")


def _unchecked(cls, *fields):
    """An instance without __post_init__: JAX fills trees with all kinds of leaves."""
    self = object.__new__(cls)
    for field, value in zip(dataclasses.fields(cls), fields, strict=True):
        object.__setattr__(self, field.name, value)
    return self
