"""K-FAC: a Kronecker product for each layer, from taps in one backward pass.

For a use z = Wᵀx of a parameter, with output gradients g = Jᵀs of score columns s,

    F_b ≈ A ⊗ G,     A = mean of x xᵀ,     G = (1/N) Σ_n Σ_k Σ_t g gᵀ

over examples n, columns k and the positions t that share the weight. Exact for one
linear layer whose G does not depend on x, for deep linear networks with normal
outputs, and for one example. Positions are read as examples of their own (`Expand`, the
default) or averaged and summed first (`Reduce`). The bias is a last row of W on the
uses that add it. A weight read both as W and as Wᵀ has two Kronecker terms; they are
replaced by the one product with the same partial traces,

    A₁ ⊗ G₁ + A₂ ⊗ G₂  ≈  Ā ⊗ Ḡ / (tr A₁ tr G₁ + tr A₂ tr G₂),
    Ā = A₁ tr G₁ + A₂ tr G₂,     Ḡ = G₁ tr A₁ + G₂ tr A₂.

So is D (A ⊗ G) D, D = diag(vec M), of a weight that is used as M ∘ W (M is 1 in the row
of the bias), which is exact where M has rank one:

    Ā = A ∘ (M diag(G) Mᵀ) / t,     Ḡ = G ∘ (Mᵀ diag(A) M),     t = Σ_io M_io² A_ii G_oo

Example weights ω_n = max_t w_nt weigh the means of x xᵀ and of g gᵀ alike, so that a
masked example counts as one that is not there. Where a mask hides some positions of an
example only, their g vanish but their x still enter A: A knows examples, not factors.

Memory Σ_b (I² + O²); time N Σ_b (I² + O²) + Σ_b (I³ + O³) and, for each score column,
one backward pass.

Source: Martens & Grosse (2015), Optimizing neural networks with Kronecker-factored
approximate curvature, sections 3 and 6; Eschenhagen et al. (2023), Kronecker-factored
approximate curvature for modern neural network architectures, section 3.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Mapping
from typing import NamedTuple, final

import jax
import jax.numpy as jnp

from natgrad import layers
from natgrad.curvature.base import require_memory
from natgrad.curvature.columns import law_of_outputs
from natgrad.curvature.layerwise import Blocks, CapturedBatch, LayerCurvature
from natgrad.layers import Block, Expand, LookupRows, Reduce, Rows, Statistic
from natgrad.layers.compiled import compiled_method
from natgrad.layers.declared import require_examples
from natgrad.metrics.kronecker import KroneckerMetric
from natgrad.model.batch import Batch
from natgrad.solvers.spectral import HIGHEST
from natgrad.tree import Layout
from natgrad.typing import Array, Inputs, Params, Statistics


class KroneckerFactors(NamedTuple):
    """The factors of every block, in the order of the captured blocks.

    Attributes:
        inputs: A, [lead..., I(+1), I(+1)] or a diagonal [I].
        outputs: G, [lead..., O, O].
    """

    inputs: tuple[Array, ...]
    outputs: tuple[Array, ...]


@final
@dataclasses.dataclass(frozen=True, eq=False)
class KFAC(LayerCurvature):
    """F as a Kronecker product for each layer.

    Attributes:
        model: whose Fisher information; with `example_inputs`, or its layers are not
            known before the first batch.
        labels: `Exact()`, `Sampled(n)`, `Sketched(n)` or `Empirical()`.
        declared: path of a parameter or subtree -> `natgrad.layers.DenseBlock()` or
            `natgrad.layers.DiagonalBlock()`, for what is to be treated by hand; None
            for nothing.
        sharing: how positions that share a weight are read:
            `natgrad.layers.Expand()` or `natgrad.layers.Reduce()`.
        axis_name: of the mapped axis, or axes, over which the examples are spread;
            None where a call sees the whole batch.
    """

    sharing: layers.Expand = Expand()  # noqa: RUF009 (frozen, without state)

    def init(self, params: Params) -> KroneckerFactors:
        """Zero factors; needs `example_inputs` in the model to know the layers."""
        blocks = self.captured(params).blocks

        def zeros():
            return [self.sharing.zero(block) for block in blocks]

        sizes = [
            sum(leaf.size for leaf in jax.tree.leaves(zero))
            for zero in jax.eval_shape(zeros)
        ]
        largest = blocks[sizes.index(max(sizes))]
        name = repr(largest.name)
        require_memory(
            sum(sizes),
            largest.dtype,
            f"K-FAC's factors, the largest those of {name}",
            f"declared={{{name}: natgrad.layers.DiagonalBlock()}} or LayerDiagonal",
        )
        empty = zeros()
        return KroneckerFactors(
            tuple(zero.get("A_swapped", zero["A"]) for zero in empty),
            tuple(zero["G"] for zero in empty),
        )

    def layer_statistics(self, captured: CapturedBatch) -> FactorStatistics:
        """The factors of every block."""
        weights = captured.example_weights()
        sharing = self.sharing if weights is None else Weighted(self.sharing, weights)
        return FactorStatistics(sharing)

    def moments(self, given: Batch, found: Statistics | None = None) -> tuple:
        """The sums that the factors are made of, over Σ_n ω_n."""
        del found
        captured = self.capture_batch(given)
        return self.means(self.layer_statistics(captured), captured)

    def from_moments(
        self, params: Params, moments: tuple, found: Statistics | None = None
    ) -> KroneckerFactors:
        """The factors, which where a weight has two terms are no means."""
        del params, found
        sums = {str(number): each for number, each in enumerate(moments)}
        return FactorStatistics(self.sharing).finalize(sums, jnp.ones(()))

    @compiled_method
    def value_grad_and_rows(
        self, params: Params, inputs: Inputs, targets: Array
    ) -> tuple[Array, Params, Mapping[str, Mapping[str, Array]]]:
        """(loss, gradient, rows): the gradient of narrow batches as Xᵀ C too.

        For `update(gradient, state, params, inputs=inputs, rows=rows)`, which applies
        kept inverses to the rows of each layer where that is cheaper: where these are
        fewer than about half of the layer's width. The gradient must reach `update` as
        it is. The rows are the activations and their gradients, which exist anyway.

        Args:
            params: θ.
            inputs: a batch of inputs.
            targets: its labels.

        Returns:
            The loss, shape (), in nats; the gradient, like the parameters; and block's
            name -> {"x": [N, T, I], "g": [N, T, O]} where the rows are few.
        """
        program = layers.trace(self.model.raw_outputs, params, inputs)
        law = law_of_outputs(self.model)
        captured = self.captured(params, inputs, program)
        z, pullback = captured.pull(_few_rows, params, inputs)
        loss, cotangent = jax.value_and_grad(law.loss)(z, inputs, targets)
        gradient, answers = pullback(cotangent)
        rows = {name: each["rows"] for name, each in answers.items() if each}
        return loss, gradient, rows

    def metric_from_statistics(
        self, statistics: KroneckerFactors, layout: Layout, blocks: Callable[[], Blocks]
    ) -> KroneckerMetric:
        """The Kronecker products as a metric."""
        return KroneckerMetric(layout, blocks(), *statistics)


@dataclasses.dataclass(frozen=True)
class FactorStatistics:
    """Kronecker factors: what is asked of the layers, and what is kept.

    Attributes:
        sharing: `Expand()`, `Reduce()`, or one of these `Weighted`.
    """

    sharing: Statistic

    def requested_statistics(self) -> Mapping[str, Statistic]:
        """The sums of x xᵀ and g gᵀ."""
        return {"factors": self.sharing}

    def finalize(self, sums: Mapping[str, Mapping], total: Array) -> KroneckerFactors:
        """A = Σ x xᵀ / rows and G = Σ g gᵀ / N of each block.

        The rows are counted with the inputs, once for each pull, so K cancels in A.

        Args:
            sums: block's name -> {"factors": the sums}.
            total: Σ_n ω_n, shape ().
        """
        pairs = [_one_term(answers["factors"], total) for answers in sums.values()]
        return KroneckerFactors(tuple(a for a, _ in pairs), tuple(g for _, g in pairs))


def _few_rows(block: Block) -> dict[str, Statistic]:
    """The rows of a block where they are few."""
    return {"rows": layers.RowFactors()} if layers.RowFactors.are_few(block) else {}


def _one_term(sums: Mapping[str, Array], total: Array) -> tuple[Array, Array]:
    first = _mean_factors(sums["A"], sums["rows"], sums["G"], total)
    if "mask" in sums:
        return _masked(*first, sums["mask"] / _columns_of(sums["masks"], sums["mask"]))
    if "A_swapped" not in sums:
        return first
    second = _mean_factors(
        sums["A_swapped"], sums["rows_swapped"], sums["G_swapped"], total
    )

    def trace(m):
        return jnp.trace(m, axis1=-2, axis2=-1)[..., None, None]

    (a, g), (a2, g2) = first, second
    if a.ndim < a2.ndim:  # of lookups
        a = jnp.diag(a)
    sum_of_traces = trace(a) * trace(g) + trace(a2) * trace(g2)
    inputs = a * trace(g) + a2 * trace(g2)
    outputs = g * trace(a) + g2 * trace(a2)
    return inputs, outputs / jnp.where(sum_of_traces == 0, 1, sum_of_traces)


def _masked(a, g, mask) -> tuple[Array, Array]:
    """D (A ⊗ G) D for D = diag(vec M), as the product with the same partial traces."""

    def product(m, d):
        return jnp.einsum("...io,...oo,...jo->...ij", m, d, m, precision=HIGHEST)

    inputs, outputs = a * product(mask, g), g * product(mask.mT, a)
    trace = jnp.trace(inputs, axis1=-2, axis2=-1)[..., None, None]
    return inputs, outputs / jnp.where(trace == 0, 1, trace)


def _mean_factors(a, rows, g, total) -> tuple[Array, Array]:
    return a / _columns_of(rows, a), g / total.astype(g.dtype)


def _columns_of(count: Array, like: Array) -> Array:
    """A count of what was added up, to divide by; 1 where nothing was."""
    count = count.reshape(count.shape + (1,) * (like.ndim - count.ndim))
    return jnp.where(count == 0, 1, count)


@final
@dataclasses.dataclass(frozen=True, eq=False)
class Weighted(Statistic):
    """What `Expand` or `Reduce` gives, with a weight for each example's inputs.

    Attributes:
        sharing: `Expand()` or `Reduce()`.
        weights: ω, [N].
    """

    sharing: Expand
    weights: Array

    def context(self, block: Block) -> Array:
        """ω for every layer of a stack."""
        weights = self.weights.astype(block.dtype)
        return jnp.broadcast_to(weights, (*block.stack, *weights.shape))

    def zero(self, block: Block) -> dict[str, Array]:
        """Zeros as for the sharing; needs rows that can be told apart by example."""
        require_examples(block, "weighted Kronecker factors")
        return self.sharing.zero(block)

    def of(self, block: Block, rows: Rows, context: Array) -> dict[str, Array]:
        """The sharing's factors, that of the inputs weighted.

        Swapped rows hold the inputs in place of the gradients.
        """
        found = self.sharing.of(block, rows, ())
        if isinstance(self.sharing, Reduce):
            rows = rows.reduced()
        role = "_swapped" * rows.swapped
        number = jnp.broadcast_to(rows.number(context), found["rows" + role].shape)
        return found | {
            ("G" if rows.swapped else "A") + role: _moment(rows, context),
            "rows" + role: number.astype(block.dtype),
        }


def _moment(rows: Rows, weights: Array) -> Array:
    if rows.swapped:
        return _product(rows.g, weights)
    if isinstance(rows, LookupRows):
        assert rows.index is not None
        each = jnp.broadcast_to(weights[:, None], rows.index.shape)
        counts = jnp.zeros(rows.table, weights.dtype)
        counts = counts.at[rows.index.reshape(-1)].add(each.reshape(-1), mode="drop")
        return jnp.diag(counts) if rows.dense else counts
    return _product(rows.homogeneous, weights)


def _product(x: Array, weights: Array) -> Array:
    """Σ_n ω_n Σ_t x xᵀ of x [batch..., N, T, I]."""
    omega = weights.reshape((1,) * (x.ndim - 3) + (-1, 1, 1))
    return jnp.einsum("...nti,...ntj->...ij", omega * x, x, precision=HIGHEST)
