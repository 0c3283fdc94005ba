"""Solving (F + λI) x = v: dense, by conjugate gradients, from rows, and kept inverses.

A solver is a function (metric, v, damping) -> x. `CachedSolver` keeps its
factorisations between refreshes, `StatefulSolver` remembers something of each step.
"""

from natgrad.solvers.base import (
    DampedOperator,
    KeptInverse,
    Recalling,
    Remainder,
    Solution,
    Solver,
)
from natgrad.solvers.conjugate_gradients import cg
from natgrad.solvers.dense import (
    cholesky,
    diagonal_solution,
    direct_solution,
    pseudo_inverse,
    spectral_solution,
)

__all__ = [
    "DampedOperator",
    "KeptInverse",
    "Recalling",
    "Remainder",
    "Solution",
    "Solver",
    "cg",
    "cholesky",
    "diagonal_solution",
    "direct_solution",
    "pseudo_inverse",
    "spectral_solution",
]
