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
    """Compares forward and reverse derivatives with central differences.

    Args:
        function: a function of an array, to an array.
        x: where.
        tolerance: of the error relative to the size of the derivative.

    Returns:
        One check for each mode.
    """
    function = jax.jit(function)
    step = np.cbrt(np.finfo(x.dtype).eps) * (1 + np.abs(np.asarray(x)))
    directions = np.diag(step.ravel()).reshape(-1, *x.shape)
    differences = jnp.stack(
        [(function(x + d) - function(x - d)) / (2 * d.sum()) for d in directions],
        axis=-1,
    )
    checks = []
    for name, way in {"forward": jax.jacfwd, "reverse": jax.jacrev}.items():
        derivative = jax.jit(way(function))(x).reshape(differences.shape)
        error = float(relative_error(derivative, differences))
        checks.append(Check(name, error, 0, tolerance))
    return Report("Derivatives against central differences", tuple(checks))
