"""Eigenbases of Kronecker factors, and metrics that are diagonal in them.

    F_b = (U_A ⊗ U_G) diag(s) (U_A ⊗ U_G)ᵀ,
    F_b V = U_A [s ∘ (U_Aᵀ V U_G)] U_Gᵀ,      V [I (+1), O]

with s = a gᵀ, the products of eigenvalues, this is K-FAC's A ⊗ G; with the second
moments s = mean (U_Aᵀ V_n U_G)² of the examples' gradients V_n it is EKFAC's metric,
the nearest to F in Frobenius norm among all that are diagonal in this basis.

Derivatives of eigenvectors, dU = U (E ∘ UᵀdA U) with E_ij = 1/(a_j − a_i), do not exist
where eigenvalues repeat; there E_ij = 0, so that the basis of a degenerate subspace
does not turn.

Source: George et al. (2018), Fast approximate natural gradient descent in a
Kronecker-factored eigenbasis, section 3.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Float

from natgrad.layers import Block
from natgrad.metrics.blockwise import BlockwiseMetric
from natgrad.metrics.functions import Decomposition
from natgrad.solvers.base import Solution
from natgrad.solvers.damping import DampingLike, resolve_damping
from natgrad.solvers.matrix_functions import Spectral
from natgrad.solvers.spd_inverse import together
from natgrad.solvers.spectral import (
    HIGHEST,
    Eigendecomposition,
    damped_reciprocal,
)
from natgrad.tree import Layout, metric_pytree
from natgrad.typing import Array, Params


@metric_pytree("layout", "blocks")
class EigenbasisMetric(BlockwiseMetric):
    """Diagonal in a Kronecker product of orthonormal bases, for each block.

    Attributes:
        layout: of the parameters.
        blocks: what was captured.
        left: U_A of each block, [lead..., I(+1), I(+1)]; None for the identity.
        right: U_G of each block.
        scales: s of each block, [lead..., I(+1), O].
    """

    layout: Layout
    blocks: tuple[Block, ...]
    left: tuple[Float[Array, "*lead I I"] | None, ...]
    right: tuple[Float[Array, "*lead O O"], ...]
    scales: tuple[Float[Array, "*lead I O"], ...]

    def mv(self, v: Params) -> Params:
        """U (s ∘ Uᵀ v) for each block; Σ_b O(I² O + I O²).

        Args:
            v: a tree like the parameters.
        """
        return self.blockwise(v, self._through(self.scales))

    def solution(self, v: Params, damping: DampingLike = 0.0) -> Solution:
        """U (Uᵀ v / (s + λ)).

        Args:
            v: a tree like the parameters.
            damping: λ >= 0, in the units of F. For λ = 0 the result is F⁺ v (see
                `natgrad.solvers.spectral`), a fallback where some s is 0 to rounding.
        """
        found = resolve_damping(damping, self)
        own, axes = self.block_dampings(found), [(-2, -1)] * len(self.scales)
        pairs = list(map(damped_reciprocal, self.scales, own, axes))
        outside, singular = self.outer_inverse(found)
        inverse = self._through([reciprocal for reciprocal, _ in pairs])
        fallback = functools.reduce(jnp.logical_or, [d for _, d in pairs], singular)
        value = self.blockwise(v, inverse, outside)
        return Solution(value, fallback, spectrum=self.spectrum(self.scales, found))

    def dense(self) -> Float[Array, "P P"]:
        """U diag(s) Uᵀ of each block at its parameters' places, zero elsewhere."""

        def stacked(array, ndim):
            return array.reshape((-1, *array.shape[array.ndim - ndim :]))

        matrices = []
        for block, left, right, s in zip(
            self.blocks, self.left, self.right, self.scales, strict=True
        ):
            if left is None:
                left = jnp.eye(block.rows, dtype=s.dtype)
            basis = jax.vmap(jnp.kron)(stacked(left, 2), stacked(right, 2))
            scaled = basis * s.reshape(basis.shape[0], 1, -1)
            matrices.append(jnp.matmul(scaled, basis.mT, precision=HIGHEST))
        return self.placed(matrices)

    def diagonal(self) -> Params:
        """(U_A ∘ U_A) s (U_G ∘ U_G)ᵀ for each block."""
        return self.diagonal_of(lambda s: s)

    def largest_eigenvalues(self) -> list[Float[Array, ""]]:
        """Max s of each block."""
        return list(map(jnp.max, self.scales))

    def decomposed(self) -> Decomposition:
        """s itself; see `Metric.decomposed`."""
        values = [jnp.maximum(s, 0) for s in self.scales]
        return Decomposition(values, self.outside, self.function)

    def functions(self, fs: Sequence[Spectral]) -> list[Callable[[Array], Array]]:
        """V -> U_A [f(s) ∘ (U_Aᵀ V U_G)] U_Gᵀ; see `BlockwiseMetric.functions`."""
        return self._through([f(s) for f, s in zip(fs, self.scales, strict=True)])

    def traces(self, fs: Sequence[Spectral]) -> list[Float[Array, "*lead I O"]]:
        """f(s); see `BlockwiseMetric.traces`."""
        return [f(s) for f, s in zip(fs, self.scales, strict=True)]

    def diagonals(self, fs: Sequence[Spectral]) -> list[Float[Array, "*lead I O"]]:
        """(U_A ∘ U_A) f(s) (U_G ∘ U_G)ᵀ; see `BlockwiseMetric.diagonals`."""
        return [
            rotate(f(s), None if left is None else left.mT**2, right.mT**2)
            for f, left, right, s in zip(
                fs, self.left, self.right, self.scales, strict=True
            )
        ]

    def _through(self, scales: Sequence[Array]) -> list[Callable[[Array], Array]]:
        """For each block V -> U_A [s ∘ (U_Aᵀ V U_G)] U_Gᵀ."""

        def scale(left, right, s, v):
            back = None if left is None else left.mT
            return rotate(s * rotate(v, left, right), back, right.mT)

        return [
            functools.partial(scale, left, right, s)
            for left, right, s in zip(self.left, self.right, scales, strict=True)
        ]


def rotate(
    v: Float[Array, "*lead I O"],
    left: Float[Array, "*lead I I"] | None,
    right: Float[Array, "*lead O O"] | None,
) -> Float[Array, "*lead I O"]:
    """Lᵀ V R.

    Args:
        v: V.
        left: L; None for the identity.
        right: R; None for the identity.
    """
    v = v if right is None else jnp.matmul(v, right, precision=HIGHEST)
    return v if left is None else jnp.matmul(left.mT, v, precision=HIGHEST)


def plain_eigh(
    matrix: Float[Array, "n n"], /
) -> tuple[Float[Array, " n"], Float[Array, "n n"]]:
    """Eigenvalues, ascending, and eigenvectors, as JAX finds them.

    Args:
        matrix: symmetric.
    """
    values, vectors = jnp.linalg.eigh(matrix)
    return values, vectors


@functools.partial(jax.custom_jvp, nondiff_argnums=(1,))
def eigh(
    matrix: Float[Array, "d d"], decomposition: Eigendecomposition = plain_eigh
) -> tuple[Float[Array, " d"], Float[Array, "d d"]]:
    """Eigenvalues, ascending, and eigenvectors; see the module for derivatives.

    Args:
        matrix: symmetric.
        decomposition: what finds them.
    """
    return decomposition(matrix)


@eigh.defjvp
def _eigh_jvp(decomposition, primals, tangents):
    values, vectors = eigh(*primals, decomposition)
    inner = rotate(tangents[0], vectors, vectors)
    gaps = values[..., None, :] - values[..., :, None]
    size, largest = values.shape[-1], jnp.max(jnp.abs(values), -1)[..., None, None]
    apart = jnp.abs(gaps) > 10 * size * jnp.finfo(values.dtype).eps * largest
    turn = jnp.where(apart, inner / jnp.where(apart, gaps, 1), 0)
    d_values = jnp.diagonal(inner, axis1=-2, axis2=-1)
    d_vectors = jnp.matmul(vectors, turn, precision=HIGHEST)
    return (values, vectors), (d_values, d_vectors)


def eigenbases(
    factors: Sequence[Array], decompose: Callable = eigh
) -> list[tuple[Array, Array | None]]:
    """(eigenvalues, eigenvectors) of each factor; those of equal sizes together.

    A factor kept as its diagonal [d] is its own eigenvalues; its vectors are None.
    Eigenvalues are clipped at 0.

    Args:
        factors: symmetric matrices [lead..., d, d], or diagonals [d].
        decompose: matrix [d, d] -> (eigenvalues, eigenvectors): `eigh`, or
            `natgrad.solvers.spectral.eigh` where the eigenvalues have to be precise.
    """
    matrices = [factor for factor in factors if factor.ndim > 1]
    decomposed = iter(together(decompose, matrices))
    pairs = [next(decomposed) if f.ndim > 1 else (f, None) for f in factors]
    return [(jnp.maximum(values, 0), vectors) for values, vectors in pairs]
