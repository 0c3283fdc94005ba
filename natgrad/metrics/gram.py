"""F = Bᵀ B from the rows of one batch, solved in sample space."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Float

from natgrad.metrics.base import DenseMetric, Metric
from natgrad.solvers.base import Solution
from natgrad.solvers.gram import sample_space_solution
from natgrad.solvers.score_jacobian import Jacobian
from natgrad.solvers.spectral import HIGHEST
from natgrad.tree import Layout, metric_pytree
from natgrad.typing import Array, ArrayLike, Params


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
            return DenseMetric(self.layout, self.dense()).solution(v, damping)
        solution = sample_space_solution(self.jacobian, v, damping)
        return solution._replace(value=self._cast(solution.value))

    def dense(self) -> Float[Array, "P P"]:
        """Bᵀ B; B is written out for it."""
        rows = self.jacobian.explicit()
        return jnp.matmul(rows.T, rows, precision=HIGHEST)

    def diagonal(self) -> Params:
        """Σ_m B_m², without B where each example uses a layer at one position."""
        return self.jacobian.diagonal()

    def logdet(self, damping: ArrayLike = 0.0) -> Float[Array, ""]:
        """log det(B Bᵀ + λI) + (P − M) log λ; from [P, P] where M > P.

        Args:
            damping: λ >= 0, in the units of F.
        """
        size, outside = self.jacobian.size, self.layout.size - self.jacobian.size
        if outside < 0:
            return super().logdet(damping)
        damping = jnp.asarray(damping, self.layout.dtype)
        matrix = self.jacobian.gram() + damping * jnp.eye(size, dtype=damping.dtype)
        total = jnp.linalg.slogdet(matrix)[1]
        return total + outside * jnp.log(damping) if outside else total

    def _cast(self, tree: Params) -> Params:
        leaves = zip(jax.tree.leaves(tree), self.layout.dtypes, strict=True)
        cast = [leaf.astype(dtype) for leaf, dtype in leaves]
        return jax.tree.unflatten(self.layout.treedef, cast)
