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
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from natgrad import tree
from natgrad.layers.dense import MatrixUse, mask_axes
from natgrad.layers.rows import (
    BATCH,
    EXAMPLE,
    INPUT,
    OUTPUT,
    POSITION,
    Piece,
    Rows,
    pieces_of,
    positions,
)
from natgrad.layers.uses import Scale, Site, require
from natgrad.layers.views import regroup, repeated
from natgrad.typing import Array, ArrayLike


class Window(NamedTuple):
    """Which entries of the signal a patch holds, as `conv_general_dilated` says it."""

    filter_shape: Sequence[int]
    window_strides: Sequence[int]
    padding: Sequence[tuple[int, int]]
    lhs_dilation: Sequence[int]
    rhs_dilation: Sequence[int]


@dataclasses.dataclass(frozen=True)
class ConvUse(MatrixUse):
    """A convolution with the parameter as its kernel.

    Attributes:
        signal: the axes of the signal in the order batch, channels, places.
        window: which entries a patch holds.
        axes: the axes of signal and result that hold the examples; None if none does,
            or not as the slowest digit of its index.
    """

    signal: tuple[int, ...]
    window: Window
    axes: tuple[int, int] | None

    def rows(self, operands: Sequence[Array], scale: Scale, g: Array) -> Rows:
        """X from patches [examples, channels · window, places...], see `Use.rows`."""
        x = operands[0].astype(g.dtype)
        if scale is not None and not self.masked:
            x = x * scale.astype(g.dtype)
        highest = jax.lax.Precision.HIGHEST
        x = jax.lax.conv_general_dilated_patches(
            x.transpose(self.signal), precision=highest, **self.window._asdict()
        )
        return self.arranged(x, scale, g)

    def summed(self, statistic: Callable, operands: Sequence[Array], g: Array) -> Any:
        """Takes chunks of examples: the patches of one chunk exist at a time."""
        if self.axes is None:
            return statistic(self, operands, g)
        signal_axis, result_axis = self.axes
        count = next(p.size for p in self.x_pieces if p.holds == EXAMPLE)
        entries = math.prod(piece.size for piece in self.x_pieces)
        parts = tree.device_parts(count)
        each = count // parts  # of a device, which cuts its own examples
        chunk = max(1, each * (operands[0].size + g.size) // (4 * entries))
        if chunk >= each:
            return statistic(self, operands, g)
        even = max(n for n in range(1, chunk + 1) if each % n == 0)
        chunk = even if 2 * even > chunk else chunk

        def of(first: ArrayLike, number: int) -> Any:
            def cut(array: Array, axis: int) -> Array:
                own = array.shape[axis] // count  # positions of an example
                start, size = first * own, number * own
                return tree.slice_chunk(array, start, size, axis=axis, parts=parts)

            x, g_chunk = cut(operands[0], signal_axis), cut(g, result_axis)
            use = self._of(parts * number)
            return statistic(use, [x, *operands[1:]], g_chunk)

        # Slices, for a scan's own would be a copy of signal and result.
        step = jax.checkpoint(lambda i: of(i * chunk, chunk))

        def add(total: Any, more: Any) -> Any:
            return jax.tree.map(jnp.add, total, more)

        zeros = tree.zeros_of(jax.eval_shape(step, 0))
        total, _ = jax.lax.scan(
            lambda total, i: (add(total, step(i)), None),
            zeros,
            jnp.arange(each // chunk),
        )
        rest = each % chunk
        return add(total, of(each - rest, rest)) if rest else total

    def _of(self, count: int) -> ConvUse:
        """This use for another number of examples."""

        def resized(pieces: Sequence[Piece]) -> tuple[Piece, ...]:
            return tuple(
                dataclasses.replace(p, size=count) if p.holds == EXAMPLE else p
                for p in pieces
            )

        return dataclasses.replace(
            self, x_pieces=resized(self.x_pieces), g_pieces=resized(self.g_pieces)
        )


def match(site: Site) -> ConvUse:
    """Reads a convolution whose kernel is a parameter.

    Args:
        site: the equation, with the parameter as its second operand.

    Returns:
        The use.

    Raises:
        NotUnderstoodError: the parameter is the signal, the convolution groups its
            batch, or the examples are not its batch.
    """
    params = site.params
    require(site.operand == 1, "it is the signal of a convolution, not the kernel")
    require(params["batch_group_count"] == 1, "the convolution groups its batch")
    numbers, groups = params["dimension_numbers"], params["feature_group_count"]
    lhs, rhs, out = numbers.lhs_spec, numbers.rhs_spec, numbers.out_spec
    axes, shape, sizes = site.view.axes, site.shape(0), site.view.shape
    channels, window = axes[rhs[1]], [axes[a] for a in rhs[2:]]
    grouped, filters = regroup(axes[rhs[0]], (groups, sizes[rhs[0]] // groups))
    places = [site.equation.outvars[0].aval.shape[a] for a in out[2:]]

    example = site.example(0)
    # With vmapped signals the examples may be among the channels of the signal.
    require(example is None or example.axis == lhs[0], "examples are not its batch")
    rows = positions(shape[lhs[0]], example, site.size, (0,))
    # Channels of the signal: groups first, then those that one kernel sees.
    group = pieces_of(grouped, BATCH, (1,))
    inputs = pieces_of(channels, INPUT, (1,))
    for axis, atoms in enumerate(window):
        inputs += pieces_of(atoms, INPUT, (2 + axis,))
    spots = [Piece(POSITION, n, (1 + i,)) for i, n in enumerate(places)]
    kernel = [[(atom, INPUT) for atom in atoms] for atoms in axes]
    kernel[rhs[0]] = [(a, BATCH) for a in grouped] + [(a, OUTPUT) for a in filters]

    held = {out[0]: rows, out[1]: group + pieces_of(filters, OUTPUT, (0,))}
    held |= {axis: [spot] for axis, spot in zip(out[2:], spots, strict=True)}
    described = {out[0]: repeated(shape[lhs[0]]), out[1]: (*grouped, *filters)}
    described |= {a: repeated(n) for a, n in zip(out[2:], places, strict=True)}
    order = range(len(out))
    return ConvUse(
        **site.fields(grouped, [*channels, *(a for w in window for a in w)], filters),
        kind="conv",
        result=site.view.with_axes([described[axis] for axis in order]),
        mixed=site.mixture(example is not None),
        positions=math.prod(p.size for p in rows + spots if p.holds == POSITION),
        x_pieces=(*rows, *group, *inputs, *spots),
        g_pieces=tuple(piece for axis in order for piece in held[axis]),
        mask_axes=mask_axes(site, kernel),
        signal=tuple(lhs),
        window=Window(
            filter_shape=tuple(sizes[a] for a in rhs[2:]),
            window_strides=tuple(params["window_strides"]),
            padding=tuple(params["padding"]),
            lhs_dilation=tuple(params["lhs_dilation"]),
            rhs_dilation=tuple(params["rhs_dilation"]),
        ),
        axes=(lhs[0], out[0]) if example is not None and example.outer == 1 else None,
    )
