"""EKFAC: K-FAC's eigenbasis with the true second moments in it.

    F_b ≈ (U_A ⊗ U_G) diag(s) (U_A ⊗ U_G)ᵀ,     A = U_A a U_Aᵀ,   G = U_G g U_Gᵀ,
    s = (1/N) Σ_n Σ_k (U_Aᵀ V_nk U_G)²,           V_nk [I (+1), O] = Σ_t x gᵀ

s is the diagonal of F in the basis, so no s is nearer to F in Frobenius norm; K-FAC is
the choice s = a gᵀ. Weight sharing is exact in s whatever the setting; the setting
decides the basis.

Over a run the scales are measured at every estimate and the basis is refreshed rarely,
from the averaged factors of the estimates before. The average of the scales is then
carried over as the diagonal, in the new basis, of the matrix that it stands for: with
Q = U_oldᵀ U_new, entry by entry squared,

    s ← (Q_A ∘ Q_A)ᵀ s (Q_G ∘ Q_G)        (the trace is kept)

The first batch is measured in its own basis, which takes one more backward pass.

Source: George et al. (2018), Fast approximate natural gradient descent in a
Kronecker-factored eigenbasis.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping, Sequence
from typing import ClassVar, NamedTuple, final

import jax
import jax.numpy as jnp
from jaxtyping import Float, Int

from natgrad.control_flow import any_over_vmap, cond_in_place
from natgrad.curvature.kfac import KFAC, FactorStatistics, KroneckerFactors
from natgrad.curvature.layerwise import Blocks, CapturedBatch, LayerCurvature
from natgrad.layers import Expand, ProjectedSquares, Statistic
from natgrad.metrics.eigenbasis import (
    EigenbasisMetric,
    eigenbases,
    eigh,
    plain_eigh,
    rotate,
)
from natgrad.model.batch import Batch
from natgrad.solvers.spectral import HIGHEST, Eigendecomposition
from natgrad.tree import Layout, increment
from natgrad.typing import Array, Params, Statistics


class Bases(NamedTuple):
    """Orthonormal bases of every block.

    Attributes:
        left: U_A, [lead..., I(+1), I(+1)]; None where A is kept as its diagonal.
        right: U_G, [lead..., O, O].
    """

    left: tuple[Float[Array, "*lead I I"] | None, ...]
    right: tuple[Float[Array, "*lead O O"], ...]


class EigenStatistics(NamedTuple):
    """What EKFAC keeps, block by block.

    Attributes:
        factors: A and G, of which the next bases are made.
        bases: U_A and U_G.
        scales: s in these bases, [lead..., I(+1), O].
        age: estimates so far.
    """

    factors: KroneckerFactors
    bases: Bases
    scales: tuple[Float[Array, "*lead I O"], ...]
    age: Int[Array, ""]


@final
@dataclasses.dataclass(frozen=True, eq=False)
class EKFAC(LayerCurvature):
    """F as a diagonal in a Kronecker product of eigenbases, for each layer.

    Attributes:
        model: whose Fisher information; with `example_inputs`.
        labels: `Exact()`, `Sampled(n)`, `Sketched(n)` or `Empirical()`.
        declared: as for `KFAC`.
        axis_name: as for `KFAC`.
        sharing: `natgrad.layers.Expand()` or `natgrad.layers.Reduce()`, for the basis.
        period: estimates between two refreshes of a layer's basis.
        decomposition: what finds the basis of a factor; also
            `natgrad.solvers.JacobiRotations()`.
        previous: the average that the next estimate continues from, as
            `with_previous` sets it.
    """

    sharing: Expand = Expand()  # noqa: RUF009 (frozen, without state)
    period: int = 1
    decomposition: Eigendecomposition = plain_eigh
    previous: EigenStatistics | None = None

    passes: ClassVar[int] = 2

    def init(self, params: Params) -> EigenStatistics:
        """Zero factors and scales, and the parameters' own axes as basis."""
        factors = self._kfac().init(params)

        def eye(m):
            return jnp.broadcast_to(jnp.eye(m.shape[-1], dtype=m.dtype), m.shape)

        bases = Bases(
            tuple(
                None if a.ndim < g.ndim else eye(a)
                for a, g in zip(*factors, strict=True)
            ),
            tuple(eye(g) for g in factors.outputs),
        )
        blocks = self.captured(params).blocks
        scales = tuple(jnp.zeros(block.shape, block.dtype) for block in blocks)
        return EigenStatistics(factors, bases, scales, jnp.zeros((), jnp.int32))

    def layer_statistics(self, captured: CapturedBatch) -> EigenStatisticsRequest:
        """Factors, and squares in the previous basis or the batch's own."""
        factors = self._kfac().layer_statistics(captured)

        def own_bases():
            of_batch = factors.finalize(*self.sums(factors, captured))
            return self._bases_of(of_batch)

        if self.previous is None:
            bases = own_bases()
        else:
            bases = cond_in_place(
                self.previous.age == 0,
                lambda _: own_bases(),
                self._renewed_bases(self.previous),
            )
        names = tuple(block.name for block in captured.captured.blocks)
        return EigenStatisticsRequest(factors, bases, names)

    def moments(self, given: Batch, found: EigenStatistics | None = None) -> tuple:
        """Those of the factors; then the squares in their basis."""
        if found is None:
            return self._kfac().moments(given)
        captured = self.capture_batch(given)
        names = tuple(block.name for block in captured.captured.blocks)
        request = EigenStatisticsRequest(None, found.bases, names)
        return self.means(request, captured)

    def from_moments(
        self, params: Params, moments: tuple, found: EigenStatistics | None = None
    ) -> EigenStatistics:
        """Factors and their bases; then the scales in these bases."""
        if found is None:
            factors = self._kfac().from_moments(params, moments)
            return EigenStatistics(factors, self._bases_of(factors), (), jnp.int32(0))
        scales = tuple(answers["squares"] for answers in moments)
        return found._replace(scales=scales, age=jnp.int32(1))

    def with_previous(self, statistics: Statistics) -> EKFAC:
        """EKFAC that measures in the basis of `statistics`, refreshed if it is due."""
        return dataclasses.replace(self, previous=statistics)

    def accumulate(
        self, statistics: Statistics, estimate: Statistics, weight: Array
    ) -> EigenStatistics:
        """The averages of factors and scales, in the basis of the estimate."""
        carried = statistics._replace(
            scales=tuple(
                map(
                    _carried,
                    statistics.scales,
                    zip(*statistics.bases, strict=True),
                    zip(*estimate.bases, strict=True),
                )
            )
        )
        mixed = super().accumulate(carried, estimate, weight)
        return mixed._replace(
            bases=estimate.bases, age=increment(statistics.age, period=self.period)
        )

    def metric_from_statistics(
        self, statistics: EigenStatistics, layout: Layout, blocks: Callable[[], Blocks]
    ) -> EigenbasisMetric:
        """The diagonals in their bases as a metric."""
        return EigenbasisMetric(layout, blocks(), *statistics.bases, statistics.scales)

    def from_factors(self, factors: KroneckerFactors) -> EigenStatistics:
        """K-FAC's own matrix: the factors' eigenbasis, with the scales s = a gᵀ."""
        found = self._eigenbases(factors)
        count = len(factors.inputs)
        scales = tuple(
            a[..., :, None] * g[..., None, :]
            for (a, _), (g, _) in zip(found[:count], found[count:], strict=True)
        )
        age = jnp.ones((), jnp.int32)
        return EigenStatistics(factors, self._bases_of(factors), scales, age)

    def _kfac(self) -> KFAC:
        return KFAC(self.model, self.labels, self.declared, self.sharing)

    def _eigenbases(self, factors: KroneckerFactors) -> list:
        """(eigenvalues, eigenvectors) of all A, then of all G."""

        def decompose(matrix):
            return eigh(matrix, self.decomposition)

        return eigenbases([*factors.inputs, *factors.outputs], decompose)

    def _bases_of(self, factors: KroneckerFactors) -> Bases:
        """The eigenbases of the factors, block by block."""
        pairs = self._eigenbases(factors)
        count = len(factors.inputs)
        right = tuple(vectors for _, vectors in pairs[count:] if vectors is not None)
        return Bases(tuple(vectors for _, vectors in pairs[:count]), right)

    def _renewed_bases(self, previous: EigenStatistics) -> Bases:
        """The previous bases, where they are due made anew from the factors."""
        due = (previous.age > 0) & (previous.age % self.period == 0)
        return cond_in_place(
            due, lambda _: self._bases_of(previous.factors), previous.bases
        )


@dataclasses.dataclass(frozen=True)
class EigenStatisticsRequest:
    """Factors and squares in bases: what is asked of the layers, and what is kept.

    Attributes:
        factors: what K-FAC asks; None where the squares are all that is asked.
        bases: in which the squares are measured.
        names: of the blocks.
    """

    factors: FactorStatistics | None
    bases: Bases
    names: tuple[str, ...]

    def requested_statistics(self) -> Mapping[str, Statistic]:
        """The factors' sums, and Σ_n (U_Aᵀ V_n U_G)²."""
        pairs = zip(*self.bases, strict=True)
        squares = ProjectedSquares(dict(zip(self.names, pairs, strict=True)))
        factors = self.factors.requested_statistics() if self.factors else {}
        return {**factors, "squares": squares}

    def finalize(self, sums: Mapping[str, Mapping], total: Array) -> EigenStatistics:
        """Factors, bases and the batch means of the squares.

        Args:
            sums: block's name -> {"factors": the sums, "squares": the sums}.
            total: Σ_n ω_n, shape ().
        """
        scales = tuple(
            answers["squares"] / total.astype(answers["squares"].dtype)
            for answers in sums.values()
        )
        assert self.factors is not None
        factors = self.factors.finalize(sums, total)
        return EigenStatistics(factors, self.bases, scales, jnp.ones((), jnp.int32))


def _carried(scales: Array, old: Sequence, new: Sequence) -> Array:
    """The scales of an old basis as those of a new one; untouched if it is the same."""
    (left, right), (new_left, new_right) = old, new

    def carry():
        def rotation(u, v):
            return jnp.matmul(u.mT, v, precision=HIGHEST) ** 2

        inputs = None if left is None else rotation(left, new_left)
        return rotate(scales, inputs, rotation(right, new_right))

    changed = jnp.any(right != new_right)
    if left is not None:
        changed = changed | jnp.any(left != new_left)
    return jax.lax.cond(any_over_vmap(changed), carry, lambda: scales)
