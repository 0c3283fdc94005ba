"""Whether what is put together belongs together: kinds, families, charts, points."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

_CURES = {
    "Point": " Points are made by geometry.Point(family, chart, coordinates).",
    "Tangent": " Covectors become tangents by geometry.sharp, arrays by point.tangent.",
    "Covector": " Tangents become covectors by geometry.flat, arrays by "
    "point.covector.",
}


def expected(cls: type, value: Any, what: str) -> None:
    """Raises a ValueError unless `value` is a `cls`; `what` says what it is to the
    caller.
    """
    if not isinstance(value, cls):
        raise ValueError(
            f"{what}: a {type(value).__name__} was given; expected a {cls.__name__}."
            + _CURES.get(cls.__name__, "")
        )


def same_family(point: Any, other: Any) -> None:
    """Raises a ValueError unless `other` is a point of the same family."""
    expected(type(point), other, "the other law")
    if other.family != point.family:
        raise ValueError(
            f"a point of {other.family!r} was given; expected one of {point.family!r}."
        )


def same_chart(point: Any, other: Any) -> None:
    """Raises a ValueError unless two points are in one chart of one family."""
    same_family(point, other)
    if other.chart != point.chart:
        raise ValueError(
            f"the chart {other.chart.name!r} was given; expected {point.chart.name!r}. "
            f"Convert with .to({point.chart.name!r})."
        )


def same_point(point: Any, other: Any) -> None:
    """Raises a ValueError unless vectors at these points can meet.

    They are in one chart. Whether they are at one point is not known under jit; where
    it is known, the point may have been found in two ways, which differ by rounding.
    """
    same_chart(point, other)
    here, there = point.coordinates, other.coordinates
    if here is there or any(isinstance(x, Tracer) for x in (here, there)):
        return
    rounding = float(jnp.finfo(here.dtype).eps) ** 0.5
    x, y = (np.asarray(each, np.float64) for each in (here, there))
    if not np.allclose(x, y, rtol=rounding, atol=rounding, equal_nan=True):
        raise ValueError(
            f"vectors at two points, {x} and {y} in the chart {point.chart.name!r}, do "
            "not meet: give both at one point."
        )
