"""Derivatives against central differences."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from natgrad.geometry.check.measures import relative_error
from natgrad.geometry.check.report import Check, Report
from natgrad.typing import Array


def derivatives(
    function: Callable[[Array], Array], x: Array, *, tolerance: float = 1e-6
) -> Report:
    """Forward and reverse derivatives of `function` against central differences.

    Args:
        function: of an array, to an array.
        x: where.
        tolerance: of the error relative to the size of the derivative.
    """
    function = jax.jit(function)
    h = float(np.cbrt(np.finfo(x.dtype).eps)) * (1 + jnp.abs(x))
    directions = jnp.eye(x.size, dtype=x.dtype).reshape(-1, *x.shape) * h
    differences = jnp.stack(
        [(function(x + d) - function(x - d)) / (2 * jnp.sum(d)) for d in directions],
        axis=-1,
    )
    ways = {"forward": jax.jacfwd, "reverse": jax.jacrev}
    checks = [
        Check(
            name,
            relative_error(
                jax.jit(way(function))(x).reshape(differences.shape), differences
            ),
            0,
            tolerance,
        )
        for name, way in ways.items()
    ]
    return Report("Derivatives against central differences", tuple(checks))
