"""Convolutions: `conv_general_dilated` with the parameter as kernel.

A convolution is a matrix product with patches, z = Σ_{c, k} patch_{c, k} w_{c, k}: the
positions are the output's places, the inputs the channels and offsets of the window.
Groups index separate matrices. Strides, paddings and both dilations (so transposed
convolutions too) only change which entries a patch holds, and JAX extracts those.

Patches hold each entry of the signal as often as windows overlap it (9 times for 3×3
windows without stride). Sums over examples are therefore taken over as many examples at
a time as have patches of a quarter of the size of the batch's signal and result.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from natgrad import tree
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
from natgrad.layers.views import View, regroup, repeated
from natgrad.typing import Array


@dataclasses.dataclass(frozen=True)
class ConvUse(Use):
    """A convolution with the parameter as its kernel.

    Attributes:
        x_pieces, g_pieces: what the axes of the patches and the result hold.
        window: the equation's parameters that say which entries a patch holds.
        axes: the axes of signal and result that hold the examples; None if none does,
            or not as the slowest digit of its index.
        mask_axes: as for `DenseUse`.
    """

    x_pieces: tuple[Piece, ...]
    g_pieces: tuple[Piece, ...]
    window: tuple[tuple[str, object], ...]
    axes: tuple[int, int] | None
    mask_axes: tuple | None = None

    kind: ClassVar[str] = "conv"

    def rows(self, operands: Sequence[Array], scale: Array | None, g: Array) -> Rows:
        """X from patches [examples, channels · window, places...]."""
        window = dict(self.window)
        x = operands[0].astype(g.dtype)
        factor = None if scale is None else scale.astype(g.dtype)
        if factor is not None and self.mask_axes is None:
            x = x * factor
        spec = window.pop("lhs_spec")
        x = jax.lax.conv_general_dilated_patches(
            x.transpose(spec), precision=jax.lax.Precision.HIGHEST, **window
        )
        batch = batch_shape(self.batch)
        x, g = arrange(x, self.x_pieces, batch), arrange(g, self.g_pieces, batch)
        if self.mask_axes is None:
            return Rows(x, g, separate=self.separate)
        mask = as_matrix(factor, self.mask_axes)
        return MaskedRows(x, g, separate=self.separate, mask=mask)

    @property
    def masked(self) -> bool:
        """Is the kernel multiplied entry by entry before?"""
        return self.mask_axes is not None

    def summed(self, statistic: Callable, operands: Sequence[Array], g: Array) -> Any:
        """Over chunks of examples, so that the patches of one chunk exist at a time."""
        if self.axes is None:
            return statistic(self, operands, g)
        count = next(p.size for p in self.x_pieces if p.holds == EXAMPLE)
        entries = math.prod(piece.size for piece in self.x_pieces)
        chunk = max(1, count * (operands[0].size + g.size) // (4 * entries))
        if chunk >= count:
            return statistic(self, operands, g)
        even = max(n for n in range(1, chunk + 1) if count % n == 0)
        chunk = even if 2 * even > chunk else chunk

        def of(first, number):
            def cut(array, axis):
                each = array.shape[axis] // count  # positions of an example
                start, size = first * each, number * each
                return jax.lax.dynamic_slice_in_dim(array, start, size, axis)

            x, here = (cut(operands[0], self.axes[0]), cut(g, self.axes[1]))
            return statistic(self._of(number), [x, *operands[1:]], here)

        # Slices, for a scan's own would be a copy of signal and result.
        step = jax.checkpoint(lambda i: of(i * chunk, chunk))
        add = lambda total, more: jax.tree.map(jnp.add, total, more)
        zeros = tree.zeros_of(jax.eval_shape(step, 0))
        total, _ = jax.lax.scan(
            lambda total, i: (add(total, step(i)), None),
            zeros,
            jnp.arange(count // chunk),
        )
        rest = count % chunk
        return add(total, of(count - rest, rest)) if rest else total

    def _of(self, count: int) -> ConvUse:
        """This use for another number of examples."""
        resized = lambda pieces: tuple(
            dataclasses.replace(p, size=count) if p.holds == EXAMPLE else p
            for p in pieces
        )
        return dataclasses.replace(
            self, x_pieces=resized(self.x_pieces), g_pieces=resized(self.g_pieces)
        )


def match(site: Site) -> ConvUse:
    """Reads a convolution whose kernel is a parameter."""
    params = site.params
    require(site.operand == 1, "it is the signal of a convolution, not the kernel")
    require(params["batch_group_count"] == 1, "the convolution groups its batch")
    numbers, groups = params["dimension_numbers"], params["feature_group_count"]
    lhs, rhs, out = numbers.lhs_spec, numbers.rhs_spec, numbers.out_spec
    axes, shape = site.view.axes, site.shape(0)
    filters, channels, window = axes[rhs[0]], axes[rhs[1]], [axes[a] for a in rhs[2:]]
    sizes = site.view.shape
    grouped, filters = regroup(filters, (groups, sizes[rhs[0]] // groups))
    places = [site.equation.outvars[0].aval.shape[a] for a in out[2:]]

    example = site.example(0)
    rows = positions(shape[lhs[0]], _at(example, lhs[0]), site.size, (0,))
    # Channels of the signal: groups first, then those that one kernel sees; with
    # vmapped signals the examples may be among them, which a kernel must not be.
    require(example is None or example.axis == lhs[0], "examples are not its batch")
    group = pieces_of(grouped, BATCH, (1,))
    inputs = pieces_of(channels, INPUT, (1,))
    for axis, atoms in enumerate(window):
        inputs += pieces_of(atoms, INPUT, (2 + axis,))
    spots = [Piece(POSITION, n, (1 + i,)) for i, n in enumerate(places)]
    outputs = pieces_of(filters, OUTPUT, (0,))

    mask_axes = None
    if site.scaled == "array":
        require(not any(a.repeated for a in site.view.atoms), "it is repeated")
        kernel = [[(atom, INPUT) for atom in atoms] for atoms in axes]
        kernel[rhs[0]] = [(a, BATCH) for a in grouped] + [(a, OUTPUT) for a in filters]
        mask_axes = tuple(map(tuple, kernel))

    held = {out[0]: rows, out[1]: group + outputs}
    held |= {axis: [spot] for axis, spot in zip(out[2:], spots, strict=True)}
    described = {out[0]: repeated(shape[lhs[0]]), out[1]: (*grouped, *filters)}
    described |= {a: repeated(n) for a, n in zip(out[2:], places, strict=True)}
    order = range(len(out))
    return ConvUse(
        site.path,
        site.equation.primitive.name,
        site.operand,
        site.view,
        **ordered(grouped, [*channels, *(a for w in window for a in w)], filters),
        result=View(
            site.view.leaf,
            site.view.start,
            tuple(described[axis] for axis in order),
            site.view.stack,
        ),
        mixed=mixture(site, example),
        positions=math.prod(p.size for p in rows + spots if p.holds == POSITION),
        x_pieces=(*rows, *group, *inputs, *spots),
        g_pieces=tuple(piece for axis in order for piece in held[axis]),
        window=(
            ("lhs_spec", tuple(lhs)),
            ("filter_shape", tuple(sizes[a] for a in rhs[2:])),
            ("window_strides", tuple(params["window_strides"])),
            ("padding", tuple(params["padding"])),
            ("lhs_dilation", tuple(params["lhs_dilation"])),
            ("rhs_dilation", tuple(params["rhs_dilation"])),
        ),
        axes=(lhs[0], out[0]) if example is not None and example.outer == 1 else None,
        mask_axes=mask_axes,
    )


def _at(example: ExampleAxis | None, axis: int) -> ExampleAxis | None:
    return example if example is not None and example.axis == axis else None
