"""A parameter, or a regular slice of one, read as a stack of matrices."""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from collections.abc import Sequence

from natgrad.layers.uses import require
from natgrad.layers.views import Atom, View, count
from natgrad.typing import Array


@dataclasses.dataclass(frozen=True)
class Part:
    """One parameter, or a regular slice of one, read as matrices.

    Attributes:
        leaf: its index among the leaves of the parameters.
        shape: the parameter's shape.
        start: the first entry read, one index an axis.
        stack: the atoms of each scan over it, outermost first.
        batch, inputs, outputs: atoms of the matrix's axes, in their order.
    """

    leaf: int
    shape: tuple[int, ...]
    start: tuple[int, ...]
    stack: tuple[tuple[Atom, ...], ...]
    batch: tuple[Atom, ...]
    inputs: tuple[Atom, ...]
    outputs: tuple[Atom, ...]

    @classmethod
    def of(cls, view: View, shape: Sequence[int], **groups: tuple[Atom, ...]) -> Part:
        """The part of a parameter that a view reads.

        Args:
            view: how the parameter is seen.
            shape: the parameter's shape.
            **groups: the atoms of `batch`, `inputs` and `outputs`.

        Returns:
            The part.

        Raises:
            NotUnderstoodError: the atoms do not tile a slice of the parameter.
        """
        stack = tuple(atoms for _, atoms in view.stack)
        part = cls(view.leaf, tuple(shape), view.origin(), stack, **groups)
        require(
            all(a.step > 0 and not a.repeated for atoms in stack for a in atoms),
            "it is scanned over in reverse or repeatedly",
        )
        for axis in range(len(shape)):
            walk = part._along(axis)
            nested = all(a.step == b.step * b.size for a, b in itertools.pairwise(walk))
            require(nested, "its entries are not read in a regular order")
        return part

    @functools.cached_property
    def region(self) -> tuple[tuple[int, int, int], ...]:
        """(first, size, stride) of the slice along each axis."""
        walks = [self._along(axis) for axis in range(len(self.shape))]
        return tuple(
            (first, count(walk), walk[-1].step if walk else 1)
            for first, walk in zip(self.start, walks, strict=True)
        )

    @functools.cached_property
    def is_whole(self) -> bool:
        """Is every entry of the parameter read?"""
        return math.prod(size for _, size, _ in self.region) == math.prod(self.shape)

    @functools.cached_property
    def matrix_shape(self) -> tuple[int, ...]:
        """[stack..., batch..., I, O]."""
        return (
            *(count(atoms) for atoms in self.stack),
            *(atom.size for atom in self.batch),
            count(self.inputs),
            count(self.outputs),
        )

    def disjoint(self, other: Part) -> bool:
        """Whether two slices of one parameter share no entry.

        Args:
            other: another part of the same parameter.

        Returns:
            True where it is certain.
        """
        for (a, n, s), (b, m, t) in zip(self.region, other.region, strict=True):
            if a + s * (n - 1) < b or b + t * (m - 1) < a:
                return True
            if s == t and (a - b) % s:
                return True
        return False

    def read(self, array: Array) -> Array:
        """Reads the slice of a parameter as matrices.

        Args:
            array: an array shaped like the parameter.

        Returns:
            The slice as [stack..., batch..., I, O].
        """
        digits, order = self._digits
        sliced = array if self.is_whole else array[self._slices()]
        moved = sliced.reshape([a.size for a in digits]).transpose(order)
        return moved.reshape(self.matrix_shape)

    def write(self, array: Array, matrix: Array) -> Array:
        """Writes matrices into the slice of a parameter: undoes `read`.

        Args:
            array: an array shaped like the parameter.
            matrix: [stack..., batch..., I, O].

        Returns:
            The array with its slice replaced.
        """
        digits, order = self._digits
        inverse = sorted(range(len(order)), key=order.__getitem__)
        moved = matrix.reshape([digits[i].size for i in order]).transpose(inverse)
        sliced = moved.reshape([size for _, size, _ in self.region])
        sliced = sliced.astype(array.dtype)
        return sliced if self.is_whole else array.at[self._slices()].set(sliced)

    def _groups(self) -> list[Atom]:
        stacked = [atom for atoms in self.stack for atom in atoms]
        return [*stacked, *self.batch, *self.inputs, *self.outputs]

    def _along(self, axis: int) -> list[Atom]:
        walk = [atom for atom in self._groups() if atom.axis == axis]
        return sorted(walk, key=lambda atom: -atom.step)

    @functools.cached_property
    def _digits(self) -> tuple[list[Atom], list[int]]:
        digits = [a for axis in range(len(self.shape)) for a in self._along(axis)]
        return digits, [digits.index(atom) for atom in self._groups()]

    def _slices(self) -> tuple[slice, ...]:
        return tuple(slice(a, a + s * (n - 1) + 1, s) for a, n, s in self.region)
