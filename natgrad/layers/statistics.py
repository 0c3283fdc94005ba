"""What may be asked of a block: sums over its uses and the examples.

A statistic is linear bookkeeping around rows X, G (`natgrad.layers.rows`). All sums are
raw: over the N examples, for the output gradients g that the caller's cotangent gives.
A new statistic is a class with three methods; nothing else has to know of it.

With positions t at which one example uses a weight, two readings of K-FAC exist
(Eschenhagen et al. 2023):

    expand   A = Σ_{n,t} x x ᵀ                    G = Σ_{n,t} g gᵀ
    reduce   A = Σ_n (mean_t x)(mean_t x)ᵀ        G = Σ_n (Σ_t g)(Σ_t g)ᵀ

`Expand` and `Reduce` are these. Different uses of one weight (tied layers, the steps of
a recurrence) are added after either.
"""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp

from natgrad.layers.blocks import Block, LayerBlock
from natgrad.layers.declared import refusal, require_examples, too_large
from natgrad.layers.dense import MaskedRows
from natgrad.layers.embedding import LookupRows
from natgrad.layers.rows import Rows, contract
from natgrad.layers.uses import Mixed
from natgrad.model.errors import DoesNotFitError
from natgrad.typing import Array


class Statistic(abc.ABC):
    """One quantity per block, a sum over its uses."""

    def context(self, block: Block) -> Any:
        """Arrays that `of` needs; their leading axes are the block's `stack`."""
        del block
        return ()

    @abc.abstractmethod
    def zero(self, block: Block) -> Any:
        """The empty sum, a tree whose leading axes are the block's `stack`.

        Raises:
            ValueError: the block does not allow this statistic.
        """

    @abc.abstractmethod
    def of(self, block: Block, rows: Rows, context: Any) -> Any:
        """One use's share, like `zero` for a block without stack."""

    def finish(self, block: Block, total: Any) -> Any:
        """The statistic from the sum over uses."""
        del block
        return total

    def additive(self, block: Block) -> bool:
        """Is one use's share a sum over examples, so that it can be taken in chunks?"""
        del block
        return False


@dataclasses.dataclass(frozen=True)
class Expand(Statistic):
    """Kronecker factors, every position an example of its own.

    Gives {"A": [lead..., I(+1), I(+1)], "G": [lead..., O, O], "rows": [stack...]}, the
    last being how many rows were added up, [stack..., batch...] where each row belongs
    to one matrix of the batch. A lookup table's A is its diagonal [I]. A
    block with two roles also has "A_swapped" (of the gradients x there) and
    "G_swapped", "rows_swapped": its Fisher has two Kronecker terms. A block of a weight
    that is multiplied by M before its use also has Σ M as "mask", and how often it was
    added up as "masks"; A and G are those of the product.
    """

    def zero(self, block: Block) -> dict[str, Array]:
        """Zeros of the shapes above."""
        if block.mixed is Mixed.BEFORE:
            raise ValueError(refusal(block, block.mixed, "Kronecker factors"))
        if block.dwarfed:
            raise DoesNotFitError(too_large(block))
        side = (block.rows,) * (1 if block.diagonal_inputs else 2)
        shapes = {
            "A": (*block.lead, *side),
            "G": (*block.lead, block.outputs, block.outputs),
            "rows": (*block.stack, *(block.batch if block.routed else ())),
        }
        if block.masked:
            shapes |= {"mask": block.shape, "masks": block.stack}
        if block.roles == 2:
            shapes["A_swapped"] = (*block.lead, block.rows, block.rows)
            shapes["G_swapped"], shapes["rows_swapped"] = shapes["G"], shapes["rows"]
        return {name: jnp.zeros(shape, block.dtype) for name, shape in shapes.items()}

    def of(self, block: Block, rows: Rows, context: Any) -> dict[str, Array]:
        """A and G of one use, in its role."""
        del context
        names = [n + "_swapped" * rows.swapped for n in ("A", "G", "rows")]
        number = jnp.asarray(rows.number(), block.dtype)
        if block.routed:
            number = jnp.broadcast_to(number, block.batch)
        moments = [rows.input_moment(), rows.output_moment(), number]
        if isinstance(rows, MaskedRows):
            names += ["mask", "masks"]
            moments += [rows.whole_mask(), jnp.ones((), block.dtype)]
        if block.roles == 1:
            return dict(zip(names, moments, strict=True))
        total = {
            name: jnp.zeros(value.shape[len(block.stack) :], block.dtype)
            for name, value in self.zero(block).items()
        }
        return total | {
            name: jnp.asarray(moment, block.dtype)
            for name, moment in zip(names, moments, strict=True)
        }

    def additive(self, block: Block) -> bool:
        """Yes."""
        del block
        return True


@dataclasses.dataclass(frozen=True)
class Reduce(Expand):
    """Kronecker factors of position-averaged inputs and position-summed gradients."""

    def zero(self, block: Block) -> dict[str, Array]:
        """Zeros as for `Expand`; needs rows that can be told apart by example."""
        require_examples(block, "the reduce setting")
        shapes = Expand.zero(self, block)
        if block.diagonal_inputs:
            shapes["A"] = jnp.zeros((*block.lead, block.rows, block.rows), block.dtype)
        return shapes

    def of(self, block: Block, rows: Rows, context: Any) -> dict[str, Array]:
        """A and G of one use after its positions are reduced."""
        return Expand.of(self, block, rows.reduced(), context)


@dataclasses.dataclass(frozen=True)
class Gradient(Statistic):
    """Σ x gᵀ, which must be the gradient: [lead..., I (+1), O]."""

    def zero(self, block: Block) -> Array:
        """Zeros [lead..., I (+1), O]."""
        return jnp.zeros(block.shape, block.dtype)

    def of(self, block: Block, rows: Rows, context: Any) -> Array:
        """One use's part of the gradient."""
        del block, context
        return rows.gradient()

    def additive(self, block: Block) -> bool:
        """Yes."""
        del block
        return True


@dataclasses.dataclass(frozen=True)
class PerExample(Statistic):
    """Every example's gradient V_n, [N, lead..., I (+1), O]: O(N P) memory."""

    def zero(self, block: Block) -> Array:
        """Zeros [stack..., N, batch..., I (+1), O]."""
        require_examples(block, "per-example gradients")
        shape = (*block.stack, block.examples, *block.shape[len(block.stack) :])
        return jnp.zeros(shape, block.dtype)

    def of(self, block: Block, rows: Rows, context: Any) -> Array:
        """One use's part of V, [N, batch..., I (+1), O]."""
        del block, context
        return rows.per_example()

    def finish(self, block: Block, total: Array) -> Array:
        """V with the examples first."""
        return jnp.moveaxis(total, len(block.stack), 0)


@dataclasses.dataclass(frozen=True)
class Squares(PerExample):
    """Σ_n V_n², the diagonal of the score outer products: [lead..., I (+1), O].

    From rows where each example's gradient is the work of one use. Where several uses
    add to it (tied weights, recurrences), V itself is summed first: O(N P) memory for
    such a block.
    """

    def zero(self, block: Block) -> Array:
        """Zeros like the block's matrix, or per example."""
        require_examples(block, "squared per-example gradients")
        if block.once:
            return jnp.zeros(block.shape, block.dtype)
        return PerExample.zero(self, block)

    def of(self, block: Block, rows: Rows, context: Any) -> Array:
        """One use's squares, or its part of V."""
        del context
        return rows.squares() if block.once else rows.per_example()

    def finish(self, block: Block, total: Array) -> Array:
        """Σ_n V_n²."""
        if block.once:
            return total
        return jnp.sum(total**2, axis=len(block.stack))

    def additive(self, block: Block) -> bool:
        """Yes, where it is a sum from the start."""
        return block.once


@dataclasses.dataclass(frozen=True, eq=False)
class ProjectedSquares(Squares):
    """Σ_n (Lᵀ V_n R)², EKFAC's second moments in a given basis: [lead..., I (+1), O].

    Attributes:
        bases: block's name -> (L [lead..., I(+1), I(+1)], R [lead..., O, O]); L is None
            for the identity, where the block's input moment is diagonal.
    """

    bases: Mapping[str, tuple[Array | None, Array]]

    def context(self, block: Block) -> Any:
        """The block's bases."""
        return self.bases[block.name]

    def zero(self, block: Block) -> Array:
        """Zeros like the block's matrix, or per example."""
        require_examples(block, "second moments in an eigenbasis")
        return super().zero(block)

    def of(self, block: Block, rows: Rows, context: Any) -> Array:
        """One use's squares, or its part of Lᵀ V R."""
        left, right = context
        if block.once:
            return rows.projected_squares(left, right)
        each = contract("n...io,...op->n...ip", rows.per_example(), right)
        return each if left is None else contract("n...io,...ij->n...jo", each, left)

    def additive(self, block: Block) -> bool:
        """False: convolutions give the rows of all examples at once."""
        del block
        return False


@dataclasses.dataclass(frozen=True)
class RowFactors(Statistic):
    """X and G themselves, of a block for which `are_cheaper` holds.

    Gives {"x": [stack..., batch..., N, T, I], "g": [stack..., batch..., N, T, O]} of
    the block's one use, or {"index": [stack..., N, T], "g": ...} of lookups, the index
    as a floating number. The bias's coordinate is left to the reader.
    """

    @staticmethod
    def are_cheaper(block: Block) -> bool:
        """Does T² (I + O) < I O hold for its one use, or does it look up?"""
        layered = isinstance(block, LayerBlock) and not block.masked
        if not layered or not block.once:
            return False
        positions = block.uses[0].positions
        size = block.rows + block.outputs
        return block.looks_up or positions**2 * size < block.rows * block.outputs

    @staticmethod
    def are_few(block: Block) -> bool:
        """Does R (I² + O² + I O) < I O (I + O) hold, R = N T, for its one use?"""
        plain = block.once and block.separate and not block.diagonal_inputs
        plain = plain and not block.masked
        if not isinstance(block, LayerBlock) or not plain:
            return False
        i, o, rows = block.rows, block.outputs, block.uses[0].positions
        rows *= block.examples or 1
        return rows * (i * i + o * o + i * o) < i * o * (i + o)

    def zero(self, block: Block) -> dict[str, Array]:
        """Zeros of the shapes above."""
        require_examples(block, "the factors of per-example gradients")
        lead = (*block.lead, block.examples, block.uses[0].positions)

        def zeros(*shape):
            return jnp.zeros((*lead, *shape), block.dtype)

        if block.looks_up:
            return {"index": zeros(), "g": zeros(block.outputs)}
        return {"x": zeros(block.inputs), "g": zeros(block.outputs)}

    def of(self, block: Block, rows: Rows, context: Any) -> dict[str, Array]:
        """The rows of the block's use."""
        del context
        if isinstance(rows, LookupRows):
            return {"index": rows.index.astype(block.dtype), "g": rows.g}
        return {"x": rows.x, "g": rows.g}
