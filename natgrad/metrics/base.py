"""Metrics: positive semi-definite operators F on parameter space.

A metric is what a curvature is solved with and compared by. Vectors are trees shaped
like the parameters; `dense` is the matrix [P, P] in `ravel_pytree` order. All kinds
are pytrees, so they pass through jit and batch under vmap.
"""

from __future__ import annotations

import abc
import functools
from collections.abc import Sequence
from typing import Any, final

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from natgrad.solvers.base import Solution
from natgrad.solvers.damping import DampingLike, entries, relative_to, resolve_damping
from natgrad.solvers.dense import diagonal_solution, direct_solution, logdet
from natgrad.solvers.spectral import HIGHEST
from natgrad.tree import Layout, inner, metric_pytree
from natgrad.typing import Array, Params


class Metric(abc.ABC):
    """A positive semi-definite operator on trees shaped like the parameters.

    Attributes:
        layout: how the parameters lie in a vector.
    """

    layout: Layout

    @abc.abstractmethod
    def mv(self, v: Params) -> Params:
        """F v, a tree like the parameters.

        Args:
            v: a tree like the parameters.
        """

    @abc.abstractmethod
    def solution(self, v: Params, damping: DampingLike = 0.0) -> Solution:
        """As `solve`, and whether the solver had to fall back.

        Args:
            v: a tree like the parameters.
            damping: λ >= 0, in the units of F.
        """

    @abc.abstractmethod
    def dense(self) -> Float[Array, "P P"]:
        """F as a matrix, in `ravel_pytree` order."""

    @abc.abstractmethod
    def diagonal(self) -> Params:
        """The diagonal of F, shaped like the parameters, in the working dtype."""

    @final
    def solve(self, v: Params, damping: DampingLike = 0.0) -> Params:
        """(F + λI)⁻¹ v, with no direction dropped for λ > 0; for λ = 0 F⁺ v.

        F⁺ v is the solution of least norm; `natgrad.solvers.spectral` says what counts
        as singular there, and how far rounding reaches. Iterative metrics stop as their
        `stop` says.

        Args:
            v: a tree like the parameters.
            damping: λ >= 0, in the units of F; by layer: `natgrad.solvers.damping`.

        Returns:
            A tree like the parameters, in their dtypes.
        """
        return self.solution(v, damping).value

    @final
    def trace(self) -> Float[Array, ""]:
        """tr F."""
        sums = [jnp.sum(leaf) for leaf in jax.tree.leaves(self.diagonal())]
        return functools.reduce(jnp.add, sums)

    @final
    def norm(self, v: Params) -> Float[Array, ""]:
        """√⟨v, F v⟩, the length of v.

        Half its square is the KL divergence of the step v in nats, to second order in
        v. It is 0, with the derivative 0, where v is null or rounding makes ⟨v, F v⟩
        negative.

        Args:
            v: a tree like the parameters.
        """
        square = inner(v, self.mv(v))
        null = square <= 0
        return jnp.where(null, 0, jnp.sqrt(jnp.where(null, 1, square)))

    def logdet(self, damping: DampingLike = 0.0) -> Float[Array, ""]:
        """log det(F + λI); −inf where singular.

        Args:
            damping: λ >= 0, in the units of F.
        """
        return logdet(self.dense(), entries(damping, self))

    def relative_damping(self, scale: Array) -> Any:
        """The damping that `natgrad.Relative(scale)` is for F.

        Args:
            scale: c.
        """
        return relative_to(self._groups(), self.diagonal(), scale)

    def _groups(self) -> Sequence[Sequence[int]]:
        """The leaves of each block of F."""
        return [range(len(self.layout.shapes))]


@metric_pytree("layout")
class DenseMetric(Metric):
    """A matrix.

    Attributes:
        layout: of the parameters.
        matrix: F, symmetric.
    """

    layout: Layout
    matrix: Float[Array, "P P"]

    def mv(self, v: Params) -> Params:
        """F v; O(P²).

        Args:
            v: a tree like the parameters.
        """
        vector = self.layout.ravel(v)
        return self.layout.unravel(jnp.matmul(self.matrix, vector, precision=HIGHEST))

    def solution(self, v: Params, damping: DampingLike = 0.0) -> Solution:
        """By refined Cholesky, falling back on eigendecomposition; O(P³).

        Args:
            v: a tree like the parameters.
            damping: λ >= 0, in the units of F.
        """
        vector, damping = self.layout.ravel(v), entries(damping, self)
        solution = direct_solution(self.matrix, vector, damping)
        return solution._replace(value=self.layout.unravel(solution.value))

    def dense(self) -> Float[Array, "P P"]:
        """The matrix itself."""
        return self.matrix

    def diagonal(self) -> Params:
        """The matrix's diagonal."""
        return self.layout.split(jnp.diagonal(self.matrix))


@metric_pytree("layout", "groups")
class BlockDiagonalMetric(Metric):
    """Diagonal blocks, each over some of the leaves.

    Attributes:
        layout: of the parameters.
        groups: for each block the indices of its leaves.
        blocks: symmetric matrices [P_b, P_b], leaves raveled in the order of `groups`.
    """

    layout: Layout
    groups: tuple[tuple[int, ...], ...]
    blocks: tuple[Float[Array, "P_b P_b"], ...]

    def mv(self, v: Params) -> Params:
        """F v; Σ_b O(P_b²).

        Args:
            v: a tree like the parameters.
        """
        products = [
            jnp.matmul(block, vector, precision=HIGHEST)
            for block, vector in zip(self.blocks, self._vectors(v), strict=True)
        ]
        return self._params(products)

    def solution(self, v: Params, damping: DampingLike = 0.0) -> Solution:
        """Each block by refined Cholesky; a fallback if any block needed it.

        Args:
            v: a tree like the parameters.
            damping: λ >= 0, in the units of F.
        """
        vectors, dampings = self._vectors(v), self._dampings(damping)
        solutions = list(map(direct_solution, self.blocks, vectors, dampings))
        fallback = jnp.any(jnp.stack([solution.fallback for solution in solutions]))
        value = self._params([solution.value for solution in solutions])
        return Solution(value, fallback)

    def dense(self) -> Float[Array, "P P"]:
        """The blocks at their parameters' places, zero elsewhere."""
        matrix = jnp.zeros((self.layout.size,) * 2, self.layout.dtype)
        for positions, block in zip(self._positions(), self.blocks, strict=True):
            matrix = matrix.at[np.ix_(positions, positions)].set(block)
        return matrix

    def diagonal(self) -> Params:
        """The blocks' diagonals."""
        return self.layout.split(
            self._vector([jnp.diagonal(block) for block in self.blocks])
        )

    def logdet(self, damping: DampingLike = 0.0) -> Float[Array, ""]:
        """Σ_b log det(F_b + λI).

        Args:
            damping: λ >= 0, in the units of F.
        """
        terms = list(map(logdet, self.blocks, self._dampings(damping)))
        return functools.reduce(jnp.add, terms)

    def _groups(self) -> Sequence[Sequence[int]]:
        return self.groups

    def _dampings(self, damping: DampingLike) -> list[Array]:
        found = resolve_damping(damping, self)
        return [entries(found, self, group) for group in self.groups]

    def _positions(self) -> list[np.ndarray]:
        return [
            np.concatenate([self.layout.positions(leaf) for leaf in group])
            for group in self.groups
        ]

    def _vectors(self, v: Params) -> list[Array]:
        vector = self.layout.ravel(v)
        return [vector[positions] for positions in self._positions()]

    def _vector(self, parts: Sequence[Array]) -> Array:
        """[P] from each block's part [P_b]."""
        order = np.argsort(np.concatenate(self._positions()))
        return jnp.concatenate(parts)[order]

    def _params(self, parts: Sequence[Array]) -> Params:
        return self.layout.unravel(self._vector(parts))


@metric_pytree("layout")
class DiagonalMetric(Metric):
    """A diagonal.

    Attributes:
        layout: of the parameters.
        entries: diag F.
    """

    layout: Layout
    entries: Float[Array, " P"]

    def mv(self, v: Params) -> Params:
        """F v; O(P).

        Args:
            v: a tree like the parameters.
        """
        return self.layout.unravel(self.entries * self.layout.ravel(v))

    def solution(self, v: Params, damping: DampingLike = 0.0) -> Solution:
        """v/(d + λ), 0 where d + λ is; a fallback if v is not 0 there.

        Args:
            v: a tree like the parameters.
            damping: λ >= 0, in the units of F.
        """
        vector, damping = self.layout.ravel(v), entries(damping, self)
        solution = diagonal_solution(self.entries, vector, damping)
        return solution._replace(value=self.layout.unravel(solution.value))

    def dense(self) -> Float[Array, "P P"]:
        """The matrix with this diagonal."""
        return jnp.diag(self.entries)

    def diagonal(self) -> Params:
        """The diagonal."""
        return self.layout.split(self.entries)

    def logdet(self, damping: DampingLike = 0.0) -> Float[Array, ""]:
        """Σ log(d + λ).

        Args:
            damping: λ >= 0, in the units of F.
        """
        return jnp.sum(jnp.log(self.entries + entries(damping, self)))

    def _groups(self) -> Sequence[Sequence[int]]:
        return [[leaf] for leaf in range(len(self.layout.shapes))]
