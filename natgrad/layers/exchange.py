"""Do values of the examples go from one device to others inside a program?"""

from __future__ import annotations

from collections.abc import Hashable
from typing import Any

import jax

from natgrad.layers import jaxprs
from natgrad.model import batch
from natgrad.typing import Apply, Inputs, Params

# They name an axis, and say only that a value differs along it.
STAYING = {"pvary", "pcast", "pbroadcast"}


def exchanges(
    apply: Apply, params: Params, inputs: Inputs, in_axes: Any, axis_name: Hashable
) -> bool:
    """Does apply send what it computes from examples along a mapped axis?

    As batch normalisation does whose statistics are those of all devices, by
    `jax.lax.pmean`. Parameters may be gathered.

    Args:
        apply: apply(params, inputs) -> z [N, ...], on one device's examples.
        params: parameters.
        inputs: inputs of one device.
        in_axes: 0 or None for each leaf of the inputs, as for `Model`.
        axis_name: the axis, or a tuple of axes.
    """
    traced, _ = jaxprs.trace(apply, params, inputs)
    rows, _ = batch.split_inputs(inputs, in_axes)
    mine = {id(leaf) for leaf in rows}
    own = [False] * len(jax.tree.leaves(params))
    own += [id(leaf) in mine for leaf in jax.tree.leaves(inputs)]
    return _sends(traced, own, set(_names(axis_name)))


def _sends(jaxpr, own: list[bool], axes: set) -> bool:
    """Whether some equation sends values that come from the operands marked."""
    jaxpr, _ = jaxprs.opened(jaxpr)
    touched = {v for v, mark in zip(jaxpr.invars, own, strict=True) if mark}
    for equation in jaxpr.eqns:
        marks = [not jaxprs.is_literal(v) and v in touched for v in equation.invars]
        if not any(marks):
            continue
        params, name = equation.params, equation.primitive.name
        along = {*_names(params.get("axis_name")), *_names(params.get("axes"))}
        if name not in STAYING and along & axes:
            return True
        if name == "scan":  # what is carried may come from examples later
            first, carried = jaxprs.scan_counts(equation)
            marks[first : first + carried] = [True] * carried
        for inner in jaxprs.sub_jaxprs(equation):
            count = len(jaxprs.opened(inner)[0].invars)
            # A branch of a cond has no operand for the index.
            given = marks[-count:] if count else []
            if _sends(inner, [*[True] * (count - len(given)), *given], axes):
                return True
        touched |= set(equation.outvars)
    return False


def _names(axes: Any) -> tuple:
    if axes is None:
        return ()
    return tuple(axes) if isinstance(axes, tuple | list) else (axes,)
