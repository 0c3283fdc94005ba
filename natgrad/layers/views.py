"""Where every entry of a value came from: a parameter, seen through structural ops.

A `View` describes an array all of whose entries are entries of one parameter. Each of
its axes is a product of *atoms*: Atom(axis, step, size) walks the parameter's `axis`
with stride `step`; an atom with axis −1 repeats its entries (a broadcast). So

    view[i_1, i_2, ...] = parameter[start + Σ_atoms step · digit]

where the digits of an atom's place within i_k are those of a mixed-radix number.
Transposing, reshaping, slicing, reversing and broadcasting map views to views, and two
views can be compared, put in a natural order, or turned into a matrix.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

import numpy as np

from natgrad.layers.jaxprs import Equation

REPEATED = -1


class NotCapturedError(ValueError):
    """A parameter whose uses do not account for its gradient, or are not understood."""


class NotUnderstoodError(Exception):
    """A structural op that a `View` cannot follow."""


@dataclasses.dataclass(frozen=True, order=True)
class Atom:
    """`size` entries of the parameter's `axis`, `step` apart; axis −1 repeats one."""

    axis: int
    step: int
    size: int

    @property
    def repeated(self) -> bool:
        """Does walking the atom stay on the same entry?"""
        return self.axis == REPEATED

    def split(self, inner: int) -> tuple[Atom, Atom]:
        """The same walk as an outer atom and an inner one of `inner` entries."""
        outer = Atom(self.axis, self.step * inner, self.size // inner)
        return outer, Atom(self.axis, self.step, inner)


def repeated(size: int) -> tuple[Atom, ...]:
    """The atoms of a broadcast axis; an axis of size one has none."""
    return (Atom(REPEATED, 0, size),) if size != 1 else ()


def count(atoms: Sequence[Atom]) -> int:
    """How many entries some atoms walk together."""
    return math.prod(atom.size for atom in atoms)


def regroup(atoms: Sequence[Atom], sizes: Sequence[int]) -> list[tuple[Atom, ...]]:
    """Cuts atoms into groups, as a reshape does.

    Args:
        atoms: the atoms of the axes, slowest first.
        sizes: the sizes of the new axes.

    Returns:
        The atoms of each new axis, in the same order.

    Raises:
        NotUnderstoodError: a new axis cuts across the atoms.
    """
    pending, groups = list(atoms), []
    for size in sizes:
        group: list[Atom] = []
        while size > 1:
            if not pending:
                raise NotUnderstoodError("reshape of another size")
            atom = pending.pop(0)
            if size % atom.size == 0:
                size //= atom.size
            elif atom.size % size == 0:
                atom, rest = atom.split(atom.size // size)
                pending.insert(0, rest)
                size = 1
            else:
                raise NotUnderstoodError("reshape that cuts across axes")
            group.append(atom)
        groups.append(tuple(group))
    return groups


def fused(atoms: Sequence[Atom]) -> tuple[Atom, ...]:
    """Joins neighbouring atoms that continue one another."""
    joined: list[Atom] = []
    for atom in atoms:
        last = joined[-1] if joined else None
        if last and last.axis == atom.axis and last.step == atom.step * atom.size:
            joined[-1] = Atom(atom.axis, atom.step, last.size * atom.size)
        else:
            joined.append(atom)
    return tuple(joined)


def natural(atoms: Sequence[Atom]) -> tuple[Atom, ...]:
    """The atoms that are not repeated as stored: row-major, forwards, fused."""
    forwards = [Atom(a.axis, abs(a.step), a.size) for a in atoms if not a.repeated]
    return fused(sorted(forwards, key=lambda a: (a.axis, -a.step)))


@dataclasses.dataclass(frozen=True)
class View:
    """Parameter `leaf` seen through structural ops.

    Attributes:
        leaf: index of the parameter among the leaves of the parameter tree.
        start: where the walk begins, one entry an axis of the parameter.
        axes: the atoms of each axis of the viewed array.
        stack: scans through which the parameter came in slice by slice, outermost
            first: (path of the scan, atoms walked by its steps).
    """

    leaf: int
    start: tuple[int, ...]
    axes: tuple[tuple[Atom, ...], ...]
    stack: tuple[tuple[tuple[int, ...], tuple[Atom, ...]], ...] = ()

    @classmethod
    def whole(cls, leaf: int, shape: Sequence[int]) -> View:
        """The view of the whole of parameter `leaf`, whose shape is given."""
        axes = [(Atom(axis, 1, n),) if n != 1 else () for axis, n in enumerate(shape)]
        return cls(leaf, (0,) * len(shape), tuple(axes))

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the viewed array."""
        return tuple(count(axis) for axis in self.axes)

    @property
    def atoms(self) -> tuple[Atom, ...]:
        """The atoms of all axes, those of the stack first."""
        stacked = [atom for _, atoms in self.stack for atom in atoms]
        return (*stacked, *(atom for axis in self.axes for atom in axis))

    def with_axes(
        self, axes: Sequence[tuple[Atom, ...]], start: Sequence[int] | None = None
    ) -> View:
        """A view of the same parameter with other axes, and perhaps another start."""
        start = self.start if start is None else tuple(start)
        return dataclasses.replace(self, axes=tuple(axes), start=start)

    def transpose(self, permutation: Sequence[int]) -> View:
        """The view after `lax.transpose` by this permutation."""
        return self.with_axes([self.axes[axis] for axis in permutation])

    def reshape(self, sizes: Sequence[int]) -> View:
        """The view after `lax.reshape` to these sizes.

        Raises:
            NotUnderstoodError: a new axis cuts across the atoms.
        """
        return self.with_axes(regroup([a for axis in self.axes for a in axis], sizes))

    def squeeze(self, axes: Sequence[int]) -> View:
        """The view after `lax.squeeze` of these axes."""
        drop = {axis % len(self.axes) for axis in axes}
        return self.with_axes([a for i, a in enumerate(self.axes) if i not in drop])

    def expand(self, axes: Sequence[int]) -> View:
        """The view after `lax.expand_dims` at these axes."""
        view, rank = list(self.axes), len(self.axes) + len(axes)
        for axis in sorted(axis % rank for axis in axes):
            view.insert(axis, ())
        return self.with_axes(view)

    def broadcast(self, shape: Sequence[int], dimensions: Sequence[int]) -> View:
        """The view after `lax.broadcast_in_dim`; new axes repeat their entries."""
        axes = [repeated(size) for size in shape]
        for axis, dimension in zip(self.axes, dimensions, strict=True):
            if count(axis) == shape[dimension]:
                axes[dimension] = axis
        return self.with_axes(axes)

    def reverse(self, axes: Sequence[int]) -> View:
        """The view after `lax.rev` of these axes."""
        view, start = list(self.axes), list(self.start)
        for axis in axes:
            for atom in view[axis]:
                if not atom.repeated:
                    start[atom.axis] += atom.step * (atom.size - 1)
            view[axis] = tuple(Atom(a.axis, -a.step, a.size) for a in view[axis])
        return self.with_axes(view, start)

    def slice(self, axis: int, first: int, size: int, stride: int = 1) -> View:
        """The view of `size` entries of one axis from `first` on, `stride` apart.

        Raises:
            NotUnderstoodError: the slice cuts across axes that were merged.
        """
        atoms, start = self.axes[axis], list(self.start)
        if (first, size, stride) == (0, count(atoms), 1):
            return self
        outer, inner = atoms[:1], count(atoms[1:])
        if not outer or first % inner or (inner > 1 and (size % inner or stride != 1)):
            raise NotUnderstoodError("slice that cuts across merged axes")
        (atom,) = outer
        if not atom.repeated:
            start[atom.axis] += atom.step * (first // inner)
        step, size = atom.step * stride, size // inner if inner > 1 else size
        kept = (Atom(atom.axis, step, size),) if size != 1 else ()
        return self.with_axes(
            [*self.axes[:axis], kept + atoms[1:], *self.axes[axis + 1 :]], start
        )

    def scanned(self, path: tuple[int, ...]) -> View:
        """The view of one step of a scan over the first axis, noted in `stack`."""
        stack = (*self.stack, (path, self.axes[0]))
        return dataclasses.replace(self, axes=self.axes[1:], stack=stack)

    def origin(self) -> tuple[int, ...]:
        """The first entry of the walk once every atom goes forwards."""
        start = list(self.start)
        for atom in self.atoms:
            if not atom.repeated and atom.step < 0:
                start[atom.axis] += atom.step * (atom.size - 1)
        return tuple(start)


def follow(
    equation: Equation, view: View, operand: int
) -> Sequence[View | None] | None:
    """The views of an equation's results, where it is a structural op.

    Args:
        equation: the equation.
        view: how the parameter is seen in one of its operands.
        operand: which operand that is.

    Returns:
        One view a result, None for a result without the parameter; None if the equation
        is not a structural op.

    Raises:
        NotUnderstoodError: the op cuts across the view's axes, or makes it complex.
    """
    params, name = equation.params, equation.primitive.name
    if name in IDENTITIES or name == "complex":
        if np.issubdtype(equation.outvars[0].aval.dtype, np.complexfloating):
            raise NotUnderstoodError(
                "its Kronecker factors would be complex; use Gram, Dense or MatrixFree"
            )
        return [view]
    if name == "optimization_barrier":
        return [view if i == operand else None for i in range(len(equation.outvars))]
    if name == "transpose":
        return [view.transpose(params["permutation"])]
    if name == "reshape":
        order = params.get("dimensions")
        moved = view if order is None else view.transpose(order)
        return [moved.reshape(params["new_sizes"])]
    if name == "squeeze":
        return [view.squeeze(params["dimensions"])]
    if name == "expand_dims":
        return [view.expand(params["dimensions"])]
    if name == "broadcast_in_dim":
        return [view.broadcast(params["shape"], params["broadcast_dimensions"])]
    if name == "rev":
        return [view.reverse(params["dimensions"])]
    if name == "slice":
        strides = params["strides"] or (1,) * len(view.axes)
        starts, shape = params["start_indices"], equation.outvars[0].aval.shape
        for axis, (first, stride) in enumerate(zip(starts, strides, strict=True)):
            view = view.slice(axis, first, shape[axis], stride)
        return [view]
    if name == "split":
        axis, sizes = params["axis"], [int(size) for size in params["sizes"]]
        firsts = [sum(sizes[:i]) for i in range(len(sizes))]
        return [view.slice(axis, a, n) for a, n in zip(firsts, sizes, strict=True)]
    if name == "unstack":
        axis, size = params["axis"], len(equation.outvars)
        return [view.slice(axis, i, 1).squeeze([axis]) for i in range(size)]
    return None


# Primitives whose result is their operand, perhaps rounded, placed or named.
_ROUNDED = ("convert_element_type", "copy", "copy_p", "reduce_precision")
_PLACED = ("sharding_constraint", "pvary", "pcast", "mesh_cast", "reshard")
IDENTITIES = frozenset({*_ROUNDED, *_PLACED, "name"})
