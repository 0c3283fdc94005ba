"""Information of statistics: never more than the data's, all of it if sufficient."""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from natgrad.geometry.check.measures import bound_of, place
from natgrad.geometry.check.report import Check, Report
from natgrad.geometry.information import fisher_matrix
from natgrad.geometry.points import Point
from natgrad.typing import Array


def monotone(
    point: Point, image: Callable[[Point], Point], *, copies: int = 1
) -> Report:
    """Checks that a statistic has no more information than the data: G ≤ n F.

    Args:
        point: the law of one observation.
        image: a law -> the law of the statistic, a Point of any family.
        copies: the number n of independent observations it is computed from.

    Returns:
        One check, of the largest part of the information that is kept.
    """
    values = _kept(point, image, copies)
    bound = bound_of(point.coordinates, None)
    checks = (Check("largest part kept", float(values.max()), 0, 1 + bound),)
    return Report(f"Information of a statistic at {place(point)}", checks)


def sufficient(
    point: Point, image: Callable[[Point], Point], *, copies: int = 1
) -> Report:
    """Checks that a statistic has all the information of the data: G = n F.

    Args:
        point: the law of one observation.
        image: a law -> the law of the statistic, a Point of any family.
        copies: the number n of independent observations it is computed from.

    Returns:
        Two checks, of the least and the largest part that is kept.
    """
    values = _kept(point, image, copies)
    bound = bound_of(point.coordinates, None)
    checks = (
        Check("least part kept", float(values.min()), 1 - bound, 1 + bound),
        Check("largest part kept", float(values.max()), 1 - bound, 1 + bound),
    )
    return Report(f"Sufficiency at {place(point)}", checks)


def _kept(point: Point, image: Callable[[Point], Point], copies: int) -> np.ndarray:
    """The generalised eigenvalues of the statistic's information and n F."""
    return np.asarray(jax.jit(lambda p: _eigenvalues(p, image, copies))(point))


def _eigenvalues(point: Point, image: Callable[[Point], Point], copies: int) -> Array:
    target = image(point)
    law = lambda x: image(point.at(x)).coordinates
    j = jax.jacfwd(law)(point.coordinates).reshape(-1, point.coordinates.size)
    kept = jnp.einsum("ai,ab,bj->ij", j, fisher_matrix(target), j, precision="highest")
    lower = jnp.linalg.cholesky(copies * fisher_matrix(point))
    half = jax.scipy.linalg.solve_triangular(lower, kept, lower=True)
    whole = jax.scipy.linalg.solve_triangular(lower, half.T, lower=True)
    return jnp.linalg.eigvalsh(whole)
