"""The cheap inverse of a Kronecker metric: both factors damped, and inverted.

    (A + π√λ I)⁻¹ V (G + √λ/π I)⁻¹,     π² = (tr A/dim A) / (tr G/dim G)

(Martens & Grosse 2015, section 6.3), as explicit inverses
(`natgrad.solvers.spd_inverse`). What they invert,

    (A + π√λ I) ⊗ (G + √λ/π I) = F + λI + √λ (A ⊗ I/π + π I ⊗ G),

never has less damping than λ. Where a gradient is known as rows, V = Xᵀ C, fewer than
the factors are large, (X A⁻¹)ᵀ (C G⁻¹) is cheaper.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Mapping, Sequence
from typing import final

import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from natgrad import tree
from natgrad.metrics.blockwise import kron_matvec, kron_matvec_low_rank
from natgrad.metrics.kronecker.factors import (
    Inverted,
    damping_shares,
    invert_damped,
)
from natgrad.metrics.kronecker.metric import KroneckerMetric
from natgrad.solvers.base import CachedSolver, Solution
from natgrad.solvers.block_elimination import ELIMINATION, InverseRule
from natgrad.solvers.damping import DampingLike, resolve_damping
from natgrad.solvers.renewed_inverses import Kept, renewed_inverses
from natgrad.solvers.spectral import HIGHEST, damped_reciprocal
from natgrad.typing import Array, Params


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
        rule: how a factor is inverted: `natgrad.solvers.BlockElimination()`, or by
            products alone `natgrad.solvers.NewtonSchulz()`. Where the rule fails,
            eigenvalues take over, and `health.fallback` says so.
    """

    rows: Mapping[str, Mapping[str, Array]] | None = None
    rule: InverseRule = ELIMINATION

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
        return invert_damped(metric.factors(which), [own[i] for i in which], self.rule)

    def renew(
        self,
        metric: KroneckerMetric,
        damping: DampingLike,
        due: Sequence[Array],
        old: Sequence[Inverted],
        first: Array,
    ) -> tuple[tuple[Inverted, ...], Array]:
        """One matrix at a time; one whose inverse is not finite keeps its old one."""
        factors, shares = _factors_and_shares(metric, damping)
        full = [i for i, (a, g) in enumerate(factors) if a.ndim == g.ndim]
        lefts = [Kept(factors[i][0], shares[i][0], due[i], old[i].inputs) for i in full]
        rights = [
            Kept(g, share, now, before.outputs)
            for (_, g), (_, share), now, before in zip(
                factors, shares, due, old, strict=True
            )
        ]
        results, failed, count = renewed_inverses(lefts + rights, first, self.rule)
        of_left = dict(zip(full, zip(results, failed, strict=False), strict=False))
        of_right = zip(results[len(full) :], failed[len(full) :], strict=True)
        renewed = []
        for i, (outputs, failure) in enumerate(of_right):
            if i in of_left:
                inputs, other = of_left[i]
                fallback = jnp.maximum(failure, other) > 0
            else:
                share = shares[i][0][..., None]
                inverse, dropped = damped_reciprocal(factors[i][0], share)
                taken = due[i] & (first | tree.all_finite(inverse))
                inputs = jnp.where(taken, inverse, old[i].inputs)
                fallback = (failure > 0) | dropped
            fallback = jnp.where(due[i], fallback, old[i].fallback)
            renewed.append(Inverted(inputs, outputs, fallback))
        return tuple(renewed), count

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
        """The larger one of both damped factors; see `CachedSolver.residuals`."""
        factors, shares = _factors_and_shares(metric, damping)
        longest = max(g.shape[-1] for pair in factors for g in pair)
        signs = np.random.default_rng(0).choice([-1.0, 1.0], longest)
        found = [
            jnp.maximum(
                _residual(inverse.inputs, a, left, signs, a.ndim == g.ndim),
                _residual(inverse.outputs, g, right, signs, True),
            )
            for (a, g), inverse, (left, right) in zip(
                factors, factorizations, shares, strict=True
            )
        ]
        return jnp.stack(found)

    def with_row_factors(
        self, rows: Mapping[str, Mapping[str, Array]]
    ) -> FactoredTikhonov:
        """This solver for gradients that are Xᵀ C of these rows.

        Args:
            rows: block's name -> X [lead..., N, T, I] as "x", C [lead..., N, T, O] as
                "g".
        """
        return dataclasses.replace(self, rows=rows)


def _factors_and_shares(metric: KroneckerMetric, damping: DampingLike) -> tuple:
    """(A, G) of all blocks, and (π√λ, √λ/π) of each."""
    own = metric.block_dampings(resolve_damping(damping, metric))
    factors = metric.factors(range(len(metric.blocks)))
    return factors, damping_shares(factors, own)


def _residual(
    inverse: Array, matrix: Array, share: Array, signs: np.ndarray, full: bool
) -> Array:
    """|M⁻¹ M' v − v| / |v| for v of signs; of a stack of matrices the largest."""
    v = jnp.asarray(signs[: matrix.shape[-1]], matrix.dtype)
    if full:
        moved = jnp.matmul(matrix, v, precision=HIGHEST) + share[..., None] * v
        moved = jnp.matmul(inverse, moved[..., None], precision=HIGHEST)[..., 0]
    else:
        moved = inverse * (matrix + share[..., None]) * v
    square = jnp.max(jnp.sum((moved - v) ** 2, -1))
    return jnp.sqrt(square / matrix.shape[-1])
