"""A metric of Kronecker products, one a block, as K-FAC keeps it, and its inverses.

    F_b = A ⊗ G,     F_b vec(V) = vec(A V G),     V [I (+1), O]

for the block's matrix V (see `natgrad.layers`), or a stack of them. Two inverses, which
can be kept between refreshes (`natgrad.solvers.CachedSolver`): the exact damped one, in
the eigenbasis of both factors,

    (A ⊗ G + λI)⁻¹ V = U_A [ (U_Aᵀ V U_G) / (a gᵀ + λ) ] U_Gᵀ,

which equals the dense solve (`Eigenbasis`; `KroneckerMetric.solve` is the same), and a
cheaper one that does not (`natgrad.metrics.kronecker.factored_tikhonov`).
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Sequence
from typing import final

import jax
import jax.numpy as jnp
from jaxtyping import Float

from natgrad.layers import Block
from natgrad.metrics.blockwise import BlockwiseMetric, kron_matvec
from natgrad.metrics.functions import Decomposition
from natgrad.metrics.kronecker.factors import (
    Decomposed,
    Factors,
    decompose,
    eigen_solve,
    functions_of,
    largest_of_factor,
    of_products,
    products,
)
from natgrad.solvers import matrix_functions
from natgrad.solvers.base import CachedSolver, Solution
from natgrad.solvers.damping import DampingLike, resolve_damping
from natgrad.solvers.matrix_functions import Spectral
from natgrad.solvers.spd_inverse import diagonal
from natgrad.solvers.spectral import Eigendecomposition, eigh
from natgrad.tree import Layout, metric_pytree
from natgrad.typing import Array, Params


def diagonal_of(a: Float[Array, "*A"], g: Array) -> Float[Array, "*lead I"]:
    """The diagonal of A.

    Args:
        a: A, a matrix or its diagonal.
        g: G, which has more axes than a diagonal.
    """
    return a if a.ndim < g.ndim else diagonal(a)


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
        return functions_of(fs, self._decomposed())

    def largest_eigenvalues(self) -> list[Float[Array, ""]]:
        """Max a times max g, by products with the factors."""
        return [
            jnp.max(largest_of_factor(a, g) * largest_of_factor(g, g))
            for a, g in zip(self.inputs, self.outputs, strict=True)
        ]

    def decomposed(self) -> Decomposition:
        """By one eigendecomposition of each factor; see `Metric.decomposed`."""
        blocks = self._decomposed()

        def function(f, v):
            zero = f(jnp.zeros((), self.layout.dtype))
            rest = [functools.partial(jnp.multiply, zero)] * len(self.layout.shapes)
            return self.blockwise(v, functions_of([f] * len(blocks), blocks), rest)

        return Decomposition(list(map(products, blocks)), self.outside, function)

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

    Attributes:
        decomposition: what finds a factor's eigenvalues and eigenvectors:
            `natgrad.solvers.spectral.eigh`, or `natgrad.solvers.JacobiRotations()`.
    """

    decomposition: Eigendecomposition = eigh

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
        return decompose(metric.factors(which), self.decomposition)

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
        spectrum = metric.spectrum(list(map(products, factorizations)), found)
        return Solution(value, fallback, spectrum=spectrum)
