"""Figure 2: the two matrices at the minimum, where the model is right and where not.

At θ*, the ellipses {(θ − θ*)ᵀ (N M) (θ − θ*) = 9} of M = F and of M = E: what each
believes to be the region three standard deviations wide. They agree where the model is
well specified; a noise twice as wide makes E four times too large and its step four
times too short.

Source: Kunstner, Hennig & Balles (2019), figure 2, appendix, and their published code.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.kunstner.problems import Problem, minimiser

# Standard deviations that an ellipse is wide.
_RADIUS = 3.0


@dataclasses.dataclass(frozen=True)
class Case:
    """One data set at its minimum.

    Attributes:
        name: what is wrong with the model.
        problem: model and data.
        minimum: θ* [2].
        fisher: H = F + I/(vN) at θ* [2, 2].
        empirical: E at θ* [2, 2].
    """

    name: str
    problem: Problem
    minimum: np.ndarray
    fisher: np.ndarray
    empirical: np.ndarray

    @property
    def ratios(self) -> np.ndarray:
        """Eigenvalues of F⁻¹E, ascending: 1 where the two agree."""
        root = np.linalg.inv(np.linalg.cholesky(self.fisher))
        return np.linalg.eigvalsh(root @ self.empirical @ root.T)

    def ellipse(self, matrix: np.ndarray, points: int = 200) -> np.ndarray:
        """Where (θ − θ*)ᵀ (N M) (θ − θ*) = 9: [points, 2]."""
        angles = np.linspace(0, 2 * np.pi, points)
        circle = _RADIUS * np.stack([np.cos(angles), np.sin(angles)])
        factor = np.linalg.cholesky(self.problem.examples * matrix)
        return (self.minimum[:, None] + np.linalg.solve(factor.T, circle)).T

    def losses(self, first: np.ndarray, second: np.ndarray) -> np.ndarray:
        """On a grid, second by first coordinate."""
        thetas = jnp.asarray(np.stack(np.meshgrid(first, second), axis=-1))
        return np.asarray(jax.vmap(jax.vmap(self.problem.loss))(thetas))

    def to_dict(self) -> dict[str, Any]:
        """Plain Python values."""
        return {
            "name": self.name,
            "minimum": self.minimum.tolist(),
            "fisher": self.fisher.tolist(),
            "empirical": self.empirical.tolist(),
            "eigenvalue_ratios": self.ratios.tolist(),
        }


def cases(sources: Mapping[str, Callable[[], Problem]]) -> tuple[Case, ...]:
    """Each data set at its minimum."""
    return tuple(_case(name, load()) for name, load in sources.items())


def _case(name: str, problem: Problem) -> Case:
    theta = minimiser(problem)
    return Case(
        name=name,
        problem=problem,
        minimum=np.array(theta),
        fisher=np.asarray(problem.hessian(theta)),
        empirical=np.asarray(problem.empirical(theta)),
    )
