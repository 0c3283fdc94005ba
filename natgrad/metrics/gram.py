"""F = Bᵀ B, or its diagonal blocks, from the rows of one batch, in sample space."""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from natgrad.metrics.base import DenseMetric, Metric
from natgrad.solvers.base import Remainder, Solution
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
        return _like(self.layout, product)

    def solution(self, v: Params, damping: ArrayLike = 0.0) -> Solution:
        """In sample space (see `natgrad.solvers.gram`); from [P, P] where M > P.

        Args:
            v: a tree like the parameters.
            damping: λ >= 0, in the units of F.
        """
        if self.jacobian.size > self.layout.size:
            return DenseMetric(self.layout, self.dense()).solution(v, damping)
        solution = sample_space_solution(self.jacobian, v, damping)
        return solution._replace(value=_like(self.layout, solution.value))

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

    def square(self) -> Float[Array, ""]:
        """‖F‖_F², from B Bᵀ or Bᵀ B, whichever is smaller."""
        few = self.jacobian.size <= self.layout.size
        return jnp.sum((self.jacobian.gram() if few else self.dense()) ** 2)


@metric_pytree("layout")
class GramBlocksMetric(Metric):
    """The diagonal blocks F_b = B_bᵀ B_b of one batch, each in its own sample space.

    B_b are the columns of B that belong to block b. Parameters outside have F = 0.

    Attributes:
        layout: of the parameters.
        jacobian: B, [M, P], a piece for each block.
    """

    layout: Layout
    jacobian: Jacobian

    @property
    def blocks(self) -> list[GramMetric]:
        """F_b of each block, on the lists that `Jacobian.parts` gives."""
        return [GramMetric(apart.layout, apart) for apart in self.jacobian.apart()]

    def mv(self, v: Params) -> Params:
        """B_bᵀ (B_b v_b) for each block.

        Args:
            v: a tree like the parameters.
        """
        return _like(self.layout, self.jacobian.params(self._each(GramMetric.mv, v)))

    def solution(self, v: Params, damping: ArrayLike = 0.0) -> Solution:
        """Of each block as of `GramMetric`; v/λ outside, and a fallback if λ = 0 there.

        Args:
            v: a tree like the parameters.
            damping: λ >= 0, in the units of F.
        """
        damping = jnp.asarray(damping, self.layout.dtype)
        zero = damping == 0

        def solve(block, parts):
            return block.solution(parts, damping)

        values, fallbacks, left, _ = zip(*self._each(solve, v), strict=True)
        share = ~zero / jnp.where(zero, 1, damping)
        value = jax.tree.map(
            lambda x, v, inside: x + (v.astype(x.dtype) - inside) * share,
            self.jacobian.params(values),
            v,
            self.jacobian.params(self.jacobian.parts(v)),
        )
        fallback = functools.reduce(
            jnp.logical_or, fallbacks, zero & (self._outside > 0)
        )
        remainder = None
        if None not in left:
            norms, inner = (jnp.stack(each) for each in zip(*left, strict=True))
            remainder = Remainder(jnp.linalg.norm(norms), jnp.sum(inner))
        return Solution(_like(self.layout, value), fallback, remainder)

    def dense(self) -> Float[Array, "P P"]:
        """The blocks at their parameters' places, zero elsewhere."""
        total = jnp.zeros((self.layout.size,) * 2, self.layout.dtype)
        with jax.ensure_compile_time_eval():
            numbers = self.layout.split(jnp.arange(1.0 * self.layout.size))
            places = [
                np.concatenate([np.ravel(part).astype(int) for part in parts])
                for parts in self.jacobian.parts(numbers)
            ]
        for indices, block in zip(places, self.blocks, strict=True):
            total = total.at[np.ix_(indices, indices)].set(block.dense())
        return total

    def diagonal(self) -> Params:
        """That of Bᵀ B."""
        return self.jacobian.diagonal()

    def logdet(self, damping: ArrayLike = 0.0) -> Float[Array, ""]:
        """Σ_b log det(F_b + λI), and log λ for each parameter outside.

        Args:
            damping: λ >= 0, in the units of F.
        """
        total = jnp.stack([block.logdet(damping) for block in self.blocks]).sum()
        damping = jnp.asarray(damping, self.layout.dtype)
        return total + self._outside * jnp.log(damping) if self._outside else total

    @property
    def _outside(self) -> int:
        """The number of parameters in no block."""
        return self.layout.size - sum(block.layout.size for block in self.blocks)

    def _each(self, function: Callable[[GramMetric, Any], Any], v: Params) -> list:
        pairs = zip(self.blocks, self.jacobian.parts(v), strict=True)
        return [function(block, parts) for block, parts in pairs]


def _like(layout: Layout, tree: Params) -> Params:
    """The tree in the dtypes of the parameters."""
    leaves = zip(jax.tree.leaves(tree), layout.dtypes, strict=True)
    cast = [leaf.astype(dtype) for leaf, dtype in leaves]
    return jax.tree.unflatten(layout.treedef, cast)
