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
    """

    x_pieces: tuple[Piece, ...]
    g_pieces: tuple[Piece, ...]

    kind: ClassVar[str] = "dense"

    def rows(self, operands: Sequence[Array], scale: Array | None, g: Array) -> Rows:
        """X and G by moving axes."""
        x = operands[1 - self.operand].astype(g.dtype)
        x = x if scale is None else x * scale.astype(g.dtype)
        batch = batch_shape(self.batch)
        x, g = arrange(x, self.x_pieces, batch), arrange(g, self.g_pieces, batch)
        return Rows(x, g, separate=self.separate)


def match(site: Site) -> DenseUse:
    """Reads a `dot_general` whose operand `site.operand` is a parameter."""
    require(site.scaled != "array", "it is multiplied entry by entry before the dot")
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
    )


def _at(example: ExampleAxis | None, axis: int) -> ExampleAxis | None:
    return example if example is not None and example.axis == axis else None


def _real(axes) -> list[Atom]:
    return [atom for axis in axes for atom in axis if not atom.repeated]
