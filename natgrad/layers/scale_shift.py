"""Entry-by-entry uses: a parameter that multiplies (scale) or is added (shift).

Each entry of such a parameter meets one entry of x at every position, so one example's
gradient is v_n = Σ_t x ∘ g (scale) or Σ_t g (shift), a vector. In the language of rows
that is I = 1, x = 1 and g = v_n: the factor of the outputs, Σ_n v_n v_nᵀ, is the exact
block. The last axis of the parameter is O; axes before it index separate blocks.
"""

from __future__ import annotations

import abc
import dataclasses
import math
from collections.abc import Sequence

import jax.numpy as jnp

from natgrad.layers.rows import (
    BATCH,
    OUTPUT,
    POSITION,
    Piece,
    Rows,
    arrange,
    positions,
)
from natgrad.layers.uses import Scale, Site, Use, require
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

    @abc.abstractmethod
    def factor(self, operands: Sequence[Array]) -> Array | float:
        """What each entry of the parameter is multiplied by.

        Args:
            operands: both operands of the equation.

        Returns:
            One number, or an array that broadcasts to the result.
        """

    def rows(self, operands: Sequence[Array], scale: Scale, g: Array) -> Rows:
        """v_n as the output gradient of an input that is one, see `Use.rows`."""
        g = g * jnp.asarray(self.factor(operands)).astype(g.dtype)
        g = g if scale is None else g * scale.astype(g.dtype)
        g = arrange(g, self.g_pieces, [atom.size for atom in self.batch])
        if self.separate:
            g = jnp.sum(g, axis=-2, keepdims=True)
        return Rows(jnp.ones((*g.shape[:-1], 1), g.dtype), g, separate=self.separate)


@dataclasses.dataclass(frozen=True)
class ScaleUse(EntrywiseUse):
    """w ∘ x, or w / x."""

    def factor(self, operands: Sequence[Array]) -> Array | float:
        """x, or 1/x where the parameter is divided."""
        other = operands[1 - self.operand]
        return 1.0 / other if self.primitive == "div" else other


@dataclasses.dataclass(frozen=True)
class ShiftUse(EntrywiseUse):
    """w + x, w − x or x − w."""

    def factor(self, operands: Sequence[Array]) -> Array | float:
        """1, or −1 where the parameter is subtracted."""
        del operands
        return -1.0 if self.primitive == "sub" and self.operand == 1 else 1.0


# The primitive -> the kind of layer, and its use.
KINDS: dict[str, tuple[str, type[EntrywiseUse]]] = {
    "mul": ("scale", ScaleUse),
    "div": ("scale", ScaleUse),
    "add": ("shift", ShiftUse),
    "add_any": ("shift", ShiftUse),
    "sub": ("shift", ShiftUse),
}


def match(site: Site) -> EntrywiseUse:
    """Reads an equation that uses each entry of a parameter for itself.

    Args:
        site: a sum, a difference, a product or a quotient, with the parameter.

    Returns:
        The use.

    Raises:
        NotUnderstoodError: the parameter divides, or holds one entry for every example.
    """
    name = site.equation.primitive.name
    require(name != "div" or site.operand == 0, "it divides")
    shape = site.equation.outvars[0].aval.shape
    view = described(site.view, shape)
    site = dataclasses.replace(site, view=view)
    example = None if site.examples[-1] is None else site.example(-1)
    atoms = [a for axis in view.axes for a in axis]
    inner = natural(atoms)[-1:]
    columns = {a for a in atoms if _within(a, inner)}
    pieces: list[Piece] = []
    for index, axis in enumerate(view.axes):
        along = example if example and example.axis == index else None
        if all(atom.repeated for atom in axis):
            pieces += positions(shape[index], along, site.size, (index,))
            continue
        require(along is None, "it holds one entry an example")
        for i, a in enumerate(axis):
            if a.repeated:
                pieces.append(Piece(POSITION, a.size, (index, i)))
            else:
                holds = OUTPUT if a in columns else BATCH
                pieces.append(Piece(holds, a.size, (a.axis, -abs(a.step)), a.step < 0))
    batch = [a for a in atoms if a not in columns and not a.repeated]
    kind, use = KINDS[name]
    return use(
        **site.fields(batch, (), list(columns)),
        kind=kind,
        result=None,
        mixed=site.mixture(example is not None),
        positions=math.prod(p.size for p in pieces if p.holds == POSITION),
        g_pieces=tuple(pieces),
    )


def described(view: View, shape: Sequence[int]) -> View:
    """The view of an operand, broadcast to the result of an entrywise op.

    Args:
        view: how the parameter is seen, an axis of size one where it is repeated.
        shape: the shape of the result.

    Returns:
        A view of that shape.
    """
    return view.broadcast(shape, range(len(view.axes)))


def _within(atom: Atom, outer: Sequence[Atom]) -> bool:
    """Does the atom walk inside one of the (fused) atoms `outer`?"""
    return any(
        atom.axis == o.axis and abs(atom.step) < o.step * o.size and not atom.repeated
        for o in outer
    )
