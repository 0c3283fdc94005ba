"""Arrays that would be concatenated, and what they become in an equation.

A rule takes an equation and its operands, some of which are `Pieces`, and returns the
results as pieces, or None where it needs the whole arrays.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp
from jax import lax

from natgrad.layers.jaxprs import JOINS, Equation
from natgrad.typing import Array


@dataclasses.dataclass(frozen=True)
class Pieces:
    """Arrays that would be concatenated.

    Attributes:
        axis: along which.
        parts: the arrays.
    """

    axis: int
    parts: tuple[Array, ...]

    @property
    def sizes(self) -> list[int]:
        """Of the parts, along the axis."""
        return [part.shape[self.axis] for part in self.parts]

    def each(self, function: Callable[[Array], Array], axis: int) -> Pieces:
        """The pieces of a function's value, along an axis of it."""
        return Pieces(axis, tuple(map(function, self.parts)))


def whole(value: Any) -> Array:
    """A value as an array.

    Args:
        value: an array, or pieces.
    """
    if isinstance(value, Pieces):
        return lax.concatenate(value.parts, value.axis)
    return value


def joined(equation: Equation, values: Sequence[Array]) -> Pieces:
    """What a concatenation or a stack joins.

    Args:
        equation: one of `JOINS`.
        values: of its operands.
    """
    axis = equation.params[JOINS[equation.primitive.name]]
    if equation.primitive.name == "stack":
        values = [lax.expand_dims(value, [axis]) for value in values]
    return Pieces(axis, tuple(values))


def distributed(equation: Equation, values: list[Any]) -> list[Any] | None:
    """The results of an equation on pieces.

    Args:
        equation: the equation.
        values: of its operands.

    Returns:
        Arrays or pieces; None where nothing is in pieces, or it needs the whole arrays.
    """
    rule = RULES.get(equation.primitive.name)
    if rule is None or not any(isinstance(v, Pieces) for v in values):
        return None
    return rule(equation, *values)


def _product(equation: Equation, left: Any, right: Any) -> list[Any] | None:
    """Joined along an axis that the product leaves, or sums over: then it is a sum."""
    params, own = equation.params, 0 if isinstance(left, Pieces) else 1
    pieces, other = (left, right) if own == 0 else (right, left)
    contracted, shared = params["dimension_numbers"]
    sharded = params.get("out_sharding") is not None
    if pieces.axis in shared[own] or isinstance(other, Pieces) or sharded:
        return None

    def product(part, other):
        return lax.dot_general(
            *((part, other) if own == 0 else (other, part)),
            params["dimension_numbers"],
            precision=params["precision"],
            preferred_element_type=params["preferred_element_type"],
        )

    if pieces.axis in contracted[own]:
        beside = contracted[1 - own][contracted[own].index(pieces.axis)]
        others = _cut(other, beside, pieces.sizes).parts
        return [functools.reduce(lax.add, map(product, pieces.parts, others))]
    met = {*contracted[own], *shared[own]}
    before = sum(1 for axis in range(pieces.axis) if axis not in met)
    if own:
        before += other.ndim - len(contracted[0]) - len(shared[0])
    return [pieces.each(lambda part: product(part, other), len(shared[0]) + before)]


def _entrywise(equation: Equation, left: Any, right: Any) -> list[Any] | None:
    """A sum of two, the whole one of which is cut as the other is; or a multiple."""
    like = left if isinstance(left, Pieces) else right
    operation = ENTRYWISE[equation.primitive.name]
    sides = []
    for side in (left, right):
        if not isinstance(side, Pieces):
            shape = jnp.shape(side)
            if not shape or shape[like.axis] == 1:  # it is repeated along the axis
                sides.append([side] * len(like.parts))
                continue
            if shape[like.axis] != sum(like.sizes):
                return None
            side = _cut(side, like.axis, like.sizes)
        if (side.axis, side.sizes) != (like.axis, like.sizes):
            return None
        sides.append(side.parts)
    return [Pieces(like.axis, tuple(map(operation, *sides)))]


def _cut(array: Array, axis: int, sizes: Sequence[int]) -> Pieces:
    """An array as pieces of these sizes."""
    return Pieces(axis, tuple(lax.split(array, tuple(sizes), axis)))


def _converted(equation: Equation, pieces: Pieces) -> list[Any]:
    dtype = equation.params["new_dtype"]
    return [pieces.each(lambda part: part.astype(dtype), pieces.axis)]


def _transposed(equation: Equation, pieces: Pieces) -> list[Any]:
    order = equation.params["permutation"]
    axis = order.index(pieces.axis)
    return [pieces.each(lambda part: lax.transpose(part, order), axis)]


def _reshaped(equation: Equation, pieces: Pieces) -> list[Any] | None:
    """Where the axis stays one, between as many entries before it and after it."""
    shape, length = equation.outvars[0].aval.shape, sum(pieces.sizes)
    first = math.prod(pieces.parts[0].shape[: pieces.axis])
    in_order = equation.params.get("dimensions") is None
    for axis, size in enumerate(shape):
        if in_order and size == length and math.prod(shape[:axis]) == first:
            return [_resized(pieces, axis, shape, lax.reshape)]
    return None


def _broadcast(equation: Equation, pieces: Pieces) -> list[Any] | None:
    """Where the axis stays as long as it is."""
    shape, dimensions = equation.outvars[0].aval.shape, equation.params[BROADCAST]
    if shape[dimensions[pieces.axis]] != sum(pieces.sizes):
        return None
    make = lambda part, size: lax.broadcast_in_dim(part, size, dimensions)
    return [_resized(pieces, dimensions[pieces.axis], shape, make)]


def _resized(pieces: Pieces, axis: int, shape: Sequence[int], make: Callable) -> Pieces:
    """The pieces, each made the shape of all but for its own size along the axis."""
    of = lambda size: (*shape[:axis], size, *shape[axis + 1 :])
    sizes = map(of, pieces.sizes)
    return Pieces(axis, tuple(map(make, pieces.parts, sizes)))


def _split(equation: Equation, pieces: Pieces) -> list[Any] | None:
    """Into the parts that it is joined of."""
    params = equation.params
    same = params["axis"] == pieces.axis and [*params["sizes"]] == pieces.sizes
    return list(pieces.parts) if same else None


def _unstacked(equation: Equation, pieces: Pieces) -> list[Any] | None:
    """Into the parts, without the axis."""
    axis = equation.params["axis"]
    same = axis == pieces.axis and set(pieces.sizes) == {1}
    return [lax.squeeze(part, [axis]) for part in pieces.parts] if same else None


def _sliced(equation: Equation, pieces: Pieces) -> list[Any] | None:
    """One of the parts."""
    starts, ends = equation.params["start_indices"], equation.params["limit_indices"]
    shape, strides = equation.invars[0].aval.shape, equation.params["strides"]
    others = [axis for axis in range(len(shape)) if axis != pieces.axis]
    cut = any((starts[axis], ends[axis]) != (0, shape[axis]) for axis in others)
    if cut or (strides is not None and set(strides) != {1}):
        return None
    last = [*itertools.accumulate(pieces.sizes)]
    spans = list(zip([0, *last], last, strict=False))
    wanted = starts[pieces.axis], ends[pieces.axis]
    return [pieces.parts[spans.index(wanted)]] if wanted in spans else None


BROADCAST = "broadcast_dimensions"
ENTRYWISE: dict[str, Callable] = {
    "add": lax.add,
    "sub": lax.sub,
    "mul": lax.mul,
    "div": lax.div,
}
RULES: dict[str, Callable] = {
    **dict.fromkeys(ENTRYWISE, _entrywise),
    "dot_general": _product,
    "convert_element_type": _converted,
    "transpose": _transposed,
    "reshape": _reshaped,
    "broadcast_in_dim": _broadcast,
    "split": _split,
    "unstack": _unstacked,
    "slice": _sliced,
}
