"""Matrix products: `dot_general` with the parameter on either side.

With axes C contracted, B shared (batch) and F free, z = Σ_C x w. The parameter's C axes
are its inputs, its F axes its outputs and its B axes its batch; the free axes of x are
positions, one of them the examples. A B axis along which the parameter is repeated
holds positions too.

Where the parameter W is multiplied entry by entry before it is used, by an M without
examples (a mask, one over a norm that is held fixed, another parameter),

    z = (M ∘ W)ᵀ x,     V_n = M ∘ Σ_t x gᵀ.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Iterable, Sequence

import jax.numpy as jnp
from jaxtyping import Float

from natgrad.layers.rows import (
    BATCH,
    EXAMPLE,
    INPUT,
    OUTPUT,
    POSITION,
    Piece,
    Rows,
    arrange,
    contract,
    pieces_of,
    positions,
)
from natgrad.layers.uses import Scale, Site, Use, require
from natgrad.layers.views import Atom, View, natural, repeated
from natgrad.typing import Array


@dataclasses.dataclass(frozen=True)
class MaskedRows(Rows):
    """Rows of a weight that is multiplied entry by entry before: V = M ∘ Σ x gᵀ.

    Attributes:
        mask: M, [batch..., I, O].
    """

    mask: Float[Array, "*batch I O"] = dataclasses.field(kw_only=True)

    def whole_mask(self) -> Float[Array, "*batch i O"]:
        """M, with ones for the bias's row."""
        if self.bias is None:
            return self.mask
        one = jnp.ones_like(self.mask[..., :1, :])
        return jnp.concatenate([self.mask, one], axis=-2)

    def gradient(self) -> Float[Array, "*batch i O"]:
        """M ∘ Σ x gᵀ, with the bias's row."""
        return self.whole_mask() * super().gradient()

    def per_example(self) -> Float[Array, "N *batch i O"]:
        """V_n, the gradient of every example."""
        return self.whole_mask()[None] * super().per_example()

    def squares(self) -> Float[Array, "*batch i O"]:
        """Σ_n V_n², entry by entry."""
        if self.x.shape[-2] > 1:
            return jnp.sum(self.per_example() ** 2, axis=0)
        squared = Rows(self.x**2, self.g**2, self.bias).gradient()
        return self.whole_mask() ** 2 * squared

    def projected_squares(
        self, left: Float[Array, "*batch i j"] | None, right: Float[Array, "*batch O o"]
    ) -> Float[Array, "*batch j o"]:
        """Σ_n (Lᵀ V_n R)², from the gradient of every example."""
        turned = contract("...io,...op->...ip", self.per_example(), right[None])
        if left is not None:
            turned = contract("...io,...ij->...jo", turned, left[None])
        return jnp.sum(turned**2, axis=0)


# The atoms of each axis of an array, each with what it holds: B, I or O.
MaskAxes = tuple[tuple[tuple[Atom, str], ...], ...]


def mask_axes(
    site: Site, axes: Iterable[Iterable[tuple[Atom, str]]]
) -> MaskAxes | None:
    """How an array that a parameter is multiplied by is read as its matrix.

    Args:
        site: the use of the product.
        axes: the atoms of each axis of the parameter and what they hold.

    Returns:
        The axes; None where nothing is multiplied entry by entry.

    Raises:
        NotUnderstoodError: entries of the parameter are repeated.
    """
    if site.scaled != "array":
        return None
    repeats = any(atom.repeated for atom in site.view.atoms)
    require(not repeats, "it is repeated and multiplied")
    return tuple(tuple(axis) for axis in axes)


def as_matrix(
    array: Float[Array, "*shape"], axes: Sequence[Sequence[tuple[Atom, str]]]
) -> Float[Array, "*batch I O"]:
    """An array of the shape of a view, as a matrix in the parameter's own order.

    Args:
        array: the array.
        axes: the atoms of each of its axes, each with what it holds: B, I or O.

    Returns:
        The array as [batch..., I, O].
    """
    pieces = [pair for axis in axes for pair in axis]
    array = array.reshape([atom.size for atom, _ in pieces])
    flips = [i for i, (atom, _) in enumerate(pieces) if atom.step < 0]
    array = jnp.flip(array, flips) if flips else array

    def place(i: int) -> tuple[int, int]:
        return pieces[i][0].axis, -abs(pieces[i][0].step)

    groups = [
        sorted((i for i, pair in enumerate(pieces) if pair[1] == holds), key=place)
        for holds in (BATCH, INPUT, OUTPUT)
    ]
    batch = [atom.size for atom in natural([pieces[i][0] for i in groups[0]])]
    sizes = [math.prod(pieces[i][0].size for i in group) for group in groups[1:]]
    order = [i for group in groups for i in group]
    return array.transpose(order).reshape((*batch, *sizes))


@dataclasses.dataclass(frozen=True)
class MatrixUse(Use):
    """A use that is a product of matrices once axes are moved.

    Attributes:
        x_pieces, g_pieces: what the axes of the other operand and the result hold.
        mask_axes: where the parameter is multiplied entry by entry before, how the
            factor is read as a matrix; None where it is not.
    """

    result: View
    x_pieces: tuple[Piece, ...]
    g_pieces: tuple[Piece, ...]
    mask_axes: MaskAxes | None

    @property
    def masked(self) -> bool:
        """Is the parameter multiplied entry by entry before?"""
        return self.mask_axes is not None

    def arranged(self, x: Array, scale: Array | None, g: Array) -> Rows:
        """The rows, which hold the scale as a mask where it is an array.

        Args:
            x: the other operand, or patches of it.
            scale: what the parameter was multiplied by, or None.
            g: the gradient of the result.

        Returns:
            X and G with their axes moved.
        """
        batch = [atom.size for atom in self.batch]
        x, g = arrange(x, self.x_pieces, batch), arrange(g, self.g_pieces, batch)
        if self.mask_axes is not None and scale is not None:
            mask = as_matrix(scale.astype(g.dtype), self.mask_axes)
            return MaskedRows(x, g, separate=self.separate, mask=mask)
        return Rows(x, g, separate=self.separate)


@dataclasses.dataclass(frozen=True)
class DenseUse(MatrixUse):
    """A `dot_general` of the parameter with something else."""

    def rows(self, operands: Sequence[Array], scale: Scale, g: Array) -> Rows:
        """X and G by moving axes, see `Use.rows`."""
        x = operands[1 - self.operand].astype(g.dtype)
        if scale is not None and not self.masked:
            x = x * scale.astype(g.dtype)
        return self.arranged(x, scale, g)


def met_axes(site: Site) -> tuple[dict[int, int], dict[int, int], list[int]]:
    """How the axes of a parameter meet those of the other operand of a `dot_general`.

    Args:
        site: the equation.

    Returns:
        Axis of the other operand -> axis of the parameter that it is contracted with;
        the same for batch axes; and the axes of the parameter that are left.
    """
    own, other = site.operand, 1 - site.operand
    contracted, shared = site.params["dimension_numbers"]
    meets = dict(zip(contracted[other], contracted[own], strict=True))
    beside = dict(zip(shared[other], shared[own], strict=True))
    met = {*meets.values(), *beside.values()}
    return meets, beside, [a for a in range(len(site.view.axes)) if a not in met]


def match(site: Site) -> DenseUse:
    """Reads a `dot_general` one of whose operands is a parameter.

    Args:
        site: the equation, with the parameter as operand `site.operand`.

    Returns:
        The use.

    Raises:
        NotUnderstoodError: the parameter holds one matrix for every example, or is
            repeated and multiplied entry by entry.
    """
    own, other = site.operand, 1 - site.operand
    axes, shape, shared = (
        site.view.axes,
        site.shape(other),
        site.params["dimension_numbers"][1][other],
    )
    meets, beside, columns = met_axes(site)
    free = [axis for axis in range(len(shape)) if axis not in meets | beside]

    def places(axis: int) -> list[Piece]:
        example = site.example_along(other, axis)
        return positions(shape[axis], example, site.size, (axis,))

    def common(axis: int) -> list[Piece]:
        atoms = axes[beside[axis]]
        if all(atom.repeated for atom in atoms):
            return places(axis)
        alike = site.example_along(other, axis) is None
        require(alike, "it holds one matrix an example")
        return pieces_of(atoms, BATCH, (axis,))

    x_pieces: list[Piece] = []
    for axis in range(len(shape)):
        if axis in meets:
            x_pieces += pieces_of(axes[meets[axis]], INPUT, (axis,))
        else:
            x_pieces += common(axis) if axis in beside else places(axis)
    lead = [piece for axis in shared for piece in common(axis)]
    rest = [piece for axis in free for piece in places(axis)]
    out = [p for axis in columns for p in pieces_of(axes[axis], OUTPUT, (axis,))]

    batch_axes = [axes[beside[axis]] for axis in shared]
    free_axes = [repeated(shape[axis]) for axis in free]
    inputs, column_axes = [axes[a] for a in meets.values()], [axes[a] for a in columns]
    holds = dict.fromkeys(meets.values(), INPUT) | dict.fromkeys(columns, OUTPUT)
    held = [[(a, holds.get(i, BATCH)) for a in atoms] for i, atoms in enumerate(axes)]
    tail = column_axes + free_axes if own == 0 else free_axes + column_axes
    return DenseUse(
        **site.fields(_real(batch_axes), _real(inputs), _real(column_axes)),
        kind="dense",
        result=site.view.with_axes(batch_axes + tail),
        mixed=site.mixture(any(p.holds == EXAMPLE for p in rest + lead)),
        positions=math.prod(p.size for p in lead + rest if p.holds == POSITION),
        x_pieces=tuple(x_pieces),
        g_pieces=(*lead, *(out + rest if own == 0 else rest + out)),
        mask_axes=mask_axes(site, held),
    )


def _real(axes: Iterable[Sequence[Atom]]) -> list[Atom]:
    """The atoms that walk entries of the parameter."""
    return [atom for axis in axes for atom in axis if not atom.repeated]
