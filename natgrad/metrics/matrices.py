"""Metrics that are written out: a matrix, diagonal blocks, a diagonal."""

from __future__ import annotations

import functools
from collections.abc import Sequence

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from natgrad.metrics.base import Metric
from natgrad.metrics.functions import Decomposition
from natgrad.metrics.programs import one_program
from natgrad.solvers import matrix_functions
from natgrad.solvers.base import Solution
from natgrad.solvers.damping import DampingLike, entries, resolve_damping
from natgrad.solvers.dense import damped, diagonal_solution, direct_solution, logdet
from natgrad.solvers.lanczos import largest_of_matrix
from natgrad.solvers.matrix_functions import Factor, Spectral
from natgrad.solvers.spectral import HIGHEST, spectrum
from natgrad.tree import Layout, metric_pytree
from natgrad.typing import Array, Params


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

    def function(self, f: Spectral, v: Params, damping: DampingLike = 0.0) -> Params:
        """By eigendecomposition; see `Metric.function`."""
        return self._function(self._factors(damping), f, v)

    def decomposed(self) -> Decomposition:
        """By one eigendecomposition; see `Metric.decomposed`."""
        factors = self._factors(0.0)
        function = functools.partial(self._function, factors)
        return Decomposition([factors[0].values], 0, function)

    def trace_of(self, f: Spectral, damping: DampingLike = 0.0) -> Float[Array, ""]:
        """Σ f(s); see `Metric.trace_of`."""
        return matrix_functions.trace(f, self._factors(damping))

    def diagonal_of(self, f: Spectral, damping: DampingLike = 0.0) -> Params:
        """(U ∘ U) f(s); see `Metric.diagonal_of`."""
        found = matrix_functions.diagonal(f, self._factors(damping))
        return self.layout.split(found)

    @one_program
    def logdet(self, damping: DampingLike = 0.0) -> Float[Array, ""]:
        """By elimination; see `Metric.logdet`."""
        return logdet(self.matrix, entries(damping, self))

    def _function(self, factors: list[Factor], f: Spectral, v: Params) -> Params:
        vector = self.layout.ravel(v)[:, None]
        return self.layout.unravel(matrix_functions.apply(f, factors, vector)[:, 0])

    def _factors(self, damping: DampingLike) -> list[Factor]:
        return matrix_functions.decomposed(
            [damped(self.matrix, entries(damping, self))]
        )


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

    def function(self, f: Spectral, v: Params, damping: DampingLike = 0.0) -> Params:
        """Each block by eigendecomposition; see `Metric.function`."""
        return self._function(self._factors(damping), f, v)

    def decomposed(self) -> Decomposition:
        """Each block by one eigendecomposition; see `Metric.decomposed`."""
        factors = self._factors(0.0)
        function = functools.partial(self._function, factors)
        return Decomposition([each.values for each in factors], 0, function)

    def largest_eigenvalues(self) -> list[Float[Array, ""]]:
        """Of each block, by products with it."""
        return list(map(largest_of_matrix, self.blocks))

    def trace_of(self, f: Spectral, damping: DampingLike = 0.0) -> Float[Array, ""]:
        """Σ f(s) over all blocks; see `Metric.trace_of`."""
        factors = self._factors(damping)
        terms = [matrix_functions.trace(f, [factor]) for factor in factors]
        return functools.reduce(jnp.add, terms)

    def diagonal_of(self, f: Spectral, damping: DampingLike = 0.0) -> Params:
        """(U ∘ U) f(s) of each block; see `Metric.diagonal_of`."""
        factors = self._factors(damping)
        parts = [matrix_functions.diagonal(f, [factor]) for factor in factors]
        return self.layout.split(self._vector(parts))

    @one_program
    def logdet(self, damping: DampingLike = 0.0) -> Float[Array, ""]:
        """Σ_b log det(F_b + λI).

        Args:
            damping: λ >= 0, in the units of F.
        """
        terms = list(map(logdet, self.blocks, self._dampings(damping)))
        return functools.reduce(jnp.add, terms)

    def leaf_groups(self) -> Sequence[Sequence[int]]:
        """Those of the blocks."""
        return self.groups

    def _function(self, factors: list[Factor], f: Spectral, v: Params) -> Params:
        products = [
            matrix_functions.apply(f, [factor], vector[:, None])[:, 0]
            for factor, vector in zip(factors, self._vectors(v), strict=True)
        ]
        return self._params(products)

    def _dampings(self, damping: DampingLike) -> list[Array]:
        found = resolve_damping(damping, self)
        return [entries(found, self, group) for group in self.groups]

    def _factors(self, damping: DampingLike) -> list[Factor]:
        blocks = list(map(damped, self.blocks, self._dampings(damping)))
        return matrix_functions.decomposed(blocks)

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
        return solution._replace(
            value=self.layout.unravel(solution.value),
            spectrum=spectrum([(self.entries, damping)]),
        )

    def dense(self) -> Float[Array, "P P"]:
        """The matrix with this diagonal."""
        return jnp.diag(self.entries)

    def diagonal(self) -> Params:
        """The diagonal."""
        return self.layout.split(self.entries)

    def function(self, f: Spectral, v: Params, damping: DampingLike = 0.0) -> Params:
        """f(d) ∘ v; see `Metric.function`."""
        return self.layout.unravel(f(self._damped(damping)) * self.layout.ravel(v))

    def trace_of(self, f: Spectral, damping: DampingLike = 0.0) -> Float[Array, ""]:
        """Σ f(d); see `Metric.trace_of`."""
        return jnp.sum(f(self._damped(damping)))

    def diagonal_of(self, f: Spectral, damping: DampingLike = 0.0) -> Params:
        """f(d); see `Metric.diagonal_of`."""
        return self.layout.split(f(self._damped(damping)))

    def _damped(self, damping: DampingLike) -> Array:
        return self.entries + entries(damping, self)

    def leaf_groups(self) -> Sequence[Sequence[int]]:
        """Each leaf by itself."""
        return [[leaf] for leaf in range(len(self.layout.shapes))]

    def largest_eigenvalues(self) -> list[Float[Array, ""]]:
        """The largest entry of each leaf."""
        return list(map(jnp.max, jax.tree.leaves(self.diagonal())))

    def decomposed(self) -> Decomposition:
        """The diagonal itself; see `Metric.decomposed`."""
        return Decomposition([jnp.maximum(self.entries, 0)], 0, self.function)
