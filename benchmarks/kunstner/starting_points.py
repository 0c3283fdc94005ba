"""Tuned methods from other starting points: how far their tuning carries.

Twenty iterations from factor × θ*, with the settings that were best from 0.

Source: Kunstner, Hennig & Balles (2019), appendix, the starting-point figure.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from benchmarks.kunstner.optimisation import METHODS, descend
from benchmarks.kunstner.problems import Problem, minimiser
from benchmarks.kunstner.tuning import Grid

FACTORS = (0.875, 0.75, 0.5, 0.0)
_STEPS = 20


@dataclasses.dataclass(frozen=True)
class StartingPoints:
    """Losses from each starting point.

    Attributes:
        factors: of θ*.
        least: the loss at θ*.
        losses: method -> [21, factors].
    """

    factors: tuple[float, ...]
    least: float
    losses: dict[str, np.ndarray]

    def to_dict(self) -> dict[str, Any]:
        """Plain Python values."""
        return {
            "factors": list(self.factors),
            "least": self.least,
            "losses": {name: losses.T.tolist() for name, losses in self.losses.items()},
        }


def starting_points(problem: Problem, grids: Sequence[Grid]) -> StartingPoints:
    """Run each tuned method that has a damping from each starting point.

    Args:
        problem: with a minimum; a separable logistic problem has none.
        grids: tuned methods.
    """
    minimum = minimiser(problem)
    losses = {}
    for grid in grids:
        best = grid.best
        if not np.isnan(best.damping):
            setting = jnp.asarray([best.rate]), jnp.asarray([best.damping])
            runs = [
                descend(
                    problem, METHODS[grid.method], factor * minimum, *setting, _STEPS
                )[:, 0]
                for factor in FACTORS
            ]
            losses[grid.method] = np.stack(runs, axis=1)
    return StartingPoints(FACTORS, float(problem.loss(minimum)), losses)
