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
from natgrad.solvers.block_elimination import BlockElimination, InverseRule
from natgrad.solvers.conjugate_gradients import cg
from natgrad.solvers.dense import (
    cholesky,
    diagonal_solution,
    direct_solution,
    pseudo_inverse,
    spectral_solution,
)
from natgrad.solvers.filters import Filter, HardCutoff, RobustDamping, SmoothCutoff
from natgrad.solvers.newton_schulz import NewtonSchulz
from natgrad.solvers.spectral import Eigendecomposition, JacobiRotations

__all__ = [
    "BlockElimination",
    "CachedSolver",
    "DampedOperator",
    "Eigendecomposition",
    "Filter",
    "HardCutoff",
    "InverseRule",
    "JacobiRotations",
    "NewtonSchulz",
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
