"""A metric of Kronecker products, one a block, as K-FAC keeps it, and its inverses.

    F_b = A ⊗ G,     F_b vec(V) = vec(A V G),     V [I (+1), O]

for the block's matrix V (see `natgrad.layers`), or a stack of them. Two inverses, which
can be kept between refreshes (`natgrad.solvers.CachedSolver`): the exact damped one, in
the eigenbasis of both factors,

    (A ⊗ G + λI)⁻¹ V = U_A [ (U_Aᵀ V U_G) / (a gᵀ + λ) ] U_Gᵀ,

which equals the dense solve (`Eigenbasis`; `KroneckerMetric.solve` is the same), and a
cheaper one that does not (`FactoredTikhonov`; Martens & Grosse 2015, section 6.3),

    (A + π√λ I)⁻¹ V (G + √λ/π I)⁻¹,     π² = (tr A/dim A) / (tr G/dim G),

as explicit inverses (`natgrad.inverse`). It inverts (A + π√λ I) ⊗ (G + √λ/π I), which
is F + λI plus √λ (A ⊗ I/π + π I ⊗ G): never less damping than λ. Where a gradient is
known as rows, V = Xᵀ C, fewer than the factors are large, (X A⁻¹)ᵀ (C G⁻¹) is cheaper.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping, Sequence
from typing import NamedTuple, final

import jax
import jax.numpy as jnp

from natgrad.layers import Block
from natgrad.metrics.blockwise import BlockwiseMetric, kron_matvec, kron_matvec_low_rank
from natgrad.metrics.eigenbasis import eigenbases, rotate
from natgrad.solvers.base import CachedSolver, Solution
from natgrad.solvers.spd_inverse import inverses as spd_inverses
from natgrad.solvers.spectral import damped_reciprocal, eigh
from natgrad.tree import Layout, metric_pytree
from natgrad.typing import Array, ArrayLike, Params


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
    inputs: tuple[Array, ...]
    outputs: tuple[Array, ...]

    def mv(self, v: Params) -> Params:
        """A V G for each block; Σ_b O(I² O + I O²)."""
        return self.blockwise(
            v,
            [kron_matvec(a, g) for a, g in zip(self.inputs, self.outputs, strict=True)],
        )

    def solution(self, v: Params, damping: ArrayLike = 0.0) -> Solution:
        """The exact damped inverse, in the eigenbasis; Σ_b O(I³ + O³).

        For λ = 0 the pseudo-inverse (see `natgrad.spectral`), which is a fallback where
        F is singular to rounding.
        """
        exact = Eigenbasis()
        every = exact.factorize(self, damping, range(exact.num_blocks(self)))
        return exact.solve(self, every, v, damping)

    def dense(self) -> Array:
        """[P, P], the Kronecker products at their parameters' places."""
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
            (_diagonal_of(a, g), jnp.diagonal(g, axis1=-2, axis2=-1))
            for a, g in zip(self.inputs, self.outputs, strict=True)
        ]
        return self.split([a[..., :, None] * g[..., None, :] for a, g in diagonals])

    def logdet(self, damping: ArrayLike = 0.0) -> Array:
        """Σ_b Σ_ij log(a_i g_j + λ), and log λ for each parameter outside."""
        damping = jnp.asarray(damping, self.layout.dtype)
        total = jnp.zeros((), self.layout.dtype)
        for a, g in zip(self.inputs, self.outputs, strict=True):
            left = a if a.ndim < g.ndim else _spectrum(a)
            right = _spectrum(g)
            products = left[..., :, None] * right[..., None, :]
            total = total + jnp.sum(jnp.log(products + damping))
        return total + self.outside * jnp.log(damping) if self.outside else total


class Decomposed(NamedTuple):
    """Both factors of a block and their eigenvalues and eigenvectors.

    The factors carry the derivative, the decomposition is a constant that solves.
    """

    inputs: Array
    outputs: Array
    left: tuple[Array, Array | None]
    right: tuple[Array, Array]


@final
@dataclasses.dataclass(frozen=True)
class Eigenbasis(CachedSolver):
    """The exact damped inverse of the factors that were decomposed last.

    λ may change between refreshes: the decomposition does not contain it.
    """

    def num_blocks(self, metric: KroneckerMetric) -> int:
        """One a block."""
        return len(metric.blocks)

    def factorize(
        self, metric: KroneckerMetric, damping: ArrayLike, which: Sequence[int]
    ) -> list[Decomposed]:
        """The decompositions of some blocks."""
        del damping
        factors = [(metric.inputs[i], metric.outputs[i]) for i in which]
        fixed = jax.lax.stop_gradient(factors)  # implicit: see `solve`
        found = eigenbases([a for a, _ in fixed] + [g for _, g in fixed], eigh)
        return [
            Decomposed(a, g, left, right)
            for (a, g), left, right in zip(
                factors, found[: len(which)], found[len(which) :], strict=True
            )
        ]

    def solve(
        self,
        metric: KroneckerMetric,
        prepared: Sequence[Decomposed],
        v: Params,
        damping: ArrayLike,
    ) -> Solution:
        """U_A [(U_Aᵀ V U_G) / (a gᵀ + λ)] U_Gᵀ, with an implicit derivative."""
        damping = jnp.asarray(damping, metric.layout.dtype)
        solves, fallbacks = [], []
        for piece in prepared:
            solve, singular = _eigen_solve(piece, damping)
            solves.append(solve)
            fallbacks.append(singular)
        rest, singular = metric.outer_inverse(damping)
        fallback = functools.reduce(jnp.logical_or, fallbacks, singular)
        return Solution(metric.blockwise(v, solves, rest), fallback)


class Inverted(NamedTuple):
    """The inverses of both damped factors of a block.

    Attributes:
        inputs: (A + π√λ I)⁻¹, [lead..., I(+1), I(+1)], or its diagonal.
        outputs: (G + √λ/π I)⁻¹, [lead..., O, O].
        fallback: boolean scalar: did elimination fail, or λ = 0 meet a singular factor?
    """

    inputs: Array
    outputs: Array
    fallback: Array


@final
@dataclasses.dataclass(frozen=True)
class FactoredTikhonov(CachedSolver):
    """Explicit inverses of the damped factors: not (F + λI)⁻¹.

    λ is that of the last refresh. A factor without trace has π = 1, so that the step
    stays finite for λ > 0. For λ = 0 the factors are inverted by eigendecomposition:
    A⁺ V G⁺ is the least-norm solution, and a fallback where a factor is singular.

    Attributes:
        rows: block's name -> its gradient as rows, V = Xᵀ G, which is then not read
            from the gradient: see `natgrad.curvature.KFAC.value_grad_and_rows`.
    """

    rows: Mapping[str, Mapping[str, Array]] | None = None

    def num_blocks(self, metric: KroneckerMetric) -> int:
        """One a block."""
        return len(metric.blocks)

    def factorize(
        self, metric: KroneckerMetric, damping: ArrayLike, which: Sequence[int]
    ) -> list[Inverted]:
        """(A + π√λ I)⁻¹ and (G + √λ/π I)⁻¹ of some blocks, for λ = 0 A⁺ and G⁺."""
        root = jnp.sqrt(jnp.asarray(damping, metric.layout.dtype))
        pairs = [(metric.inputs[i], metric.outputs[i]) for i in which]
        shares = [_shares(a, g, root) for a, g in pairs]
        full = [i for i, (a, g) in enumerate(pairs) if a.ndim == g.ndim]
        found, failed = spd_inverses(
            [_plus(pairs[i][0], shares[i][0]) for i in full]
            + [_plus(g, d) for (_, g), (_, d) in zip(pairs, shares, strict=True)],
            [shares[i][0] for i in full] + [d for _, d in shares],
        )
        left, right = iter(found[: len(full)]), iter(found[len(full) :])
        inverted = []
        for (a, g), (share, _) in zip(pairs, shares, strict=True):
            if a.ndim == g.ndim:
                inverse, dropped = next(left), False
            else:
                inverse, dropped = damped_reciprocal(a, share[..., None])
            inverted.append(Inverted(inverse, next(right), failed | dropped))
        return inverted

    def solve(
        self,
        metric: KroneckerMetric,
        prepared: Sequence[Inverted],
        v: Params,
        damping: ArrayLike,
    ) -> Solution:
        """The products A⁻¹ V G⁻¹; V/λ for parameters that no block reads."""
        damping = jnp.asarray(damping, metric.layout.dtype)
        rows = self.rows or {}
        functions = [
            kron_matvec_low_rank(piece.inputs, piece.outputs, block, rows[block.name])
            if block.name in rows
            else kron_matvec(piece.inputs, piece.outputs)
            for block, piece in zip(metric.blocks, prepared, strict=True)
        ]
        rest, singular = metric.outer_inverse(damping)
        fallback = [piece.fallback for piece in prepared]
        value = metric.blockwise(v, functions, rest)
        return Solution(value, functools.reduce(jnp.logical_or, fallback, singular))

    def with_row_factors(
        self, rows: Mapping[str, Mapping[str, Array]]
    ) -> FactoredTikhonov:
        """This solver for gradients that are Xᵀ G of these rows."""
        return dataclasses.replace(self, rows=rows)


def _spectrum(matrix: Array) -> Array:
    """The eigenvalues; a negative one is rounding, and counts as 0."""
    return jnp.maximum(jnp.linalg.eigvalsh(matrix), 0)


def _diagonal_of(a: Array, g: Array) -> Array:
    return a if a.ndim < g.ndim else jnp.diagonal(a, axis1=-2, axis2=-1)


def _eigen_solve(piece: Decomposed, damping: Array) -> tuple[Callable, Array]:
    """V -> (A ⊗ G + λI)⁻¹ V with an implicit derivative, and whether it is singular."""
    (left_values, left), (right_values, right) = piece.left, piece.right
    products = left_values[..., :, None] * right_values[..., None, :]
    fixed = jax.lax.stop_gradient(damping)
    inverse, singular = damped_reciprocal(products, fixed, (-2, -1))
    forward = kron_matvec(piece.inputs, piece.outputs)
    back = None if left is None else left.mT

    def solve(v):
        return jax.lax.custom_linear_solve(
            lambda v: forward(v) + damping * v,
            v,
            lambda _, b: rotate(inverse * rotate(b, left, right), back, right.mT),
            symmetric=True,
        )

    return solve, singular


def _shares(a: Array, g: Array, root: Array) -> tuple[Array, Array]:
    """(π√λ, √λ/π), each [lead...]; A may be a diagonal."""
    mean = lambda m: jnp.sum(jnp.where(_on_diagonal(m), m, 0), (-2, -1)) / m.shape[-1]
    left, right = jnp.mean(a, -1) if a.ndim < g.ndim else mean(a), mean(g)
    regular = (left > 0) & (right > 0)
    ratio = jnp.where(regular, left, 1) / jnp.where(regular, right, 1)
    pi = jnp.sqrt(ratio)
    return pi * root, root / pi


def _plus(matrix: Array, share: Array) -> Array:
    added = jnp.where(_on_diagonal(matrix), share[..., None, None], 0)
    return matrix + added


def _on_diagonal(matrix: Array) -> Array:
    # A mask, which fuses into what reads it; `diagonal` and `eye` would not.
    axes = (matrix.ndim - 2, matrix.ndim - 1)
    row, column = (jax.lax.broadcasted_iota(int, matrix.shape, i) for i in axes)
    return row == column
