"""Figure 1: where each method points, and where it leads.

On a line with a log-normal input, over θ = (bias, slope),

    GD  −g/3        NGD  −(H + 1e-8 I)⁻¹ g        EF  −3 (E + 1e-8 I)⁻¹ g

with the prior in H and not in E. Paths are Euler's, 50,000 points a thousandth apart.
Adam's fields stand beside them: −g/√diag(E), the square root of its second moment where
batches have one example, and −g/|g| in each coordinate, where the batch is all data
(there its second moment is g², once averaging has caught up).

Source: Kunstner, Hennig & Balles (2019), figure 1, and their published code; Kingma &
Ba (2015), Adam, section 2.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from benchmarks.kunstner import data
from benchmarks.kunstner.optimisation import empirical, natural
from benchmarks.kunstner.problems import Problem, minimiser
from natgrad.typing import Array

Field = Callable[[Problem, Array], Array]

_EPSILON = 1e-8
_STEP_SIZE = 1e-3
POINTS = 50_000
STARTS = np.array([[2.0, 4.5], [1.0, 0.0], [4.5, 3.0], [-0.5, 3.0]])
# The window and its grid: [−1, 5]².
AXIS = np.linspace(-1.0, 5.0, 15)


def adam_of_one(problem: Problem, theta: Array) -> Array:
    """−g/√diag(E): Adam's scaling for batches of one example."""
    root = jnp.sqrt(jnp.diag(problem.empirical(theta)))
    return -problem.gradient(theta) / (root + _EPSILON)


def adam_of_all(problem: Problem, theta: Array) -> Array:
    """−g/|g|, coordinate by coordinate: Adam's scaling for the batch of all data."""
    g = problem.gradient(theta)
    return -g / (jnp.abs(g) + _EPSILON)


FIELDS: dict[str, Field] = {
    "GD": lambda problem, theta: -problem.gradient(theta) / 3,
    "NGD": lambda problem, theta: -natural(problem, theta, _EPSILON),
    "EF": lambda problem, theta: -3 * empirical(problem, theta, _EPSILON),
}
ADAM_FIELDS: dict[str, Field] = {
    "Adam, batches of one": adam_of_one,
    "Adam, all data": adam_of_all,
}


@dataclasses.dataclass(frozen=True)
class VectorField:
    """Arrows and paths.

    Attributes:
        problem: the line.
        minimum: θ*.
        losses: on the grid, [15, 15], slope by bias.
        arrows: name -> [15, 15, 2], slope by bias.
        paths: name -> [4, points, 2].
    """

    problem: Problem
    minimum: np.ndarray
    losses: np.ndarray
    arrows: dict[str, np.ndarray]
    paths: dict[str, np.ndarray]

    def to_dict(self) -> dict[str, Any]:
        """Where the paths begin and end, plain Python values."""
        size = functools.partial(np.linalg.norm, axis=-1)
        ends = {
            name: {
                "distance_to_minimum": size(path[:, -1] - self.minimum).tolist(),
                "length": size(np.diff(path, axis=1)).sum(axis=1).tolist(),
            }
            for name, path in self.paths.items()
        }
        return {
            "minimum": self.minimum.tolist(),
            "starts": STARTS.tolist(),
            "points": int(self.paths["GD"].shape[1]),
            "paths": ends,
        }


def vector_field(points: int = POINTS) -> VectorField:
    """All fields, with paths of so many points."""
    problem = data.vector_field()
    thetas = jnp.asarray(np.stack(np.meshgrid(AXIS, AXIS), axis=-1))
    on_grid = lambda f: np.asarray(jax.vmap(jax.vmap(f))(thetas))
    fields = {**FIELDS, **ADAM_FIELDS}
    return VectorField(
        problem=problem,
        minimum=np.asarray(minimiser(problem)),
        losses=on_grid(problem.loss),
        arrows={n: on_grid(functools.partial(f, problem)) for n, f in fields.items()},
        paths={n: np.asarray(paths(problem, f, points)) for n, f in fields.items()},
    )


@functools.partial(jax.jit, static_argnames=("field", "points"))
def paths(problem: Problem, field: Field, points: int) -> Array:
    """Euler's paths along a field from `STARTS`: [S, points, P]."""

    def step(thetas, _):
        ends = thetas + _STEP_SIZE * jax.vmap(field, (None, 0))(problem, thetas)
        return ends, thetas

    starts = jnp.asarray(STARTS)
    return jnp.moveaxis(jax.lax.scan(step, starts, None, length=points)[1], 0, 1)
