"""Solving (F + λI) x = v: dense, by conjugate gradients, from rows, and kept inverses.

A solver is a function (metric, v, damping) -> x. `CachedSolver` keeps its
factorisations between refreshes, `StatefulSolver` remembers something of each step.
"""

from natgrad.solvers.base import (
    CachedSolver,
    DampedOperator,
    Remainder,
    Solution,
    Solver,
    StatefulSolver,
)
from natgrad.solvers.conjugate_gradients import cg
from natgrad.solvers.dense import (
    cholesky,
    diagonal_solution,
    direct_solution,
    pseudo_inverse,
    spectral_solution,
)
from natgrad.solvers.filters import Filter, HardCutoff, RobustDamping, SmoothCutoff

__all__ = [
    "CachedSolver",
    "DampedOperator",
    "Filter",
    "HardCutoff",
    "Remainder",
    "RobustDamping",
    "SmoothCutoff",
    "Solution",
    "Solver",
    "StatefulSolver",
    "cg",
    "cholesky",
    "diagonal_solution",
    "direct_solution",
    "pseudo_inverse",
    "spectral_solution",
]
