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
import math
from collections.abc import Mapping, Sequence
from typing import NamedTuple, final

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float

from natgrad import tree
from natgrad.metrics.blockwise import kron_matvec, kron_matvec_low_rank
from natgrad.metrics.kronecker.factors import Factors
from natgrad.metrics.kronecker.metric import KroneckerMetric, diagonal_of
from natgrad.solvers.base import CachedSolver, Solution
from natgrad.solvers.block_elimination import ELIMINATION, InverseRule
from natgrad.solvers.damping import DampingLike, resolve_damping
from natgrad.solvers.renewed_inverses import Kept, renewed_inverses
from natgrad.solvers.spd_inverse import diagonal
from natgrad.solvers.spd_inverse import inverses as spd_inverses
from natgrad.solvers.spectral import HIGHEST, damped_reciprocal
from natgrad.typing import Array, Params


class Inverted(NamedTuple):
    """The inverses of both damped factors of a block.

    Attributes:
        inputs: (A + π√λ I)⁻¹, a matrix, or a diagonal where A is one.
        outputs: (G + √λ/π I)⁻¹.
        fallback: boolean scalar: did the rule fail, or λ = 0 meet a singular factor?
    """

    inputs: Float[Array, "*A"]
    outputs: Float[Array, "*lead O O"]
    fallback: Bool[Array, ""]


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
        factors, shares = _factors_and_shares(metric, damping, which)
        full = [i for i, (a, g) in enumerate(factors) if a.ndim == g.ndim]
        results, failed = spd_inverses(
            [_add_to_diagonal(factors[i][0], shares[i][0]) for i in full]
            + [
                _add_to_diagonal(g, d)
                for (_, g), (_, d) in zip(factors, shares, strict=True)
            ],
            [shares[i][0] for i in full] + [d for _, d in shares],
            self.rule,
        )
        lefts, rights = iter(results[: len(full)]), iter(results[len(full) :])
        inverted = []
        for (a, g), (share, _) in zip(factors, shares, strict=True):
            if a.ndim == g.ndim:
                inverse, dropped = next(lefts), False
            else:
                inverse, dropped = damped_reciprocal(a, share[..., None])
            inverted.append(Inverted(inverse, next(rights), failed | dropped))
        return inverted

    def renew(
        self,
        metric: KroneckerMetric,
        damping: DampingLike,
        due: Sequence[Array],
        old: Sequence[Inverted],
        first: Array,
    ) -> tuple[tuple[Inverted, ...], Array]:
        """One matrix at a time; one whose inverse is not finite keeps its old one."""
        factors, shares = _factors_and_shares(
            metric, damping, range(len(metric.blocks))
        )
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
        factors, shares = _factors_and_shares(
            metric, damping, range(len(metric.blocks))
        )
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


def _factors_and_shares(
    metric: KroneckerMetric, damping: DampingLike, which: Sequence[int]
) -> tuple[list[Factors], list[tuple[Array, Array]]]:
    """(A, G) of some blocks, and (π√λ, √λ/π) of each."""
    own = metric.block_dampings(resolve_damping(damping, metric))
    factors = metric.factors(which)
    return factors, damping_shares(factors, [own[i] for i in which])


def damping_shares(
    factors: Sequence[Factors], dampings: Sequence[Float[Array, ""]]
) -> list[tuple[Array, Array]]:
    """(π√λ, √λ/π) of each block, [lead...]; all blocks in one array, for fewer sums.

    Args:
        factors: A and G of each block.
        dampings: λ >= 0 of each block, in the units of A ⊗ G.
    """
    leads = [g.shape[:-2] for _, g in factors]
    root = jnp.sqrt(dampings[0])
    if any(damping is not dampings[0] for damping in dampings):
        root = jnp.sqrt(jnp.stack(dampings))[
            np.repeat(np.arange(len(leads)), [math.prod(lead) for lead in leads])
        ]
    rows = [diagonal_of(a, g) for a, g in factors] + [diagonal(g) for _, g in factors]
    left, right = _means(rows).reshape(2, -1)
    regular = (left > 0) & (right > 0)
    ratio = jnp.where(regular, left, 1) / jnp.where(regular, right, 1)
    pi = jnp.sqrt(ratio)
    shares, start = [], 0
    for lead in leads:
        end = start + math.prod(lead)
        pair = (share[start:end].reshape(lead) for share in (pi * root, root / pi))
        shares.append(tuple(pair))
        start = end
    return shares


def _means(rows: Sequence[Array]) -> Array:
    """The mean over the last axis of arrays [lead..., d], one after the other."""
    longest = max(row.shape[-1] for row in rows)
    flat = [row.reshape(-1, row.shape[-1]) for row in rows]
    wide = [jnp.pad(r, ((0, 0), (0, longest - r.shape[-1]))) for r in flat]
    sizes = np.concatenate([np.full(r.shape[0], r.shape[-1]) for r in flat])
    total = jnp.sum(jnp.concatenate(wide), -1)
    return total / jnp.asarray(sizes, total.dtype)


def _add_to_diagonal(matrix: Array, share: Array) -> Array:
    added = jnp.where(_on_diagonal(matrix), share[..., None, None], 0)
    return matrix + added


def _on_diagonal(matrix: Array) -> Array:
    # A mask, which fuses into what reads it; `diagonal` and `eye` would not.
    axes = (matrix.ndim - 2, matrix.ndim - 1)
    row, column = (jax.lax.broadcasted_iota(int, matrix.shape, i) for i in axes)
    return row == column


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
