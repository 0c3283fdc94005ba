"""Each method tuned on the published grid, and which of its settings are chaotic.

From θ = 0, 100 iterations, η in logspace(−20, 10, 241), λ in logspace(−10, 10, 41). The
best run has the smallest last loss; among equals the smallest η, then the smallest λ,
wins; what is not finite never does.

The condition number of F at θ = 0 reaches 1e12, and some settings are chaotic: their
loss depends on rounding. `Grid.spread` measures it: the leading settings are run again
with the rows of the data in other orders, which changes nothing but rounding, and the
spread is the largest |loss − its loss| relative to the latter. Above `CHAOTIC` a
setting is called chaotic, and beside the published choice stands the best that is not.

`starting_points` runs the tuned methods for 20 iterations from factor × θ*.

Source: Kunstner, Hennig & Balles (2019), section 4.3 and appendix C.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
import numpy as np

from benchmarks.kunstner.optimisation import BLOWN_UP, METHODS, STEPS, descend, plain
from benchmarks.kunstner.problems import Problem, minimiser

RATES = np.logspace(-20, 10, 241)
DAMPINGS = np.logspace(-10, 10, 41)

# Relative spread of the last loss by rounding alone, from which a run is chaotic.
CHAOTIC = 1e-6

# Runs side by side, which is also how many leading ones are run again.
CHUNK = 256
_ORDERS = 3

# Starting points, as multiples of θ*.
FACTORS = (0.875, 0.75, 0.5, 0.0)


@dataclasses.dataclass(frozen=True)
class Run:
    """One setting's run.

    Attributes:
        rate: η.
        damping: λ; NaN for gradient descent.
        losses: from the start on, until it stopped.
        spread: of its last loss by rounding alone, relative.
    """

    rate: float
    damping: float
    losses: list[float]
    spread: float

    @property
    def chaotic(self) -> bool:
        """Does rounding decide its loss?"""
        return not self.spread <= CHAOTIC

    def to_dict(self) -> dict[str, Any]:
        """Plain Python values."""
        return {**dataclasses.asdict(self), "chaotic": self.chaotic}


@dataclasses.dataclass(frozen=True)
class Grid:
    """One method on one problem.

    Attributes:
        method: a name in `METHODS`.
        rates: η [L].
        dampings: λ [D]; one NaN for gradient descent.
        last: last losses [L, D]; inf where a run was not finite.
        spread: [L, D], NaN where it was not measured.
        best: the published choice.
        steady: the best setting that is not chaotic; None if every measured one is.
    """

    method: str
    rates: np.ndarray
    dampings: np.ndarray
    last: np.ndarray
    spread: np.ndarray
    best: Run
    steady: Run | None

    @property
    def chaotic_share(self) -> float:
        """The part of the measured settings that is chaotic."""
        measured = self.spread[~np.isnan(self.spread)]
        return float(np.mean(measured > CHAOTIC))

    def to_dict(self) -> dict[str, Any]:
        """Plain Python values; the grid of last losses in three digits."""
        return {
            "method": self.method,
            "best": self.best.to_dict(),
            "steady": self.steady and self.steady.to_dict(),
            "measured": int(np.sum(~np.isnan(self.spread))),
            "chaotic_share": self.chaotic_share,
            "rates": self.rates.tolist(),
            "dampings": self.dampings.tolist(),
            "last": [[float(f"{loss:.3g}") for loss in row] for row in self.last],
        }


def optimise(
    problem: Problem,
    method: str,
    rates: np.ndarray = RATES,
    dampings: np.ndarray = DAMPINGS,
    steps: int = STEPS,
) -> Grid:
    """Run a method at every setting of a grid, from θ = 0.

    Args:
        problem: what to minimise.
        method: a name in `METHODS`.
        rates: η, ascending.
        dampings: λ, ascending; gradient descent has none.
        steps: iterations of each run.
    """
    direction = METHODS[method]
    dampings = np.array([math.nan]) if direction is plain else np.asarray(dampings)
    grid = np.stack(np.meshgrid(rates, dampings, indexing="ij"), axis=-1)
    settings = grid.reshape(-1, 2)
    chunk = min(CHUNK, len(settings))
    start = jnp.zeros(problem.parameters)

    def run(problem: Problem, settings: np.ndarray) -> np.ndarray:
        """Losses [S, steps + 1]."""
        curves = np.empty((len(settings), steps + 1))
        for first in range(0, len(settings), chunk):
            # Chunks have one size: the last repeats the last setting.
            rows = np.minimum(np.arange(first, first + chunk), len(settings) - 1)
            eta, lam = jnp.asarray(settings[rows]).T
            curves[rows] = descend(problem, direction, start, eta, lam, steps).T
        return curves

    order = np.argsort(_likeness(settings), kind="stable")
    curves = np.empty((len(settings), steps + 1))
    curves[order] = run(problem, settings[order])
    last = last_losses(curves)
    leading = np.argsort(last, kind="stable")[:chunk]
    leading = leading[np.isfinite(last[leading])]
    spread = np.full(len(settings), np.nan)
    spread[leading] = _spread(problem, settings[leading], last[leading], run)

    def one(index: int) -> Run:
        curve = curves[index][~np.isnan(curves[index])]
        eta, lam = map(float, settings[index])
        return Run(eta, lam, curve.tolist(), float(spread[index]))

    steady = leading[spread[leading] <= CHAOTIC]
    return Grid(
        method=method,
        rates=np.asarray(rates),
        dampings=dampings,
        last=last.reshape(grid.shape[:2]),
        spread=spread.reshape(grid.shape[:2]),
        best=one(leading[0]),
        steady=one(steady[0]) if len(steady) else None,
    )


def last_losses(curves: np.ndarray) -> np.ndarray:
    """The last loss of each run [S, T], inf where it ended in no number: [S]."""
    count = np.sum(~np.isnan(curves), axis=1)
    last = curves[np.arange(len(curves)), np.maximum(count - 1, 0)]
    blown_up = last > BLOWN_UP * curves[:, 0]
    fit = np.isfinite(last) & ((count == curves.shape[1]) | blown_up)
    return np.where(fit, last, np.inf)


def _spread(
    problem: Problem, settings: np.ndarray, last: np.ndarray, run: Callable
) -> np.ndarray:
    """The largest relative change of the last losses by reordering rows: [S]."""
    draw = np.random.default_rng(0)
    worst = np.zeros(len(settings))
    for _ in range(_ORDERS):
        other = problem.take(draw.permutation(problem.examples))
        change = np.abs(last_losses(run(other, settings)) - last) / last
        worst = np.maximum(worst, change)
    return worst


def _likeness(settings: np.ndarray) -> np.ndarray:
    """Settings near in this blow up together, so that their chunk ends early."""
    eta, lam = settings.T
    return eta / np.where(np.isnan(lam), 1.0, 1.0 + lam)


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
        losses = {name: losses.T.tolist() for name, losses in self.losses.items()}
        return {"factors": list(self.factors), "least": self.least, "losses": losses}


def starting_points(problem: Problem, grids: Sequence[Grid]) -> StartingPoints:
    """Run each tuned method that has a damping from each starting point.

    Args:
        problem: with a minimum; a separable logistic problem has none.
        grids: tuned methods.
    """
    minimum, losses = minimiser(problem), {}
    for grid in grids:
        rate, damping = jnp.asarray([[grid.best.rate], [grid.best.damping]])
        if not np.isnan(grid.best.damping):
            method = METHODS[grid.method]
            runs = [
                descend(problem, method, factor * minimum, rate, damping, 20)[:, 0]
                for factor in FACTORS
            ]
            losses[grid.method] = np.stack(runs, axis=1)
    return StartingPoints(FACTORS, float(problem.loss(minimum)), losses)
