"""SPRING's momentum from the spectrum of F: PRIME-SR.

    μ_k = 1 − (1 − √(β_k/√m)) (1 − (α_k/r_k)^¼)

    α_k = (Σ s)²/Σ s²             the effective dimension of the spectrum s of F_k
    r_k                           how many s are above rounding, n ε max s
    β_k = ‖V_kᵀ V_{k−1}‖_F        the overlap of the spaces of the ⌈α⌉ leading
                                  eigenvectors of this step and of the last one
    m   = min(⌈α_k⌉, ⌈α_{k−1}⌉)   so that β <= √m

Where the spectrum is flat, or where the leading directions of two batches are the same,
a step has much in common with the last one, and μ is near 1. The first step has μ = 0.

Where the rate η of the steps is known, μ <= 1 − η: after a step −η φ with φ = F⁻¹ g,
what is left to go is F⁻¹ (g − η F φ) = (1 − η) φ if F is the Hessian, so more of φ than
that is not worth remembering. The paper has no such bound: where the leading directions
do not change, as on a full sum, its μ goes to 1 whatever η is.

Eigenvectors are those of K = B Bᵀ in sample space, where rows of one batch are compared
with the same rows of the last one, as in the paper (Markov chains, or a full sum), or
those of F in parameter space, which does not ask what the rows are. The spectra agree.

Source: Wang & Liu (2026), Momentum stability and adaptive control in stochastic
reconfiguration, arXiv:2604.18357, algorithm 2 and equations 4.4 to 4.7.
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple, final

import jax.numpy as jnp
from jaxtyping import Float

from natgrad import tree
from natgrad.metrics.base import Metric
from natgrad.metrics.gram import GramMetric
from natgrad.solvers.matrix_functions import decomposed
from natgrad.solvers.spectral import HIGHEST
from natgrad.tree import Layout
from natgrad.typing import Array

# Parameters of which F may be decomposed without being asked to.
_WRITTEN_OUT = 4096


class PrincipalSpace(NamedTuple):
    """The leading eigenvectors of a step, and what its spectrum says; scalars but V.

    Attributes:
        vectors: V [n, n], 0 beyond the first `count` columns.
        count: ⌈α⌉; 0 where there was no step yet.
        effective_dimension: α.
        rank: r.
        overlap: β/√m, between 0 and 1.
    """

    vectors: Float[Array, "n n"]
    count: Float[Array, ""]
    effective_dimension: Float[Array, ""]
    rank: Float[Array, ""]
    overlap: Float[Array, ""]


@final
@dataclasses.dataclass(frozen=True)
class PrincipalRange:
    """SPRING's momentum found in each step: `spring(momentum=PrincipalRange(rows=M))`.

    An eigendecomposition a step beside the solve, and n² numbers in the state.

    Attributes:
        rows: M, the score columns of a batch, its examples times the columns of each,
            to compare eigenvectors in sample space (curvature `Gram`); None to compare
            them in parameter space, of up to 4096 parameters.
    """

    rows: int | None = None

    def init(self, layout: Layout) -> PrincipalSpace:
        """Before the first step.

        Args:
            layout: of the parameters.

        Raises:
            ValueError: there are too many of them for a matrix.
        """
        if self.rows is None and layout.size > _WRITTEN_OUT:
            raise ValueError(
                f"PrincipalRange() keeps eigenvectors of {layout.size}² numbers for "
                "these parameters: give rows=, the score columns of a batch, to keep "
                "those of sample space."
            )
        size = layout.size if self.rows is None else self.rows
        zeros = [jnp.zeros((), layout.dtype) for _ in range(4)]
        return PrincipalSpace(jnp.zeros((size, size), layout.dtype), *zeros)

    def update(
        self, metric: Metric, last: PrincipalSpace
    ) -> tuple[Float[Array, ""], PrincipalSpace]:
        """μ, and what to remember.

        Args:
            metric: F of the batch.
            last: of the step before.

        Raises:
            ValueError: F has no rows, or others than were said.
        """
        (factor,) = decomposed([self._matrix(metric)])
        values, vectors = factor.values[::-1], factor.vectors[:, ::-1]
        kept = values > values.size * jnp.finfo(values.dtype).eps * values[0]
        values = jnp.where(kept, values, 0)
        rank, squares = jnp.sum(kept).astype(values.dtype), jnp.sum(values**2)
        some = (squares > 0) & jnp.isfinite(squares)
        dimension = jnp.sum(values) ** 2 / jnp.where(some, squares, 1)
        count = jnp.clip(jnp.ceil(dimension), 1, rank)
        leading = jnp.where(jnp.arange(values.size) < count, vectors, 0)
        products = jnp.matmul(leading.T, last.vectors, precision=HIGHEST)
        most = jnp.maximum(jnp.minimum(count, last.count), 1)
        overlap = jnp.clip(jnp.linalg.norm(products) / jnp.sqrt(most), 0, 1)
        flatness = jnp.clip(dimension / jnp.where(some, rank, 1), 0, 1)
        momentum = 1 - (1 - jnp.sqrt(overlap)) * (1 - flatness**0.25)
        known = some & (last.count > 0)
        space = PrincipalSpace(leading, count, dimension, rank, overlap)
        return jnp.where(known, momentum, 0), tree.where(some, space, last)

    def _matrix(self, metric: Metric) -> Array:
        if self.rows is None:
            return metric.dense()
        if not isinstance(metric, GramMetric):
            raise ValueError(
                f"PrincipalRange(rows={self.rows}) compares eigenvectors of B Bᵀ, "
                f"which the curvature Gram has, got a {type(metric).__name__}: leave "
                "rows= out, or take curvature=natgrad.curvature.Gram."
            )
        if metric.jacobian.size != self.rows:
            raise ValueError(
                f"PrincipalRange(rows={self.rows}): this batch has "
                f"{metric.jacobian.size} score columns: its examples times the columns "
                "of each. Say so, and keep the batch's size."
            )
        return metric.jacobian.gram()
