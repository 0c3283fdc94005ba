"""Slices of stacked arrays that a loop takes by the number of its step."""

from __future__ import annotations

from collections.abc import Mapping

from natgrad.layers import jaxprs, loops
from natgrad.layers.jaxprs import Equation, Variable


def slices(
    equation: Equation, around: Mapping[Variable, Equation]
) -> dict[Variable, int]:
    """What is slice n of a constant of a scan in step n.

    Args:
        equation: the scan, or any other.
        around: of the jaxpr that holds it, variable -> the equation that makes it.

    Returns:
        Variable of the body -> which operand of the scan it is a slice of, [1, ...];
        nothing for other equations.
    """
    if equation.primitive.name != "scan":
        return {}
    body = jaxprs.opened(jaxprs.called(equation))[0]
    first, length = jaxprs.scan_counts(equation)[0], equation.params["length"]
    made, numbers = (
        {v: e for e in body.eqns for v in e.outvars},
        _numbers(equation, around),
    )
    found = {}
    for each in body.eqns:
        if each.primitive.name != "dynamic_slice":
            continue
        array, index = each.invars[:2]
        one_row = each.params["slice_sizes"] == (1, *array.aval.shape[1:])
        all_rows = array.aval.shape[0] == length and array in body.invars[:first]
        if one_row and all_rows and loops.is_number(index, numbers, made):
            found[each.outvars[0]] = body.invars.index(array)
    return found


def _numbers(equation: Equation, around: Mapping[Variable, Equation]) -> set[Variable]:
    """Operands of the body that are the step's number, or that of what is sliced."""
    body = jaxprs.opened(jaxprs.called(equation))[0]
    reverse = equation.params["reverse"]  # slices then come from the last one on
    numbers = set() if reverse else loops.step_numbers(equation)[1]
    sliced = sum(jaxprs.scan_counts(equation))
    for v, given in zip(body.invars[sliced:], equation.invars[sliced:], strict=True):
        source = None if jaxprs.is_literal(given) else around.get(given)
        counts = source is not None and source.primitive.name == "iota"
        if counts and len(given.aval.shape) == 1:
            numbers |= {v}
    return numbers
