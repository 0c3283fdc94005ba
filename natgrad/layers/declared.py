"""Blocks that are not read off uses, and the errors that tell a user to declare one.

A parameter is treated by hand where the user declares it, or where its use was not
understood. A statistic that a block does not allow is an error that names this cure.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence

from natgrad.layers.blocks import (
    Block,
    DeclaredBlock,
    memory,
    statistics_dtype,
)
from natgrad.layers.uses import Mixed
from natgrad.layers.views import NotCapturedError

# The largest parameter that is kept as an exact block when its use was not understood;
# beyond, the diagonal of a vector is kept, and a matrix is an error.
EXACT_UP_TO = 1024


@dataclasses.dataclass(frozen=True)
class DenseBlock:
    """A subtree as one block with a full matrix, from per-example gradients."""


@dataclasses.dataclass(frozen=True)
class DiagonalBlock:
    """A subtree by its diagonal only, from per-example gradients."""


Declared = Mapping[str, DenseBlock | DiagonalBlock]


@dataclasses.dataclass(frozen=True)
class Leaf:
    """A parameter: its index, path, shape and type."""

    index: int
    name: str
    shape: tuple[int, ...]
    dtype: str


def declared_blocks(
    leaves: Sequence[Leaf], declared: Declared, examples: int | None
) -> tuple[list[Block], set[int]]:
    """The blocks that are declared by hand.

    Args:
        leaves: the floating parameters.
        declared: path of a subtree -> how to treat it.
        examples: N, or None.

    Returns:
        The blocks, and the indices of the parameters in them.

    Raises:
        ValueError: a path names no parameter, or names one that another path names.
    """
    blocks: list[Block] = []
    taken: set[int] = set()
    for path, treatment in declared.items():
        inside = [
            leaf
            for leaf in leaves
            if leaf.name == path or leaf.name.startswith(f"{path}/") or not path
        ]
        if not inside:
            names = ", ".join(leaf.name for leaf in leaves)
            raise ValueError(
                f"declared={{{path!r}: ...}} names no parameter; there are: {names}."
            )
        if taken & {leaf.index for leaf in inside}:
            raise ValueError(f"{path!r} is declared twice.")
        taken |= {leaf.index for leaf in inside}
        blocks.append(_by_hand(path, inside, treatment, "declared by hand", examples))
    return blocks, taken


def _by_hand(name, leaves, treatment, reason: str, examples: int | None) -> Block:
    size = sum(math.prod(leaf.shape) for leaf in leaves)
    diagonal = isinstance(treatment, DiagonalBlock)
    return DeclaredBlock(
        name=name or "all",
        parameter=name,
        kind="diagonal" if diagonal else "exact",
        leaves=tuple(leaf.index for leaf in leaves),
        stack=(),
        batch=(size,) if diagonal else (),
        inputs=1,
        outputs=1 if diagonal else size,
        dtype=statistics_dtype(leaves[0].dtype),
        examples=examples,
        mixed=Mixed.NO_EXAMPLES if examples is None else None,
        shapes=tuple(leaf.shape for leaf in leaves),
        reason=reason,
    )


def fallbacks(
    refused: Mapping[Leaf, str], examples: int | None
) -> dict[int, list[Block]]:
    """The blocks of parameters whose uses were not understood.

    Args:
        refused: parameter -> why its uses were not understood.
        examples: N, or None.

    Returns:
        Parameter's index -> its block.

    Raises:
        NotCapturedError: some are too large for an exact block, and not vectors.
    """

    def small(leaf):
        return math.prod(leaf.shape) <= EXACT_UP_TO

    large = [leaf for leaf in refused if len(leaf.shape) >= 2 and not small(leaf)]
    if large:
        each = "; ".join(
            f"{leaf.name!r} of shape {leaf.shape} ({refused[leaf]})" for leaf in large
        )
        raise NotCapturedError(
            "These parameters are used in a way that is not understood, so their "
            f"curvature would be wrong: {each}. Rewrite those uses, or keep their "
            f"diagonals: {declaration([leaf.name for leaf in large], DiagonalBlock)}. "
            "natgrad.layers.DenseBlock() in its place keeps a whole matrix, the number "
            "of parameters squared."
        )
    return {
        leaf.index: [
            _by_hand(
                leaf.name,
                [leaf],
                DenseBlock() if small(leaf) else DiagonalBlock(),
                f"not understood: {reason}",
                examples,
            )
        ]
        for leaf, reason in refused.items()
    }


def declaration(names: Sequence[str], treatment: type) -> str:
    """The argument that declares parameters, to paste into a program.

    Args:
        names: paths of the parameters.
        treatment: `DenseBlock` or `DiagonalBlock`.

    Returns:
        The text "declared={...}".
    """
    each = (f"{name!r}: natgrad.layers.{treatment.__name__}()" for name in names)
    return f"declared={{{', '.join(each)}}}"


def too_large(block: Block) -> str:
    """The message of an error: that the Kronecker factors of a block dwarf it.

    Args:
        block: the block.

    Returns:
        The message, which names the parameter, the sizes and the cure.
    """
    return (
        f"The Kronecker factors of {block.name!r}, {block.shape} as its matrix, would "
        f"take {memory(block.factor_bytes)}, and the parameter takes "
        f"{memory(block.parameter_bytes)}: they have {block.rows} and {block.outputs} "
        f"rows. Keep its diagonal, {declaration([block.parameter], DiagonalBlock)}, or "
        "hold it fixed."
    )


def refusal(block: Block, mixed: Mixed, what: str) -> str:
    """The message of an error: why a statistic of a block cannot be had.

    Args:
        block: the block.
        mixed: why its rows cannot be told apart by example.
        what: the statistic, as the subject of a sentence.

    Returns:
        The message, which names the block, the reason and the cure.
    """
    by_hand = (
        ""
        if mixed is Mixed.NO_EXAMPLES
        else f", or declare the block: {declaration([block.parameter], DenseBlock)}"
    )
    return (
        f"{what} of {block.name!r} need the rows of each example, but {mixed.value}. "
        "Pass inputs with a leading axis of examples (in_axes marks those without), "
        f"compute the layer inside the batch{by_hand}."
    )


def require_examples(block: Block, what: str) -> None:
    """Raises where rows cannot be told apart by example.

    Args:
        block: the block.
        what: the statistic that needs them, as the subject of a sentence.

    Raises:
        ValueError: the rows cannot be told apart; the message names the block, the
            reason and the cure.
    """
    if block.mixed is not None:
        raise ValueError(refusal(block, block.mixed, what))
