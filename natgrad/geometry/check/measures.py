"""Errors and slopes that certificates report."""

from __future__ import annotations

import jax.numpy as jnp
import numpy as np

from natgrad import tree
from natgrad.geometry.points import Point
from natgrad.typing import Array, ArrayLike


def bound_of(x: Array, tolerance: float | None) -> float:
    """The bound of a relative error.

    Args:
        x: an array, for its type.
        tolerance: the bound, or None.

    Returns:
        The tolerance, or what float64 (1e-9) and float32 (1e-3) should reach.
    """
    if tolerance is not None:
        return tolerance
    return 1e-9 if x.dtype == jnp.float64 else 1e-3


def relative_error(value: Array, reference: Array) -> Array:
    """The largest error, relative to the largest reference.

    Args:
        value: what was computed.
        reference: what it should be, of the same shape.

    Returns:
        The error, shape (); absolute where the reference is 0.
    """
    size = tree.largest(jnp.abs(reference))
    error = tree.largest(jnp.abs(value - reference))
    return error / jnp.where(size > 0, size, 1)


def slope(sizes: ArrayLike, errors: ArrayLike) -> float:
    """The order of errors in sizes, by least squares of logarithms.

    Args:
        sizes: [n], positive.
        errors: [n], positive.

    Returns:
        The slope of log errors over log sizes.
    """
    return float(np.polyfit(np.log(sizes), np.log(np.asarray(errors)), 1)[0])


def place(point: Point) -> str:
    """The words by which a report calls a point.

    Args:
        point: the point.

    Returns:
        Its family, its chart and its coordinates.
    """
    coordinates = np.array2string(np.asarray(point.coordinates), precision=4)
    return f"{point.family!r}, {point.chart.name} = {coordinates}"
