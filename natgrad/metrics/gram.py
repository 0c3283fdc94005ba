"""F = Bᵀ B from the rows of one batch, solved in sample space."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Float

from natgrad.metrics.base import DenseMetric, Metric
from natgrad.solvers.base import Solution
from natgrad.solvers.damping import DampingLike, LeafDamping, entries, resolve_damping
from natgrad.solvers.dense import logdet
from natgrad.solvers.gram import sample_space_solution
from natgrad.solvers.score_jacobian import Jacobian
from natgrad.solvers.spectral import HIGHEST
from natgrad.tree import Layout, metric_pytree
from natgrad.typing import Array, Params


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

    def solution(self, v: Params, damping: DampingLike = 0.0) -> Solution:
        """In sample space (see `natgrad.solvers.gram`); from [P, P] where M > P.

        Args:
            v: a tree like the parameters.
            damping: λ >= 0, in the units of F.
        """
        if self.jacobian.size > self.layout.size:
            return DenseMetric(self.layout, self.dense()).solution(v, damping)
        found = resolve_damping(damping, self)
        if isinstance(found, LeafDamping):  # Λ^-½ (B'ᵀ B' + I)⁻¹ Λ^-½ v
            jacobian, root = self._scaled(found)
            right = jax.tree.map(jnp.multiply, root, v)
            solution = sample_space_solution(jacobian, right, 1.0)
            value = jax.tree.map(jnp.multiply, root, solution.value)
            return Solution(self._cast(value), solution.fallback)
        solution = sample_space_solution(self.jacobian, v, found)
        return solution._replace(value=self._cast(solution.value))

    def dense(self) -> Float[Array, "P P"]:
        """Bᵀ B; B is written out for it."""
        rows = self.jacobian.explicit()
        return jnp.matmul(rows.T, rows, precision=HIGHEST)

    def diagonal(self) -> Params:
        """Σ_m B_m², without B where each example uses a layer at one position."""
        return self.jacobian.diagonal()

    def logdet(self, damping: DampingLike = 0.0) -> Float[Array, ""]:
        """log det(B Bᵀ + λI) + (P − M) log λ; from [P, P] where M > P.

        Args:
            damping: λ >= 0, in the units of F.
        """
        outside = self.layout.size - self.jacobian.size
        if outside < 0:
            return super().logdet(damping)
        found = resolve_damping(damping, self)
        if isinstance(found, LeafDamping):
            logs = jnp.sum(jnp.log(entries(found, self)))
            return logs + logdet(self._scaled(found)[0].gram(), jnp.ones_like(logs))
        total = logdet(self.jacobian.gram(), found)
        return total + outside * jnp.log(found) if outside else total

    def _scaled(self, damping: LeafDamping) -> tuple[Jacobian, Params]:
        """B' = B Λ^-½, and the diagonal of Λ^-½ as a tree."""
        if damping.zeros:
            raise ValueError(
                "Gram divides by the damping of each parameter, and that of some is 0: "
                "give all of them more, or take natgrad.curvature.Dense."
            )
        roots = [
            jnp.full(shape, 1 / jnp.sqrt(damping.values[i]))
            for shape, i in zip(self.layout.shapes, damping.index, strict=True)
        ]
        root = jax.tree.unflatten(self.layout.treedef, roots)
        return self.jacobian.scaled(root), root

    def _cast(self, tree: Params) -> Params:
        leaves = zip(jax.tree.leaves(tree), self.layout.dtypes, strict=True)
        cast = [leaf.astype(dtype) for leaf, dtype in leaves]
        return jax.tree.unflatten(self.layout.treedef, cast)
