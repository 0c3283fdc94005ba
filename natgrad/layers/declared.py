"""Blocks that are not read off uses: declared by hand, or fallen back to."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence

from natgrad.layers.blocks import Block, DeclaredBlock, statistics_dtype
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
    """The blocks declared by hand and the parameters in them."""
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
    """Leaf's index -> its block, for parameters whose uses were not understood.

    Args:
        refused: parameter -> why its uses were not.
        examples: N, or None.

    Raises:
        NotCapturedError: some are too large for an exact block, and not vectors.
    """
    small = lambda leaf: math.prod(leaf.shape) <= EXACT_UP_TO
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
    """The argument that declares these parameters, to paste."""
    each = (f"{name!r}: natgrad.layers.{treatment.__name__}()" for name in names)
    return f"declared={{{', '.join(each)}}}"
