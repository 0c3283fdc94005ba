"""Matrix products: `dot_general` with the parameter on either side.

With axes C contracted, B shared (batch) and F free, z = Σ_C x w. The parameter's C axes
are its inputs, its F axes its outputs and its B axes its batch; the free axes of x are
positions, one of them the examples. A B axis along which the parameter is repeated
holds positions too.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import ClassVar

from natgrad.layers.examples import ExampleAxis
from natgrad.layers.masked import MaskedRows, as_matrix
from natgrad.layers.rows import (
    BATCH,
    EXAMPLE,
    INPUT,
    OUTPUT,
    POSITION,
    Piece,
    Rows,
    arrange,
    batch_shape,
    pieces_of,
    positions,
)
from natgrad.layers.uses import Site, Use, mixture, ordered, require
from natgrad.layers.views import Atom, View, repeated
from natgrad.typing import Array


@dataclasses.dataclass(frozen=True)
class DenseUse(Use):
    """A `dot_general` of the parameter with something else.

    Attributes:
        x_pieces, g_pieces: what the axes of the other operand and the result hold.
        mask_axes: where the parameter is multiplied entry by entry before, the atoms of
            each of its axes and what they hold; None where it is not.
    """

    x_pieces: tuple[Piece, ...]
    g_pieces: tuple[Piece, ...]
    mask_axes: tuple | None = None

    kind: ClassVar[str] = "dense"

    def rows(self, operands: Sequence[Array], scale: Array | None, g: Array) -> Rows:
        """X and G by moving axes."""
        x = operands[1 - self.operand].astype(g.dtype)
        factor = None if scale is None else scale.astype(g.dtype)
        if factor is not None and self.mask_axes is None:
            x = x * factor
        batch = batch_shape(self.batch)
        x, g = arrange(x, self.x_pieces, batch), arrange(g, self.g_pieces, batch)
        if self.mask_axes is None:
            return Rows(x, g, separate=self.separate)
        mask = as_matrix(factor, self.mask_axes)
        return MaskedRows(x, g, separate=self.separate, mask=mask)

    @property
    def masked(self) -> bool:
        """Is the parameter multiplied entry by entry before?"""
        return self.mask_axes is not None


def match(site: Site) -> DenseUse:
    """Reads a `dot_general` whose operand `site.operand` is a parameter."""
    mine, other = site.operand, 1 - site.operand
    contracted, shared = site.params["dimension_numbers"]
    axes, shape = site.view.axes, site.shape(other)
    example = site.example(other)
    # Axis of x -> axis of w that it meets.
    meets = dict(zip(contracted[other], contracted[mine], strict=True))
    beside = dict(zip(shared[other], shared[mine], strict=True))
    free = [axis for axis in range(len(shape)) if axis not in meets | beside]
    kept = [
        axis
        for axis in range(len(axes))
        if axis not in meets.values() and axis not in beside.values()
    ]

    def own(axis: int) -> list[Piece]:
        return positions(shape[axis], _at(example, axis), site.size, (axis,))

    def common(axis: int) -> list[Piece]:
        atoms = axes[beside[axis]]
        if all(atom.repeated for atom in atoms):
            return own(axis)
        require(_at(example, axis) is None, "it holds one matrix an example")
        return pieces_of(atoms, BATCH, (axis,))

    x_pieces: list[Piece] = []
    for axis in range(len(shape)):
        if axis in meets:
            x_pieces += pieces_of(axes[meets[axis]], INPUT, (axis,))
        else:
            x_pieces += common(axis) if axis in beside else own(axis)
    lead = [piece for axis in shared[other] for piece in common(axis)]
    rest = [piece for axis in free for piece in own(axis)]
    columns = [p for axis in kept for p in pieces_of(axes[axis], OUTPUT, (axis,))]
    tail = columns + rest if mine == 0 else rest + columns
    along = next((p for p in rest + lead if p.holds == EXAMPLE), None)

    batch_axes = [axes[beside[axis]] for axis in shared[other]]
    free_axes = [repeated(shape[axis]) for axis in free]
    kept_axes = [axes[axis] for axis in kept]
    mask_axes = None
    if site.scaled == "array":
        atoms = [atom for axis in axes for atom in axis]
        require(not any(a.repeated for a in atoms), "it is repeated and multiplied")
        holds = dict.fromkeys(meets.values(), INPUT) | dict.fromkeys(kept, OUTPUT)
        mask_axes = tuple(
            tuple((atom, holds.get(i, BATCH)) for atom in axis)
            for i, axis in enumerate(axes)
        )
    tail_axes = kept_axes + free_axes if mine == 0 else free_axes + kept_axes
    return DenseUse(
        site.path,
        site.equation.primitive.name,
        mine,
        site.view,
        **ordered(
            _real(batch_axes), _real(axes[a] for a in meets.values()), _real(kept_axes)
        ),
        result=View(
            site.view.leaf,
            site.view.start,
            tuple(batch_axes + tail_axes),
            site.view.stack,
        ),
        mixed=mixture(site, along),
        positions=math.prod(p.size for p in lead + rest if p.holds == POSITION),
        x_pieces=tuple(x_pieces),
        g_pieces=tuple(lead + tail),
        mask_axes=mask_axes,
    )


def _at(example: ExampleAxis | None, axis: int) -> ExampleAxis | None:
    return example if example is not None and example.axis == axis else None


def _real(axes) -> list[Atom]:
    return [atom for axis in axes for atom in axis if not atom.repeated]
