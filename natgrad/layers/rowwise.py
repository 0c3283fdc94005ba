"""A proof by reading: does each row of a program's result follow from its own row?

    row n of the result = f(row n of the inputs, what all rows share)

The axis of examples is followed through the operations whose rules are known. What
mixes rows, or treats them differently by their place (a value that varies along the
axis and does not come from the examples), ends the proof; so does an operation without
a rule, which says nothing about the model. The text of two traces, at two numbers of
examples, must agree but for this number, lest the program depend on it.
"""

from __future__ import annotations

import math
import re
from collections.abc import Sequence
from typing import Any, NamedTuple

from natgrad.layers import jaxprs

# Two numbers of examples that are unlikely to be a model's own sizes.
SIZES = 97, 89

ENTRYWISE = """
    abs acos acosh add add_any and asin asinh atan atan2 atanh cbrt ceil clamp
    convert_element_type copy cos cosh digamma div eq erf erf_inv erfc exp exp2 expm1
    floor ge gt imag integer_pow is_finite le lgamma log log1p logistic lt max min mul
    ne neg nextafter not or pow real reduce_precision rem round rsqrt select_n sign sin
    sinh sqrt square stop_gradient sub tan tanh xor
"""
REDUCTIONS = (
    "argmax argmin reduce_and reduce_max reduce_min reduce_or reduce_prod reduce_sum"
)
CUMULATIVE = "cumlogsumexp cummax cummin cumprod cumsum"


class Rows(NamedTuple):
    """A value whose rows along `axis` belong to the examples."""

    axis: int


class Shared(NamedTuple):
    """A value in which no example has a part; the axes along which it is constant."""

    constant: frozenset


class Unknown(Exception):
    """There is no rule, or rows are mixed."""


def proves(texts: Sequence[str], traced: Any, rows: Sequence[bool]) -> bool:
    """Whether the text of a program proves that each row follows from its own example.

    Args:
        texts: of the traces at the two `SIZES`.
        traced: the trace at the first.
        rows: whether each operand has an axis of examples.

    Returns:
        False where rows are mixed, or an operation has no rule.
    """
    plain = [
        re.sub(rf"(?<=[\[(, ]){size}(?=[,\]) ])", "N", text)
        for size, text in zip(SIZES, texts, strict=True)
    ]
    if plain[0] != plain[1]:
        return False
    operands = [Rows(0) if each else Shared(frozenset()) for each in rows]
    try:
        results = _run(traced, operands)
    except Unknown:
        return False
    return all(_along(result, 0) for result in results)


def _run(jaxpr, operands: Sequence) -> list:
    """What is known of each result, from what is known of the operands."""
    jaxpr, _ = jaxprs.opened(jaxpr)
    if len(jaxpr.invars) != len(operands):
        raise Unknown
    varying = Shared(frozenset())
    known = dict.fromkeys(jaxpr.constvars, varying)
    known |= dict(zip(jaxpr.invars, operands, strict=True))

    def read(v):
        return varying if jaxprs.is_literal(v) else known[v]

    for equation in jaxpr.eqns:
        results = _results(equation, [read(v) for v in equation.invars])
        known |= dict(zip(equation.outvars, results, strict=True))
    return [read(v) for v in jaxpr.outvars]


def _results(equation, operands: list) -> list:
    name = equation.primitive.name
    if name in jaxprs.CALLS | jaxprs.REMAT | jaxprs.CUSTOM:
        return _run(jaxprs.called(equation), operands)
    rule = RULES.get(name)
    touched = any(isinstance(o, Rows) for o in operands)
    if rule is None:
        if touched:
            raise Unknown
        return [Shared(frozenset()) for _ in equation.outvars]
    return [rule(equation, operands)] * len(equation.outvars)


def _along(value, axis: int) -> bool:
    """Do the value's rows along `axis` belong to the examples, or not vary at all?"""
    if isinstance(value, Rows):
        return value.axis == axis
    return axis in value.constant


def _entrywise(equation, operands):
    shape = equation.outvars[0].aval.shape
    axes = {o.axis for o in operands if isinstance(o, Rows)}
    full = []
    for v, operand in zip(equation.invars, operands, strict=True):
        sizes = v.aval.shape or (1,) * len(shape)
        if isinstance(operand, Shared):
            wide = {i for i, size in enumerate(sizes) if size == 1}
            operand = Shared(operand.constant | wide)
        full.append(operand)
    if not axes:
        return Shared(frozenset.intersection(*(o.constant for o in full)))
    axis = axes.pop()
    if not all(_along(o, axis) for o in full):
        raise Unknown
    return Rows(axis)


def _kept(operand, axes: Sequence[int | None]):
    """The operand with moved axes: axis i was axes[i], or None if new and constant."""
    if isinstance(operand, Rows):
        if operand.axis not in axes:
            raise Unknown
        return Rows(axes.index(operand.axis))
    constant = {None, *operand.constant}
    return Shared(frozenset(i for i, axis in enumerate(axes) if axis in constant))


def _without(equation, operands):
    """Reductions over axes, and axes of size one taken away."""
    params = equation.params
    gone = params["axes"] if "axes" in params else params["dimensions"]
    ndim = len(equation.invars[0].aval.shape)
    return _kept(operands[0], [axis for axis in range(ndim) if axis not in gone])


def _cumulative(equation, operands):
    (operand,) = operands
    axis = equation.params["axis"]
    if isinstance(operand, Rows):
        if operand.axis == axis:
            raise Unknown
        return operand
    return Shared(operand.constant - {axis})


def _broadcast(equation, operands):
    operand, *rest = operands
    if rest:
        raise Unknown
    shape, old = equation.outvars[0].aval.shape, equation.invars[0].aval.shape
    at = equation.params["broadcast_dimensions"]
    axes: list[int | None] = [None] * len(shape)
    for axis, new in enumerate(at):
        axes[new] = axis if old[axis] == shape[new] else None
    return _kept(operand, axes)


def _transposed(equation, operands):
    return _kept(operands[0], list(equation.params["permutation"]))


def _reshaped(equation, operands):
    old, new = (v.aval.shape for v in (equation.invars[0], equation.outvars[0]))
    if len(operands) > 1 or equation.params.get("dimensions") is not None:
        raise Unknown
    if isinstance(operands[0], Shared):
        whole = len(operands[0].constant) == len(old)
        return Shared(frozenset(range(len(new)) if whole else ()))
    axis = operands[0].axis
    before = math.prod(old[:axis])
    for place, size in enumerate(new):
        if size == old[axis] and math.prod(new[:place]) == before:
            return Rows(place)
    raise Unknown


def _sliced(equation, operands):
    """Slices, pads and windows, which may not touch the axis of examples."""
    old, new = (v.aval.shape for v in (equation.invars[0], equation.outvars[0]))
    operand, *rest = operands
    if any(isinstance(o, Rows) for o in rest):
        raise Unknown
    if isinstance(operand, Shared):
        return Shared(frozenset())
    params, axis = equation.params, operand.axis
    plain = old[axis] == new[axis]
    for name in ("strides", "window_strides", "window_dimensions", "base_dilation"):
        plain = plain and (params.get(name) is None or params[name][axis] == 1)
    for name in ("padding", "padding_config"):
        plain = plain and (params.get(name) is None or not any(params[name][axis]))
    if not plain:
        raise Unknown
    return operand


def _concatenated(equation, operands):
    axes = {o.axis for o in operands if isinstance(o, Rows)}
    if not axes:
        return Shared(frozenset())
    axis = axes.pop()
    if axis == equation.params["dimension"] or not all(
        _along(o, axis) for o in operands
    ):
        raise Unknown
    return Rows(axis)


def _contracted(equation, operands):
    contracting, batched = equation.params["dimension_numbers"]
    if all(isinstance(o, Shared) for o in operands):
        return Shared(frozenset())
    places = [list(axes) for axes in batched]
    for side, operand in enumerate(operands):
        if isinstance(operand, Shared):
            continue
        axis, other = operand.axis, operands[1 - side]
        if axis in places[side]:
            place = places[side].index(axis)
            if not _along(other, places[1 - side][place]):
                raise Unknown
            return Rows(place)
        if axis in contracting[side] or isinstance(other, Rows):
            raise Unknown
        free = [
            [
                i
                for i in range(len(v.aval.shape))
                if i not in contracting[s] and i not in places[s]
            ]
            for s, v in enumerate(equation.invars)
        ]
        first = len(places[0]) + (len(free[0]) if side else 0)
        return Rows(first + free[side].index(axis))
    raise Unknown


def _convolved(equation, operands):
    left, right = operands
    if isinstance(right, Rows):
        raise Unknown
    if isinstance(left, Shared):
        return Shared(frozenset())
    numbers = equation.params["dimension_numbers"]
    if equation.params["batch_group_count"] != 1 or left.axis != numbers.lhs_spec[0]:
        raise Unknown
    return Rows(numbers.out_spec[0])


def _counted(equation, operands):
    del operands
    axes = set(range(len(equation.outvars[0].aval.shape)))
    return Shared(frozenset(axes - {equation.params["dimension"]}))


def _split(equation, operands):
    (operand,) = operands
    if isinstance(operand, Shared):
        return Shared(frozenset())
    if operand.axis == equation.params["axis"]:
        raise Unknown
    return operand


RULES = {
    **dict.fromkeys(ENTRYWISE.split(), _entrywise),
    **dict.fromkeys(REDUCTIONS.split(), _without),
    **dict.fromkeys(CUMULATIVE.split(), _cumulative),
    "broadcast_in_dim": _broadcast,
    "concatenate": _concatenated,
    "conv_general_dilated": _convolved,
    "dot_general": _contracted,
    "iota": _counted,
    "pad": _sliced,
    "reduce_window": _sliced,
    "reduce_window_max": _sliced,
    "reduce_window_sum": _sliced,
    "reshape": _reshaped,
    "slice": _sliced,
    "split": _split,
    "squeeze": _without,
    "transpose": _transposed,
}
