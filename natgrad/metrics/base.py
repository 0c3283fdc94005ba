"""Metrics: positive semi-definite operators F on parameter space.

A metric is what a curvature is solved with and compared by. Vectors are trees shaped
like the parameters; `dense` is the matrix [P, P] in `ravel_pytree` order. All kinds
are pytrees, so they pass through jit and batch under vmap.
"""

from __future__ import annotations

import abc
from typing import final

import jax
import jax.numpy as jnp
import numpy as np

from natgrad.solvers.base import Solution
from natgrad.solvers.dense import diagonal_solution, direct_solution
from natgrad.solvers.spectral import HIGHEST
from natgrad.tree import Layout, inner, metric_pytree
from natgrad.typing import Array, ArrayLike, Params


class Metric(abc.ABC):
    """A positive semi-definite operator on trees shaped like the parameters.

    Attributes:
        layout: how the parameters lie in a vector.
    """

    layout: Layout

    @abc.abstractmethod
    def mv(self, v: Params) -> Params:
        """F v."""

    @abc.abstractmethod
    def solution(self, v: Params, damping: ArrayLike = 0.0) -> Solution:
        """As `solve`, and whether the solver had to fall back.

        Args:
            v: a tree like the parameters.
            damping: λ >= 0, in the units of F.
        """

    @abc.abstractmethod
    def dense(self) -> Array:
        """F as a matrix [P, P]."""

    @abc.abstractmethod
    def diagonal(self) -> Params:
        """The diagonal of F, shaped like the parameters, in the working dtype."""

    @final
    def solve(self, v: Params, damping: ArrayLike = 0.0) -> Params:
        """(F + λI)⁻¹ v, with no direction dropped for λ > 0; for λ = 0 F⁺ v.

        F⁺ v is the solution of least norm; what counts as singular there, and how far
        rounding reaches, is said in `natgrad.spectral`. Iterative metrics stop as their
        `stop` says.

        Args:
            v: a tree like the parameters.
            damping: λ >= 0, in the units of F.

        Returns:
            A tree like the parameters, in their dtypes.
        """
        return self.solution(v, damping).value

    @final
    def trace(self) -> Array:
        """tr F, shape ()."""
        return sum(jnp.sum(leaf) for leaf in jax.tree.leaves(self.diagonal()))

    @final
    def norm(self, v: Params) -> Array:
        """√⟨v, F v⟩, shape (): the length of v.

        Half its square is the KL divergence of the step v in nats, to second order in
        v. It is 0, with the derivative 0, where v is null or rounding makes ⟨v, F v⟩
        negative.
        """
        square = inner(v, self.mv(v))
        null = square <= 0
        return jnp.where(null, 0, jnp.sqrt(jnp.where(null, 1, square)))

    def logdet(self, damping: ArrayLike = 0.0) -> Array:
        """log det(F + λI), shape (); −inf where singular."""
        return _logdet(self.dense(), damping)


@metric_pytree("layout")
class DenseMetric(Metric):
    """A matrix.

    Attributes:
        layout: of the parameters.
        matrix: F, [P, P], symmetric.
    """

    layout: Layout
    matrix: Array

    def mv(self, v: Params) -> Params:
        """F v; O(P²)."""
        vector = self.layout.ravel(v)
        return self.layout.unravel(jnp.matmul(self.matrix, vector, precision=HIGHEST))

    def solution(self, v: Params, damping: ArrayLike = 0.0) -> Solution:
        """By refined Cholesky, falling back on eigendecomposition; O(P³)."""
        vector = self.layout.ravel(v)
        found = direct_solution(self.matrix, vector, damping)
        return found._replace(value=self.layout.unravel(found.value))

    def dense(self) -> Array:
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
    blocks: tuple[Array, ...]

    def mv(self, v: Params) -> Params:
        """F v; Σ_b O(P_b²)."""
        products = [
            jnp.matmul(block, vector, precision=HIGHEST)
            for block, vector in zip(self.blocks, self._vectors(v), strict=True)
        ]
        return self._params(products)

    def solution(self, v: Params, damping: ArrayLike = 0.0) -> Solution:
        """Each block by refined Cholesky; a fallback if any block needed it."""
        found = [
            direct_solution(block, vector, damping)
            for block, vector in zip(self.blocks, self._vectors(v), strict=True)
        ]
        fallback = jnp.any(jnp.stack([solution.fallback for solution in found]))
        return Solution(self._params([solution.value for solution in found]), fallback)

    def dense(self) -> Array:
        """[P, P], zero outside the blocks."""
        matrix = jnp.zeros((self.layout.size,) * 2, self.layout.dtype)
        for positions, block in zip(self._positions(), self.blocks, strict=True):
            matrix = matrix.at[np.ix_(positions, positions)].set(block)
        return matrix

    def diagonal(self) -> Params:
        """The blocks' diagonals."""
        return self.layout.split(
            self._vector([jnp.diagonal(block) for block in self.blocks])
        )

    def logdet(self, damping: ArrayLike = 0.0) -> Array:
        """Σ_b log det(F_b + λI)."""
        return sum(_logdet(block, damping) for block in self.blocks)

    def _positions(self) -> list[np.ndarray]:
        return [
            np.concatenate([self.layout.positions(leaf) for leaf in group])
            for group in self.groups
        ]

    def _vectors(self, v: Params) -> list[Array]:
        vector = self.layout.ravel(v)
        return [vector[positions] for positions in self._positions()]

    def _vector(self, pieces) -> Array:
        order = np.argsort(np.concatenate(self._positions()))
        return jnp.concatenate(pieces)[order]

    def _params(self, pieces) -> Params:
        return self.layout.unravel(self._vector(pieces))


@metric_pytree("layout")
class DiagonalMetric(Metric):
    """A diagonal.

    Attributes:
        layout: of the parameters.
        entries: diag F, [P].
    """

    layout: Layout
    entries: Array

    def mv(self, v: Params) -> Params:
        """F v; O(P)."""
        return self.layout.unravel(self.entries * self.layout.ravel(v))

    def solution(self, v: Params, damping: ArrayLike = 0.0) -> Solution:
        """v/(d + λ), 0 where d + λ is; a fallback if v is not 0 there."""
        vector = self.layout.ravel(v)
        found = diagonal_solution(self.entries, vector, damping)
        return found._replace(value=self.layout.unravel(found.value))

    def dense(self) -> Array:
        """[P, P]."""
        return jnp.diag(self.entries)

    def diagonal(self) -> Params:
        """The diagonal."""
        return self.layout.split(self.entries)

    def logdet(self, damping: ArrayLike = 0.0) -> Array:
        """Σ log(d + λ)."""
        return jnp.sum(jnp.log(self.entries + jnp.asarray(damping, self.entries.dtype)))


def _logdet(matrix: Array, damping: ArrayLike) -> Array:
    eye = jnp.eye(matrix.shape[0], dtype=matrix.dtype)
    return jnp.linalg.slogdet(matrix + jnp.asarray(damping, matrix.dtype) * eye)[1]
