"""What a statistic requires of a block, and the errors where a block has it not."""

from __future__ import annotations

import jax.numpy as jnp

from natgrad.layers.blocks import Block, LayerBlock, memory
from natgrad.layers.declared import DenseBlock, DiagonalBlock, declaration
from natgrad.layers.uses import Mixed
from natgrad.model.errors import DoesNotFitError

# Kronecker factors are refused that take more than both: bytes, and times what their
# parameters take. A layer with I = O takes 2 times, and one output beside I inputs I.
LARGEST_FACTORS, LARGEST_RATIO = 2**30, 32


def require_memory(block: Block) -> None:
    """Raises, before anything is allocated, where factors dwarf their parameters.

    Raises:
        DoesNotFitError: naming the parameter, the sizes and the cure.
    """
    own = block.size * jnp.dtype(block.dtype).itemsize
    size = block.factor_bytes
    layered = isinstance(block, LayerBlock)
    if layered and size > LARGEST_FACTORS and size > LARGEST_RATIO * own:
        raise DoesNotFitError(
            f"The Kronecker factors of {block.name!r}, {block.shape} as its matrix, "
            f"would take {memory(size)}, and the parameter takes {memory(own)}: they "
            f"have {block.rows} and {block.outputs} rows. Keep its diagonal, "
            f"{declaration([block.parameter], DiagonalBlock)}, or hold it fixed."
        )


def refusal(block: Block, what: str) -> str:
    """Why a statistic cannot be had."""
    by_hand = (
        ""
        if block.mixed is Mixed.NO_EXAMPLES
        else f", or declare the block: {declaration([block.parameter], DenseBlock)}"
    )
    return (
        f"{what} of {block.name!r} need the rows of each example, but "
        f"{block.mixed.value}. Pass inputs with a leading axis of examples (in_axes "
        f"marks those without), compute the layer inside the batch{by_hand}."
    )


def require_examples(block: Block, what: str) -> None:
    """Raises where rows cannot be told apart by example.

    Raises:
        ValueError: naming the block, the reason and the cure.
    """
    if not block.separate:
        raise ValueError(refusal(block, what))
