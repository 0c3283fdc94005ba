"""A metric of Kronecker products, one a block, as K-FAC keeps it, and its inverses.

    F_b = A ⊗ G,     F_b vec(V) = vec(A V G),     V [I (+1), O]

for the block's matrix V (see `natgrad.layers`), or a stack of them. Two inverses, which
can be kept between refreshes (`natgrad.solvers.CachedSolver`): the exact damped one, in
the eigenbasis of both factors,

    (A ⊗ G + λI)⁻¹ V = U_A [ (U_Aᵀ V U_G) / (a gᵀ + λ) ] U_Gᵀ,

which equals the dense solve (`Eigenbasis`; `KroneckerMetric.solve` is the same), and a
cheaper one that does not (`FactoredTikhonov`; Martens & Grosse 2015, section 6.3),

    (A + π√λ I)⁻¹ V (G + √λ/π I)⁻¹,     π² = (tr A/dim A) / (tr G/dim G),

as explicit inverses (`natgrad.solvers.spd_inverse`). What they invert,

    (A + π√λ I) ⊗ (G + √λ/π I) = F + λI + √λ (A ⊗ I/π + π I ⊗ G),

never has less damping than λ. Where a gradient is known as rows, V = Xᵀ C, fewer than
the factors are large, (X A⁻¹)ᵀ (C G⁻¹) is cheaper.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import final

import jax
import jax.numpy as jnp
from jaxtyping import Float

from natgrad.layers import Block
from natgrad.metrics.blockwise import BlockwiseMetric, kron_matvec, kron_matvec_low_rank
from natgrad.metrics.kronecker_factors import (
    Decomposed,
    Factors,
    Inverted,
    decompose,
    diagonal_of,
    eigen_solve,
    invert_damped,
    of_products,
)
from natgrad.metrics.kronecker_renewal import renew_damped, staleness
from natgrad.solvers import matrix_functions
from natgrad.solvers.base import CachedSolver, Solution
from natgrad.solvers.damping import DampingLike, resolve_damping
from natgrad.solvers.matrix_functions import Spectral
from natgrad.tree import Layout, metric_pytree
from natgrad.typing import Array, Params


@metric_pytree("layout", "blocks")
class KroneckerMetric(BlockwiseMetric):
    """A ⊗ G for each block.

    Attributes:
        layout: of the parameters.
        blocks: what was captured.
        inputs: A of each block, [lead..., I(+1), I(+1)], or its diagonal [I].
        outputs: G of each block, [lead..., O, O].
    """

    layout: Layout
    blocks: tuple[Block, ...]
    inputs: tuple[Float[Array, "*A"], ...]
    outputs: tuple[Float[Array, "*lead O O"], ...]

    def mv(self, v: Params) -> Params:
        """A V G for each block; Σ_b O(I² O + I O²).

        Args:
            v: a tree like the parameters.
        """
        return self.blockwise(
            v,
            [kron_matvec(a, g) for a, g in zip(self.inputs, self.outputs, strict=True)],
        )

    def solution(self, v: Params, damping: DampingLike = 0.0) -> Solution:
        """The exact damped inverse, in the eigenbasis; Σ_b O(I³ + O³).

        Args:
            v: a tree like the parameters.
            damping: λ >= 0, in the units of F. For λ = 0 the result is F⁺ v (see
                `natgrad.solvers.spectral`), a fallback where F is singular to rounding.
        """
        exact, damping = Eigenbasis(), resolve_damping(damping, self)
        blocks = exact.factorize(self, damping, range(exact.num_blocks(self)))
        return exact.solve(self, blocks, v, damping)

    def dense(self) -> Float[Array, "P P"]:
        """The Kronecker products at their parameters' places, zero elsewhere."""
        products = []
        for block, a, g in zip(self.blocks, self.inputs, self.outputs, strict=True):
            full = jnp.diag(a) if a.ndim == 1 else a
            left = full.reshape(-1, block.rows, block.rows)
            right = g.reshape(-1, block.outputs, block.outputs)
            products.append(jax.vmap(jnp.kron)(left, right))
        return self.placed(products)

    def diagonal(self) -> Params:
        """diag A diag(G)ᵀ for each block."""
        diagonals = [
            (diagonal_of(a, g), jnp.diagonal(g, axis1=-2, axis2=-1))
            for a, g in zip(self.inputs, self.outputs, strict=True)
        ]
        return self.split([a[..., :, None] * g[..., None, :] for a, g in diagonals])

    def functions(self, fs: Sequence[Spectral]) -> list[Callable[[Array], Array]]:
        """In the eigenbases of both factors; see `BlockwiseMetric.functions`."""
        return [
            functools.partial(of_products, matrix_functions.apply, f, block)
            for f, block in zip(fs, self._decomposed(), strict=True)
        ]

    def traces(self, fs: Sequence[Spectral]) -> list[Float[Array, "..."]]:
        """Σ_ij f(a_i g_j); see `BlockwiseMetric.traces`."""
        return [
            of_products(matrix_functions.trace, f, block)
            for f, block in zip(fs, self._decomposed(), strict=True)
        ]

    def diagonals(self, fs: Sequence[Spectral]) -> list[Float[Array, "*lead I O"]]:
        """(U_A ∘ U_A) f(a gᵀ) (U_G ∘ U_G)ᵀ; see `BlockwiseMetric.diagonals`."""
        return [
            of_products(matrix_functions.diagonal, f, block)
            for f, block in zip(fs, self._decomposed(), strict=True)
        ]

    def factors(self, which: Sequence[int]) -> list[Factors]:
        """A and G of some blocks.

        Args:
            which: numbers of the blocks.
        """
        return [(self.inputs[i], self.outputs[i]) for i in which]

    def _decomposed(self) -> list[Decomposed]:
        return decompose(self.factors(range(len(self.blocks))))


@final
@dataclasses.dataclass(frozen=True)
class Eigenbasis(CachedSolver):
    """The exact damped inverse of the factors that were decomposed last.

    λ may change between refreshes: the decomposition does not contain it.
    """

    def num_blocks(self, metric: KroneckerMetric) -> int:
        """One a block.

        Args:
            metric: F.
        """
        return len(metric.blocks)

    def factorize(
        self, metric: KroneckerMetric, damping: DampingLike, which: Sequence[int]
    ) -> list[Decomposed]:
        """The eigendecompositions of some blocks.

        Args:
            metric: F.
            damping: λ, which they do not contain.
            which: numbers of the blocks.
        """
        del damping
        return decompose(metric.factors(which))

    def solve(
        self,
        metric: KroneckerMetric,
        factorizations: Sequence[Decomposed],
        v: Params,
        damping: DampingLike,
    ) -> Solution:
        """U_A [(U_Aᵀ V U_G) / (a gᵀ + λ)] U_Gᵀ, with an implicit derivative.

        Args:
            metric: says which parameters the blocks are.
            factorizations: of all blocks; they may be old.
            v: a tree like the parameters.
            damping: λ >= 0, in the units of F.
        """
        found = resolve_damping(damping, metric)
        solves = list(map(eigen_solve, factorizations, metric.block_dampings(found)))
        outside, singular = metric.outer_inverse(found)
        fallback = functools.reduce(jnp.logical_or, [s for _, s in solves], singular)
        value = metric.blockwise(v, [function for function, _ in solves], outside)
        return Solution(value, fallback)


@final
@dataclasses.dataclass(frozen=True)
class FactoredTikhonov(CachedSolver):
    """Explicit inverses of the damped factors: not (F + λI)⁻¹.

    λ is that of the last refresh. A factor without trace has π = 1, so that the step
    stays finite for λ > 0. For λ = 0 the factors are inverted by eigendecomposition:
    A⁺ V G⁺ is the least-norm solution, and a fallback where a factor is singular.

    Attributes:
        rows: block's name -> its gradient as rows, V = Xᵀ C, which is then not read
            from the gradient: see `natgrad.curvature.KFAC.value_grad_and_rows`.
    """

    rows: Mapping[str, Mapping[str, Array]] | None = None

    def num_blocks(self, metric: KroneckerMetric) -> int:
        """One a block.

        Args:
            metric: F.
        """
        return len(metric.blocks)

    def factorize(
        self, metric: KroneckerMetric, damping: DampingLike, which: Sequence[int]
    ) -> list[Inverted]:
        """(A + π√λ I)⁻¹ and (G + √λ/π I)⁻¹ of some blocks, for λ = 0 A⁺ and G⁺.

        Args:
            metric: F.
            damping: λ >= 0, in the units of F.
            which: numbers of the blocks.
        """
        own = metric.block_dampings(resolve_damping(damping, metric))
        return invert_damped(metric.factors(which), [own[i] for i in which])

    def renew(
        self,
        metric: KroneckerMetric,
        damping: DampingLike,
        due: Sequence[Array],
        old: Sequence[Inverted],
        first: Array,
    ) -> tuple[tuple[Inverted, ...], Array]:
        """One matrix at a time; one whose inverse is not finite keeps its old one."""
        own = metric.block_dampings(resolve_damping(damping, metric))
        factors = metric.factors(range(len(old)))
        return renew_damped(factors, own, due, old, first)

    def solve(
        self,
        metric: KroneckerMetric,
        factorizations: Sequence[Inverted],
        v: Params,
        damping: DampingLike,
    ) -> Solution:
        """The products A⁻¹ V G⁻¹; V/λ for parameters that no block reads.

        Args:
            metric: says which parameters the blocks are.
            factorizations: of all blocks; they may be old.
            v: a tree like the parameters.
            damping: λ >= 0, for the parameters that no block reads.
        """
        rows = self.rows or {}
        functions = [
            kron_matvec_low_rank(
                inverse.inputs, inverse.outputs, block, rows[block.name]
            )
            if block.name in rows
            else kron_matvec(inverse.inputs, inverse.outputs)
            for block, inverse in zip(metric.blocks, factorizations, strict=True)
        ]
        outside, singular = metric.outer_inverse(resolve_damping(damping, metric))
        fallbacks = [inverse.fallback for inverse in factorizations]
        value = metric.blockwise(v, functions, outside)
        return Solution(value, functools.reduce(jnp.logical_or, fallbacks, singular))

    def residuals(
        self,
        metric: KroneckerMetric,
        factorizations: Sequence[Inverted],
        damping: DampingLike,
    ) -> Float[Array, " blocks"]:
        """Of the inverses of both damped factors; see `CachedSolver.residuals`."""
        own = metric.block_dampings(resolve_damping(damping, metric))
        factors = metric.factors(range(len(factorizations)))
        return staleness(factors, own, factorizations)

    def with_row_factors(
        self, rows: Mapping[str, Mapping[str, Array]]
    ) -> FactoredTikhonov:
        """This solver for gradients that are Xᵀ C of these rows.

        Args:
            rows: block's name -> X [lead..., N, T, I] as "x", C [lead..., N, T, O] as
                "g".
        """
        return dataclasses.replace(self, rows=rows)
