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
from natgrad.curvature.layerwise import Blocks, LayerCurvature, Plan
from natgrad.curvature.memory import require
from natgrad.layers import Block, Expand, LookupRows, Reduce, Rows, Statistic
from natgrad.layers.declared import require_examples
from natgrad.metrics.kronecker import KroneckerMetric
from natgrad.solvers.spectral import HIGHEST
from natgrad.tree import Layout
from natgrad.typing import Array, Inputs, Key, Params


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
        sharing: `natgrad.layers.Expand()` or `natgrad.layers.Reduce()`.
    """

    sharing: layers.Expand = Expand()  # noqa: RUF009 (frozen, without state)

    def init(self, params: Params) -> KroneckerFactors:
        """Zero factors; needs `example_inputs` in the model to know the layers."""
        blocks = self.captured(params).blocks
        made = lambda: [self.sharing.zero(block) for block in blocks]
        sizes = [
            sum(leaf.size for leaf in jax.tree.leaves(zero))
            for zero in jax.eval_shape(made)
        ]
        largest = blocks[sizes.index(max(sizes))]
        name = repr(largest.name)
        require(
            sum(sizes),
            largest.dtype,
            f"K-FAC's factors, the largest those of {name}",
            f"declared={{{name}: natgrad.layers.DiagonalBlock()}} or LayerDiagonal",
        )
        zeros = made()
        return KroneckerFactors(
            tuple(zero.get("A_swapped", zero["A"]) for zero in zeros),
            tuple(zero["G"] for zero in zeros),
        )

    def plan(
        self,
        params: Params,
        inputs: Inputs,
        targets: Array | None = None,
        key: Key | None = None,
    ) -> Plan:
        """The factors of every block."""
        del targets, key
        weights = self.example_weights(params, inputs)
        sharing = self.sharing if weights is None else Weighted(self.sharing, weights)
        return {"factors": sharing}, normalised

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
        """
        jax.eval_shape(self.model.outputs, params, inputs)  # its errors come first
        few = lambda block: (
            {"rows": layers.RowFactors()} if layers.RowFactors.are_few(block) else {}
        )
        z, pullback = self.captured(params, inputs).pull(few, params, inputs)
        head = dataclasses.replace(self.model, apply=lambda z, _: z)
        loss, cotangent = jax.value_and_grad(lambda z: head.loss(z, inputs, targets))(z)
        gradient, found = pullback(cotangent)
        return (
            loss,
            gradient,
            {name: each["rows"] for name, each in found.items() if each},
        )

    def metric_from_statistics(
        self,
        statistics: KroneckerFactors,
        layout: Layout,
        blocks: Callable[[], Blocks],
    ) -> KroneckerMetric:
        """The Kronecker products as a metric."""
        return KroneckerMetric(layout, blocks(), *statistics)


def normalised(sums: Mapping[str, Mapping], total: Array) -> KroneckerFactors:
    """A = Σ x xᵀ / rows and G = Σ g gᵀ / N of each block.

    The rows are counted with the inputs, once for each pull, so K cancels in A.
    """
    factors = [_one_term(found["factors"], total) for found in sums.values()]
    return KroneckerFactors(tuple(a for a, _ in factors), tuple(g for _, g in factors))


def _one_term(sums: Mapping[str, Array], total: Array) -> tuple[Array, Array]:
    first = _mean_factors(sums["A"], sums["rows"], sums["G"], total)
    if "mask" in sums:
        return _masked(*first, sums["mask"] / _columns_of(sums["masks"], sums["mask"]))
    if "A_swapped" not in sums:
        return first
    second = _mean_factors(
        sums["A_swapped"], sums["rows_swapped"], sums["G_swapped"], total
    )
    trace = lambda m: jnp.trace(m, axis1=-2, axis2=-1)[..., None, None]
    (a, g), (a2, g2) = first, second
    if a.ndim < a2.ndim:  # of lookups
        a = jnp.diag(a)
    whole = trace(a) * trace(g) + trace(a2) * trace(g2)
    inputs = a * trace(g) + a2 * trace(g2)
    outputs = g * trace(a) + g2 * trace(a2)
    return inputs, outputs / jnp.where(whole == 0, 1, whole)


def _masked(a, g, mask) -> tuple[Array, Array]:
    """D (A ⊗ G) D for D = diag(vec M), as the product with the same partial traces."""
    product = lambda m, d: jnp.einsum(
        "...io,...o,...jo->...ij", m, d, m, precision=HIGHEST
    )
    diagonal = lambda m: jnp.diagonal(m, axis1=-2, axis2=-1)
    inputs = a * product(mask, diagonal(g))
    outputs = g * product(mask.mT, diagonal(a))
    trace = jnp.sum(diagonal(inputs), axis=-1)[..., None, None]
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
        moment = _swapped_moment if rows.swapped else _moment
        number = jnp.broadcast_to(rows.number(context), found["rows" + role].shape)
        return found | {
            ("G" if rows.swapped else "A") + role: moment(rows, context),
            "rows" + role: number.astype(block.dtype),
        }


def _moment(rows: Rows, weights: Array) -> Array:
    if isinstance(rows, LookupRows):
        each = jnp.broadcast_to(weights[:, None], rows.index.shape)
        counts = jnp.zeros(rows.table, weights.dtype)
        counts = counts.at[rows.index.reshape(-1)].add(each.reshape(-1), mode="drop")
        return jnp.diag(counts) if rows.dense else counts
    return _product(rows.homogeneous, weights)


def _swapped_moment(rows: Rows, weights: Array) -> Array:
    return _product(rows.g, weights)


def _product(x: Array, weights: Array) -> Array:
    """Σ_n ω_n Σ_t x xᵀ of x [batch..., N, T, I]."""
    omega = weights.reshape((1,) * (x.ndim - 3) + (-1, 1, 1))
    return jnp.einsum("...nti,...ntj->...ij", omega * x, x, precision=HIGHEST)
