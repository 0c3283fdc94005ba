"""F = Bᵀ B from the rows of one batch, in sample space."""

from __future__ import annotations

import functools
from typing import TypeGuard

import jax
import jax.numpy as jnp
from jaxtyping import Float

from natgrad.metrics.base import Metric
from natgrad.metrics.functions import Decomposition, damped_noise
from natgrad.metrics.matrices import DenseMetric
from natgrad.metrics.programs import one_program
from natgrad.solvers import matrix_functions
from natgrad.solvers.base import Solution
from natgrad.solvers.damping import (
    DampingLike,
    EntryDamping,
    LeafDamping,
    Resolved,
    entries,
    resolve_damping,
)
from natgrad.solvers.dense import logdet
from natgrad.solvers.gram import sample_space_solution
from natgrad.solvers.lanczos import largest_of_matrix
from natgrad.solvers.matrix_functions import Factor, Spectral, from_zero, shifted
from natgrad.solvers.score_jacobian import Jacobian
from natgrad.solvers.spectral import HIGHEST
from natgrad.tree import Layout, metric_pytree
from natgrad.typing import Array, Key, Params


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
        return like_params(self.layout, product)

    def solution(self, v: Params, damping: DampingLike = 0.0) -> Solution:
        """In sample space (see `natgrad.solvers.gram`); from [P, P] where M > P.

        Args:
            v: a tree like the parameters.
            damping: λ >= 0, in the units of F.
        """
        if self.jacobian.size > self.layout.size:
            return self._written_out().solution(v, damping)
        found = resolve_damping(damping, self)
        if _by_parameter(found):  # Λ^-½ (B'ᵀ B' + I)⁻¹ Λ^-½ v
            jacobian, root = self._scaled(found)
            right = jax.tree.map(jnp.multiply, root, v)
            solution = sample_space_solution(jacobian, right, 1.0)
            value = jax.tree.map(jnp.multiply, root, solution.value)
            return Solution(like_params(self.layout, value), solution.fallback)
        solution = sample_space_solution(self.jacobian, v, found)
        return solution._replace(value=like_params(self.layout, solution.value))

    def dense(self) -> Float[Array, "P P"]:
        """Bᵀ B; B is written out for it."""
        rows = self.jacobian.explicit()
        return jnp.matmul(rows.T, rows, precision=HIGHEST)

    def diagonal(self) -> Params:
        """Σ_m B_m², without B where each example uses a layer at one position."""
        return self.jacobian.diagonal()

    def function(self, f: Spectral, v: Params, damping: DampingLike = 0.0) -> Params:
        """f(0) v + Bᵀ φ(K) B v, φ(σ) = (f(σ) − f(0))/σ; see `Metric.function`."""
        found = resolve_damping(damping, self)
        if self._is_written_out(found):
            return self._written_out().function(f, v, damping)
        return self._function(self._factors(), shifted(f, found), v)

    def decomposed(self) -> Decomposition:
        """By one eigendecomposition of K, or of F; see `Metric.decomposed`."""
        outside = self.layout.size - self.jacobian.size
        if outside < 0:
            return self._written_out().decomposed()
        factors = self._factors()
        function = functools.partial(self._function, factors)
        return Decomposition([factors[0].values], outside, function)

    def largest_eigenvalues(self) -> list[Float[Array, ""]]:
        """By products with B Bᵀ or Bᵀ B, whichever is smaller."""
        few = self.jacobian.size <= self.layout.size
        return [largest_of_matrix(self.jacobian.gram() if few else self.dense())]

    def _function(self, factors: list[Factor], f: Spectral, v: Params) -> Params:
        pushed = self.jacobian.push(v)[:, None]
        inside = matrix_functions.apply(from_zero(f), factors, pushed)[:, 0]
        outside = f(jnp.zeros((), self.layout.dtype))
        product = jax.tree.map(
            lambda p, leaf: outside * leaf.astype(p.dtype) + p,
            self.jacobian.pull(inside),
            v,
        )
        return like_params(self.layout, product)

    def trace_of(self, f: Spectral, damping: DampingLike = 0.0) -> Float[Array, ""]:
        """Σ f(σ) + (P − M) f(0), σ of B Bᵀ; see `Metric.trace_of`."""
        found = resolve_damping(damping, self)
        outside = self.layout.size - self.jacobian.size
        if self._is_written_out(found):
            return self._written_out().trace_of(f, damping)
        f = shifted(f, found)
        total = matrix_functions.trace(f, self._factors())
        zero = jnp.zeros((), self.layout.dtype)
        return total + outside * f(zero) if outside else total

    def diagonal_of(self, f: Spectral, damping: DampingLike = 0.0) -> Params:
        """f(0) + diag Bᵀ φ(K) B; B is written out. See `Metric.diagonal_of`."""
        found = resolve_damping(damping, self)
        if self._is_written_out(found):
            return self._written_out().diagonal_of(f, damping)
        f = shifted(f, found)
        rows = self.jacobian.explicit()
        inside = matrix_functions.apply(from_zero(f), self._factors(), rows)
        outside = f(jnp.zeros((), self.layout.dtype))
        return self.layout.split(outside + jnp.sum(rows * inside, axis=0))

    @one_program
    def sample(self, key: Key, damping: DampingLike) -> Params:
        """(F + Λ)⁻¹ (Bᵀ ε + Λ^½ ε') for normal ε [M], ε' [P]; see `Metric.sample`."""
        rows, rest = jax.random.split(key)
        noise = jax.random.normal(rows, (self.jacobian.size,), self.layout.dtype)
        pulled = self.jacobian.pull(noise)
        total = damped_noise(self.layout, pulled, rest, entries(damping, self))
        return self.solve(total, damping)

    @one_program
    def inverse_diagonal(self, damping: DampingLike) -> Params:
        """(1 − diag Bᵀ (K + λI)⁻¹ B)/λ; see `Metric.inverse_diagonal`."""
        found = resolve_damping(damping, self)
        if not _by_parameter(found):
            return super().inverse_diagonal(found)
        if self.jacobian.size > self.layout.size:
            return self._written_out().inverse_diagonal(found)
        jacobian, root = self._scaled(found)
        inside = GramMetric(self.layout, jacobian).inverse_diagonal(1.0)
        return jax.tree.map(lambda r, own: r**2 * own, root, inside)

    @one_program
    def logdet(self, damping: DampingLike = 0.0) -> Float[Array, ""]:
        """log det(B Bᵀ + λI) + (P − M) log λ; from [P, P] where M > P.

        Args:
            damping: λ >= 0, in the units of F.
        """
        outside = self.layout.size - self.jacobian.size
        if outside < 0:
            return self._written_out().logdet(damping)
        found = resolve_damping(damping, self)
        if _by_parameter(found):
            logs = jnp.sum(jnp.log(entries(found, self)))
            return logs + logdet(self._scaled(found)[0].gram(), jnp.ones_like(logs))
        total = logdet(self.jacobian.gram(), found)
        return total + outside * jnp.log(found) if outside else total

    def _scaled(self, damping: LeafDamping | EntryDamping) -> tuple[Jacobian, Params]:
        """B' = B Λ^-½, and the diagonal of Λ^-½ as a tree."""
        if isinstance(damping, EntryDamping):
            positive = damping.values > 0  # elsewhere B is 0 too
            safe = jnp.where(positive, damping.values, 1)
            entries = jnp.where(positive, 1 / jnp.sqrt(safe), 0)
            return self.jacobian.written_out(entries), self.layout.split(entries)
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

    def _is_written_out(self, damping: Resolved) -> bool:
        """Are functions those of the matrix [P, P]? Where M > P, and by layer."""
        return self.jacobian.size > self.layout.size or _by_parameter(damping)

    def _written_out(self) -> DenseMetric:
        return DenseMetric(self.layout, self.dense())

    def _factors(self) -> list[Factor]:
        return matrix_functions.decomposed([self.jacobian.gram()])

    def square(self) -> Float[Array, ""]:
        """‖F‖_F², from B Bᵀ or Bᵀ B, whichever is smaller."""
        few = self.jacobian.size <= self.layout.size
        return jnp.sum((self.jacobian.gram() if few else self.dense()) ** 2)


def _by_parameter(damping: Resolved) -> TypeGuard[LeafDamping | EntryDamping]:
    return isinstance(damping, LeafDamping | EntryDamping)


def like_params(layout: Layout, tree: Params) -> Params:
    """A tree in the dtypes of the parameters.

    Args:
        layout: of the parameters.
        tree: like them.
    """
    leaves = zip(jax.tree.leaves(tree), layout.dtypes, strict=True)
    cast = [leaf.astype(dtype) for leaf, dtype in leaves]
    return jax.tree.unflatten(layout.treedef, cast)
