"""Blocks: the parameters that share one matrix, and how to read them as that matrix.

A block holds every use of one parameter (or of one slice of it) and the bias that those
uses add. Its matrix is

    [stack..., batch..., I (+1), O]

where `stack` are the scans over layers that the parameter is sliced by, `batch` its
axes that index separate matrices, and the last row is the bias.
"""

from __future__ import annotations

import abc
import dataclasses
import math
from collections.abc import Sequence

import jax
import jax.numpy as jnp

from natgrad.layers.examples import Path
from natgrad.layers.parts import Part
from natgrad.layers.uses import Mixed, Use
from natgrad.typing import Array

# Kronecker factors are refused that take more than both: bytes, and times what their
# parameters take. A layer with I = O takes 2 times, and one output beside I inputs I.
LARGEST_FACTORS, LARGEST_RATIO = 2**30, 32


@dataclasses.dataclass(frozen=True)
class Block(abc.ABC):
    """Parameters that share one matrix [stack..., batch..., I (+1), O].

    Attributes:
        name: the parameter's path, a slice in brackets; unique among the blocks.
        parameter: the path of the weight, or of the subtree, as `declared` takes it.
        kind: what reads it: dense, conv, embedding, scale, shift, exact or diagonal.
        leaves: indices of its parameters, the weight first and the bias second.
        stack: lengths of the scans over it.
        batch: sizes of its axes that index separate matrices.
        inputs: I, without the bias's coordinate.
        outputs: O.
        dtype: of its statistics: float32, or float64 for a float64 parameter.
        examples: N, or None if no input has an example axis.
        roles: 2 if some uses read the matrix transposed, 1 otherwise.
        diagonal_inputs: whether the input moment is kept as its diagonal [I].
        mixed: why its rows cannot be told apart by example; None if they can.
        once: whether each example's gradient is the work of one use, evaluated once.
        uses: its uses; none where it is declared.
        swapped: paths of the uses that read the matrix transposed.
    """

    name: str
    parameter: str
    kind: str
    leaves: tuple[int, ...]
    stack: tuple[int, ...]
    batch: tuple[int, ...]
    inputs: int
    outputs: int
    dtype: str
    examples: int | None
    roles: int = 1
    diagonal_inputs: bool = False
    mixed: Mixed | None = None
    once: bool = True
    uses: tuple[Use, ...] = ()
    swapped: frozenset[Path] = frozenset()

    @property
    def bias(self) -> bool:
        """Whether the matrix has a last row for a bias."""
        return False

    @property
    def routed(self) -> bool:
        """Whether some use sends each row to one of its matrices."""
        return any(use.routed for use in self.uses)

    @property
    def masked(self) -> bool:
        """Whether its parameter is multiplied entry by entry before it is used."""
        return any(use.masked for use in self.uses)

    @property
    def looks_up(self) -> bool:
        """Whether every use reads whole rows by their index."""
        return bool(self.uses) and all(use.looks_up for use in self.uses)

    @property
    def rows(self) -> int:
        """I, plus one for a bias."""
        return self.inputs + self.bias

    @property
    def lead(self) -> tuple[int, ...]:
        """The axes before the matrix: stack and batch."""
        return (*self.stack, *self.batch)

    @property
    def shape(self) -> tuple[int, ...]:
        """[stack..., batch..., I (+1), O]."""
        return (*self.lead, self.rows, self.outputs)

    @property
    def size(self) -> int:
        """How many entries its parameters have."""
        return math.prod(self.shape)

    @property
    def parameter_bytes(self) -> int:
        """Bytes of its parameters, as its statistics have them."""
        return self.size * jnp.dtype(self.dtype).itemsize

    @property
    def factor_bytes(self) -> int:
        """Bytes of its Kronecker factors."""
        side = self.rows if self.diagonal_inputs else self.rows**2
        entries = side + self.outputs**2
        if self.roles == 2:
            entries += self.rows**2 + self.outputs**2
        return math.prod(self.lead) * entries * jnp.dtype(self.dtype).itemsize

    @property
    def dwarfed(self) -> bool:
        """Whether Kronecker factors of its uses are too large beside it."""
        limit = max(LARGEST_FACTORS, LARGEST_RATIO * self.parameter_bytes)
        return bool(self.uses) and self.factor_bytes > limit

    @property
    def separate(self) -> bool:
        """Whether rows can be told apart by example."""
        return self.mixed is None

    def to_parts(self, leaves: Sequence[Array]) -> list[Array]:
        """The block's matrix in the parts in which it is stored.

        Args:
            leaves: all leaves of a tree like the parameters.

        Returns:
            The weight [lead..., I, O] and, if there is a bias, its row [lead..., 1, O].
        """
        return [self.to_matrix(leaves)]

    def from_parts(
        self, parts: Sequence[Array], leaves: Sequence[Array]
    ) -> list[Array]:
        """Writes parts back into the leaves: undoes `to_parts`.

        Args:
            parts: as `to_parts` gives them.
            leaves: all leaves of a tree like the parameters.

        Returns:
            All leaves, those of this block replaced.
        """
        return self.from_matrix(parts[0], leaves)

    @abc.abstractmethod
    def to_matrix(self, leaves: Sequence[Array]) -> Array:
        """The block's matrix, read from a tree like the parameters.

        Args:
            leaves: all leaves of the tree.

        Returns:
            The matrix [stack..., batch..., I (+1), O].
        """

    @abc.abstractmethod
    def from_matrix(self, matrix: Array, leaves: Sequence[Array]) -> list[Array]:
        """Writes the block's matrix back into the leaves: undoes `to_matrix`.

        Args:
            matrix: [stack..., batch..., I (+1), O].
            leaves: all leaves of a tree like the parameters.

        Returns:
            All leaves, those of this block replaced.
        """


@dataclasses.dataclass(frozen=True)
class LayerBlock(Block):
    """A block whose uses were found and understood.

    Attributes:
        weight: how its parameter is read.
        shift: how its bias is read, or None.
        shifted: paths of the uses that add the bias.
    """

    weight: Part = dataclasses.field(kw_only=True)
    shift: Part | None = None
    shifted: frozenset[Path] = frozenset()

    @property
    def bias(self) -> bool:
        """Whether the matrix has a last row for a bias."""
        return self.shift is not None

    def to_matrix(self, leaves: Sequence[Array]) -> Array:
        """The weight, above the row of the bias, see `Block.to_matrix`."""
        matrix, *row = self.to_parts(leaves)
        if not row:
            return matrix
        return jnp.concatenate([matrix, row[0].astype(matrix.dtype)], axis=-2)

    def from_matrix(self, matrix: Array, leaves: Sequence[Array]) -> list[Array]:
        """Weight from the first I rows, bias from the last, see `Block.from_matrix`."""
        parts = [matrix[..., : self.inputs, :]]
        if self.shift is not None:
            parts.append(matrix[..., self.inputs :, :])
        return self.from_parts(parts, leaves)

    def to_parts(self, leaves: Sequence[Array]) -> list[Array]:
        """The weight and the bias, see `Block.to_parts`."""
        parts = [self.weight.read(leaves[self.weight.leaf])]
        if self.shift is not None:
            parts.append(self.shift.read(leaves[self.shift.leaf]))
        return parts

    def from_parts(
        self, parts: Sequence[Array], leaves: Sequence[Array]
    ) -> list[Array]:
        """All leaves with weight and bias replaced, see `Block.from_parts`."""
        out = list(leaves)
        places = [self.weight] if self.shift is None else [self.weight, self.shift]
        for place, part in zip(places, parts, strict=True):
            out[place.leaf] = place.write(out[place.leaf], part)
        return out


@dataclasses.dataclass(frozen=True)
class DeclaredBlock(Block):
    """Parameters treated as one vector v, whatever reads them.

    Each example's gradient is taken through the whole model. As one exact block the
    matrix is vᵀ [1, P], whose factor of the outputs is the whole block [P, P]; as a
    diagonal it is [P, 1, 1].

    Attributes:
        shapes: of its parameters.
        reason: why it is treated so.
    """

    shapes: tuple[tuple[int, ...], ...] = ()
    reason: str = ""

    def to_matrix(self, leaves: Sequence[Array]) -> Array:
        """The parameters, ravelled one after the other, see `Block.to_matrix`."""
        flat = jnp.concatenate([leaves[i].reshape(-1) for i in self.leaves])
        return flat.reshape(self.shape)

    def from_matrix(self, matrix: Array, leaves: Sequence[Array]) -> list[Array]:
        """The parameters, cut from the ravelled vector, see `Block.from_matrix`."""
        out, flat, first = list(leaves), matrix.reshape(-1), 0
        for leaf, shape in zip(self.leaves, self.shapes, strict=True):
            size = math.prod(shape)
            piece = flat[first : first + size].reshape(shape)
            out[leaf] = piece.astype(out[leaf].dtype)
            first += size
        return out


def memory(size: float) -> str:
    """A number of bytes in words.

    Args:
        size: how many bytes.

    Returns:
        The number with four digits in the unit that suits it, from B to GiB.
    """
    for unit in ("B", "KiB", "MiB"):
        if size < 1024:
            return f"{size:.4g} {unit}"
        size /= 1024
    return f"{size:.4g} GiB"


def statistics_dtype(dtype) -> str:
    """The type in which statistics of a parameter are kept.

    Args:
        dtype: the parameter's type.

    Returns:
        The name of float32, or of float64 where the parameter is float64.
    """
    return str(jnp.promote_types(jax.dtypes.canonicalize_dtype(dtype), jnp.float32))
