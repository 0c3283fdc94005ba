"""Entry-by-entry uses: a parameter that multiplies (scale) or is added (shift).

Each entry of such a parameter meets one entry of x at every position, so one example's
gradient is v_n = Σ_t x ∘ g (scale) or Σ_t g (shift), a vector. In the language of rows
that is I = 1, x = 1 and g = v_n: the factor of the outputs, Σ_n v_n v_nᵀ, is the exact
block. The last axis of the parameter is O; axes before it index separate blocks.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence
from typing import ClassVar

import jax.numpy as jnp

from natgrad.layers.rows import (
    BATCH,
    OUTPUT,
    Piece,
    Rows,
    arrange,
    batch_shape,
    positions,
)
from natgrad.layers.uses import Site, Use, mixture, ordered, require
from natgrad.layers.views import Atom, View, natural
from natgrad.typing import Array


@dataclasses.dataclass(frozen=True)
class EntrywiseUse(Use):
    """A use of each entry for itself.

    Attributes:
        g_pieces: what the axes of the result hold.
    """

    g_pieces: tuple[Piece, ...]

    @property
    def entrywise(self) -> bool:
        """Does each entry of the parameter work for itself?"""
        return True

    def factor(self, operands: Sequence[Array]) -> Array | float:
        """What each entry of the parameter is multiplied by."""
        raise NotImplementedError

    def rows(self, operands: Sequence[Array], scale: Array | None, g: Array) -> Rows:
        """v_n as the output gradient of an input that is one."""
        g = g * jnp.asarray(self.factor(operands)).astype(g.dtype)
        g = g if scale is None else g * scale.astype(g.dtype)
        g = arrange(g, self.g_pieces, batch_shape(self.batch))
        if self.separate:
            g = jnp.sum(g, axis=-2, keepdims=True)
        return Rows(jnp.ones((*g.shape[:-1], 1), g.dtype), g, separate=self.separate)


@dataclasses.dataclass(frozen=True)
class ScaleUse(EntrywiseUse):
    """w ∘ x, or w / x."""

    kind: ClassVar[str] = "scale"

    def factor(self, operands: Sequence[Array]) -> Array | float:
        """x, or 1/x."""
        other = operands[1 - self.operand]
        return 1.0 / other if self.primitive == "div" else other


@dataclasses.dataclass(frozen=True)
class ShiftUse(EntrywiseUse):
    """w + x, w − x or x − w."""

    kind: ClassVar[str] = "shift"

    def factor(self, operands: Sequence[Array]) -> Array | float:
        """1, or −1 for x − w."""
        del operands
        return -1.0 if self.primitive == "sub" and self.operand == 1 else 1.0


KINDS = {
    "mul": ScaleUse,
    "div": ScaleUse,
    "add": ShiftUse,
    "add_any": ShiftUse,
    "sub": ShiftUse,
}


def match(site: Site) -> EntrywiseUse:
    """Reads an equation that uses each entry of a parameter for itself."""
    name, view = site.equation.primitive.name, site.view
    require(name != "div" or site.operand == 0, "it divides")
    shape = site.equation.outvars[0].aval.shape
    view = described(view, shape)
    example = None if site.examples[-1] is None else site.example(-1)
    inner = natural([a for axis in view.axes for a in axis])[-1:]
    columns = {a for axis in view.axes for a in axis if _within(a, inner)}
    pieces: list[Piece] = []
    for index, atoms in enumerate(view.axes):
        here = example if example and example.axis == index else None
        if all(atom.repeated for atom in atoms):
            pieces += positions(shape[index], here, site.size, (index,))
            continue
        require(here is None, "it holds one entry an example")
        for i, a in enumerate(atoms):
            if a.repeated:
                pieces.append(Piece("T", a.size, (index, i)))
            else:
                holds = OUTPUT if a in columns else BATCH
                pieces.append(Piece(holds, a.size, (a.axis, -abs(a.step)), a.step < 0))
    batch = [a for axis in view.axes for a in axis if a not in columns]
    return KINDS[name](
        site.path,
        name,
        site.operand,
        view,
        **ordered([a for a in batch if not a.repeated], (), list(columns)),
        result=None,
        mixed=mixture(site, example),
        positions=math.prod(p.size for p in pieces if p.holds == "T"),
        g_pieces=tuple(pieces),
    )


def described(view: View, shape: Sequence[int]) -> View:
    """The view at the shape of an entrywise result: scalars and axes of one repeat."""
    return view.broadcast(shape, range(len(view.axes)))


def _within(atom: Atom, outer: Sequence[Atom]) -> bool:
    """Does the atom walk inside the (fused) atom `outer`?"""
    return any(
        atom.axis == o.axis and abs(atom.step) < o.step * o.size and not atom.repeated
        for o in outer
    )
