"""F = Bᵀ B from the rows of one batch, solved in sample space."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Float

from natgrad.metrics.base import Metric
from natgrad.metrics.functions import damped_noise
from natgrad.metrics.matrices import DenseMetric
from natgrad.solvers import matrix_functions
from natgrad.solvers.base import Solution
from natgrad.solvers.gram import sample_space_solution
from natgrad.solvers.matrix_functions import Factor, Spectral, from_zero
from natgrad.solvers.score_jacobian import Jacobian
from natgrad.solvers.spectral import HIGHEST
from natgrad.tree import Layout, metric_pytree
from natgrad.typing import Array, ArrayLike, Key, Params


@metric_pytree("layout")
class GramMetric(Metric):
    """F = Bᵀ B of one batch.

    Attributes:
        layout: of the parameters.
        jacobian: B, [M, P].
    """

    layout: Layout
    jacobian: Jacobian

    def mv(self, v: Params) -> Params:
        """Bᵀ (B v).

        Args:
            v: a tree like the parameters.
        """
        product = self.jacobian.pull(self.jacobian.push(v))
        return self._cast(product)

    def solution(self, v: Params, damping: ArrayLike = 0.0) -> Solution:
        """In sample space (see `natgrad.solvers.gram`); from [P, P] where M > P.

        Args:
            v: a tree like the parameters.
            damping: λ >= 0, in the units of F.
        """
        if self.jacobian.size > self.layout.size:
            return self._written_out().solution(v, damping)
        solution = sample_space_solution(self.jacobian, v, damping)
        return solution._replace(value=self._cast(solution.value))

    def dense(self) -> Float[Array, "P P"]:
        """Bᵀ B; B is written out for it."""
        rows = self.jacobian.explicit()
        return jnp.matmul(rows.T, rows, precision=HIGHEST)

    def diagonal(self) -> Params:
        """Σ_m B_m², without B where each example uses a layer at one position."""
        return self.jacobian.diagonal()

    def function(self, f: Spectral, v: Params) -> Params:
        """f(0) v + Bᵀ φ(K) B v, φ(σ) = (f(σ) − f(0))/σ; see `Metric.function`."""
        if self.jacobian.size > self.layout.size:
            return self._written_out().function(f, v)
        pushed = self.jacobian.push(v)[:, None]
        inside = matrix_functions.apply(from_zero(f), self._factors(), pushed)[:, 0]
        outside = f(jnp.zeros((), self.layout.dtype))
        product = jax.tree.map(
            lambda p, leaf: outside * leaf.astype(p.dtype) + p,
            self.jacobian.pull(inside),
            v,
        )
        return self._cast(product)

    def trace_of(self, f: Spectral) -> Float[Array, ""]:
        """Σ f(σ) + (P − M) f(0), σ of B Bᵀ; see `Metric.trace_of`."""
        outside = self.layout.size - self.jacobian.size
        if outside < 0:
            return self._written_out().trace_of(f)
        total = matrix_functions.trace(f, self._factors())
        zero = jnp.zeros((), self.layout.dtype)
        return total + outside * f(zero) if outside else total

    def diagonal_of(self, f: Spectral) -> Params:
        """f(0) + diag Bᵀ φ(K) B; B is written out. See `Metric.diagonal_of`."""
        if self.jacobian.size > self.layout.size:
            return self._written_out().diagonal_of(f)
        rows = self.jacobian.explicit()
        inside = matrix_functions.apply(from_zero(f), self._factors(), rows)
        outside = f(jnp.zeros((), self.layout.dtype))
        return self.layout.split(outside + jnp.sum(rows * inside, axis=0))

    def sample(self, key: Key, damping: ArrayLike) -> Params:
        """(F + λI)⁻¹ (Bᵀ ε + √λ ε') for normal ε [M], ε' [P]; see `Metric.sample`."""
        rows, rest = jax.random.split(key)
        noise = jax.random.normal(rows, (self.jacobian.size,), self.layout.dtype)
        pulled = self.jacobian.pull(noise)
        return self.solve(damped_noise(self.layout, pulled, rest, damping), damping)

    def logdet(self, damping: ArrayLike = 0.0) -> Float[Array, ""]:
        """log det(B Bᵀ + λI) + (P − M) log λ; from [P, P] where M > P.

        Args:
            damping: λ >= 0, in the units of F.
        """
        size, outside = self.jacobian.size, self.layout.size - self.jacobian.size
        if outside < 0:
            return self._written_out().logdet(damping)
        damping = jnp.asarray(damping, self.layout.dtype)
        matrix = self.jacobian.gram() + damping * jnp.eye(size, dtype=damping.dtype)
        total = jnp.linalg.slogdet(matrix)[1]
        return total + outside * jnp.log(damping) if outside else total

    def _written_out(self) -> DenseMetric:
        return DenseMetric(self.layout, self.dense())

    def _factors(self) -> list[Factor]:
        return matrix_functions.decomposed([self.jacobian.gram()])

    def _cast(self, tree: Params) -> Params:
        leaves = zip(jax.tree.leaves(tree), self.layout.dtypes, strict=True)
        cast = [leaf.astype(dtype) for leaf, dtype in leaves]
        return jax.tree.unflatten(self.layout.treedef, cast)
