"""Approximate inverses of F + λI that make conjugate gradients converge sooner.

They change how many iterations are made, not the solution, so nothing is
differentiated through them. Whether they save any depends on the model: with λI added,
many eigenvalues of F + λI are equal already, and a rescaling pulls them apart
(`benchmarks/conjugate_gradients.py` measures).

Their statistics are estimated with the batch, and live in the optimizer's state, so
`Refresh(statistics=k)` renews them every k steps.

    Identity     none
    Jacobi       diag F + λ, from one random pullback an example
    Kronecker    K-FAC's A ⊗ G with factored Tikhonov damping, from the layers' taps
    Nystrom      U (Λ + λ)⁻¹ Uᵀ (λ_r + λ) + I − U Uᵀ, the r largest eigenvalues' shares,
                 λ their mean where leaves have several

Source: Martens (2010), Deep learning via Hessian-free optimization, section 4.7, for
Jacobi's; Frangella, Tropp & Udell (2023), Randomized Nyström preconditioning.
"""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple, Protocol, final

import jax
import jax.numpy as jnp

from natgrad.curvature.base import Curvature
from natgrad.curvature.kfac import KFAC, KroneckerFactors
from natgrad.curvature.visits import visits
from natgrad.metrics.kronecker import FactoredTikhonov, KroneckerMetric
from natgrad.model.batch import Batch
from natgrad.solvers.damping import LeafDamping, entries, mean_damping
from natgrad.solvers.spectral import HIGHEST
from natgrad.tree import Layout
from natgrad.typing import Array, Params, Statistics

Product = Callable[[Params], Params]


class Operator(Protocol):
    """What a preconditioner knows of a curvature: products with F."""

    def product(self, batch: Batch) -> Product:
        """v -> F v for one batch."""
        ...


class Preconditioner(abc.ABC):
    """An approximate inverse of F + λI, symmetric positive definite."""

    @abc.abstractmethod
    def init(self, curvature: Curvature, params: Params) -> Statistics:
        """Zero statistics."""

    @abc.abstractmethod
    def estimate(self, curvature: Any, batch: Batch) -> Statistics:
        """Statistics of one batch of a `MatrixFree` curvature."""

    @abc.abstractmethod
    def inverse(
        self,
        curvature: Curvature,
        statistics: Statistics,
        params: Params,
        damping: Array | LeafDamping,
    ) -> Callable[[Array], Array]:
        """v -> M⁻¹ v on vectors [P], for λ > 0."""


@final
@dataclasses.dataclass(frozen=True)
class Identity(Preconditioner):
    """No preconditioner."""

    def init(self, curvature: Curvature, params: Params) -> Statistics:
        """Nothing."""
        del curvature, params
        return ()

    def estimate(self, curvature: Any, batch: Batch) -> Statistics:
        """Nothing."""
        del curvature, batch
        return ()

    def inverse(
        self,
        curvature: Curvature,
        statistics: Statistics,
        params: Params,
        damping: Array | LeafDamping,
    ) -> Callable[[Array], Array]:
        """v -> v."""
        del curvature, statistics, params, damping
        return lambda v: v


@final
@dataclasses.dataclass(frozen=True)
class Jacobi(Preconditioner):
    """The diagonal of F + λI, estimated.

    (J_nᵀ Σ_k ±√w_k s_k)² averages to the diagonal: one pullback an example, whatever
    the number of columns.
    """

    def init(self, curvature: Curvature, params: Params) -> Array:
        """Zeros [P]."""
        del curvature
        layout = Layout.of(params)
        return jnp.zeros(layout.size, layout.dtype)

    def estimate(self, curvature: Any, batch: Batch) -> Array:
        """An estimate of the diagonal, [P]."""
        layout, labels, model = (
            Layout.of(batch.params),
            curvature.labels,
            curvature.model,
        )

        def visit(z, pull, example):
            scores, weights = labels.columns(model, z, example)
            signs = jax.random.rademacher(
                jax.random.fold_in(example.key, 1), weights.shape, z.dtype
            )
            column = jnp.tensordot(signs * jnp.sqrt(weights), scores, axes=1)
            return layout.ravel(pull(column)) ** 2

        found = visits(model, labels, batch)
        total = found.fold(visit, lambda squares: jnp.sum(squares, axis=0))
        return total / found.total.astype(layout.dtype)

    def inverse(
        self,
        curvature: Curvature,
        statistics: Statistics,
        params: Params,
        damping: Array | LeafDamping,
    ) -> Callable[[Array], Array]:
        """v -> v/(d + λ)."""
        del curvature
        total = statistics + entries(damping, Layout.of(params))
        scale = 1 / jnp.where(total > 0, total, 1)
        return lambda v: scale * v


@final
@dataclasses.dataclass(frozen=True)
class Kronecker(Preconditioner):
    """K-FAC's matrix for the same labels; the model needs `example_inputs`."""

    def init(self, curvature: Curvature, params: Params) -> KroneckerFactors:
        """Zero factors."""
        return KFAC(curvature.model, curvature.labels).init(params)

    def estimate(self, curvature: Any, batch: Batch) -> KroneckerFactors:
        """The factors of one batch."""
        return KFAC(curvature.model, curvature.labels).estimate(*batch)

    def inverse(
        self,
        curvature: Curvature,
        statistics: Statistics,
        params: Params,
        damping: Array | LeafDamping,
    ) -> Callable[[Array], Array]:
        """V -> (A + π√λ I)⁻¹ V (G + √λ/π I)⁻¹, layer by layer."""
        metric = KFAC(curvature.model, curvature.labels).metric(statistics, params)
        assert isinstance(metric, KroneckerMetric)
        solver, layout = FactoredTikhonov(), metric.layout
        pieces = solver.factorize(metric, damping, range(solver.num_blocks(metric)))
        wide = jax.tree.map(lambda leaf: leaf.astype(layout.dtype), params)
        full = dataclasses.replace(metric, layout=Layout.of(wide))

        def apply(v):
            solution = solver.solve(full, pieces, layout.split(v), damping)
            return layout.ravel(solution.value)

        return apply


class LowRank(NamedTuple):
    """F ≈ U diag(Λ) Uᵀ.

    Attributes:
        vectors: U, [P, r], orthonormal columns.
        values: Λ, [r], largest first.
    """

    vectors: Array
    values: Array


@final
@dataclasses.dataclass(frozen=True)
class Nystrom(Preconditioner):
    """The eigenvalues of F that r random products find; P·r memory.

    Attributes:
        rank: r.
    """

    rank: int = 16

    def init(self, curvature: Curvature, params: Params) -> LowRank:
        """Zeros."""
        del curvature
        layout = Layout.of(params)
        rank = min(self.rank, layout.size)
        zeros = jnp.zeros((layout.size, rank), layout.dtype)
        return LowRank(zeros, jnp.zeros(rank, layout.dtype))

    def estimate(self, curvature: Any, batch: Batch) -> LowRank:
        """From Y = F Ω for an orthonormal random Ω [P, r], shifted by rounding."""
        layout = Layout.of(batch.params)
        shape = (layout.size, min(self.rank, layout.size))
        assert batch.key is not None
        key = jax.random.fold_in(batch.key, 2)
        omega = jnp.linalg.qr(jax.random.normal(key, shape, layout.dtype))[0]
        product = curvature.product(batch)
        y = jax.lax.map(lambda v: layout.ravel(product(layout.unravel(v))), omega.T).T
        shift = jnp.finfo(y.dtype).eps * jnp.linalg.norm(y)
        shift = jnp.maximum(shift, jnp.finfo(y.dtype).tiny)
        y = y + shift * omega
        inner = jnp.matmul(omega.T, y, precision=HIGHEST)
        lower = jnp.linalg.cholesky((inner + inner.T) / 2)
        half = jax.scipy.linalg.solve_triangular(lower, y.T, lower=True).T
        vectors, singular, _ = jnp.linalg.svd(half, full_matrices=False)
        return LowRank(vectors, jnp.maximum(singular**2 - shift, 0))

    def inverse(
        self,
        curvature: Curvature,
        statistics: Statistics,
        params: Params,
        damping: Array | LeafDamping,
    ) -> Callable[[Array], Array]:
        """v -> U (λ_r + λ)/(Λ + λ) Uᵀ v + v − U Uᵀ v."""
        del curvature
        vectors, values = statistics
        total = values + mean_damping(damping, Layout.of(params))
        scale = total[-1] / jnp.where(total > 0, total, 1) - 1

        def apply(v):
            inside = jnp.matmul(vectors.T, v, precision=HIGHEST)
            return v + jnp.matmul(vectors, scale * inside, precision=HIGHEST)

        return apply
