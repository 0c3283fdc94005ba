"""Programs in which uses of parameters are hidden, traced as others that do the same.

    x [W_1, W_2] + [b_1, b_2]                    [x W_1 + b_1, x W_2 + b_2]
    fori_loop(0, L, lambda n, h: f(h, W[n]), h)  scan(lambda h, W_n: f(h, W_n), h, W)

The gates of a recurrent cell, or queries, keys and values, are often computed in one
product, since it is quicker than several. Of the joined matrix no axis belongs to one
parameter; and of a slice by a number that is not known until the program runs, nothing
says which it is.
"""

from __future__ import annotations

from collections.abc import Callable, Mapping, Sequence
from types import MappingProxyType
from typing import Any

import jax
from jax import lax

from natgrad.layers import jaxprs, numbered
from natgrad.layers.jaxprs import JOINS, Equation, Jaxpr, Variable
from natgrad.layers.pieces import distributed, joined, whole
from natgrad.typing import Array

# What a value was computed from: constants, parameters too, or data too.
CONSTANT, PARAMETERS, DATA = range(3)
EMPTY: Mapping = MappingProxyType({})
OPENED = jaxprs.CALLS | jaxprs.REMAT | {"scan"}


def hides_uses(program: Jaxpr, parameters: int) -> bool:
    """Are parameters concatenated, or sliced by the number of a step?

    Args:
        program: the closed jaxpr.
        parameters: how many of its first operands are parameters.
    """
    operands = len(jaxprs.opened(program)[0].invars)
    origins = [PARAMETERS] * parameters + [DATA] * (operands - parameters)
    return _hides(program, origins)[0]


def rewritten(apply: Callable) -> Callable:
    """The same function, with neither.

    Args:
        apply: apply(params, inputs).

    Returns:
        A function of the same arguments with the same results.
    """

    def function(params: Any, inputs: Any) -> Any:
        traced, shape = jaxprs.trace(apply, params, inputs)
        parameters, data = jax.tree.leaves(params), jax.tree.leaves(inputs)
        origins = [PARAMETERS] * len(parameters) + [DATA] * len(data)
        results, _ = _run(traced, [*parameters, *data], origins)
        return jax.tree.unflatten(jax.tree.structure(shape), map(whole, results))

    return function


def _hides(jaxpr: Jaxpr, origins: Sequence[int]) -> tuple[bool, list[int]]:
    """Whether it does, and what its results were computed from."""
    jaxpr, _ = jaxprs.opened(jaxpr)
    known = dict(zip(jaxpr.invars, origins, strict=True))
    made = {v: e for e in jaxpr.eqns for v in e.outvars}
    hidden = False
    for equation in jaxpr.eqns:
        seen = [_origin(v, known) for v in equation.invars]
        found = [max(seen, default=CONSTANT)] * len(equation.outvars)
        if equation.primitive.name in OPENED:
            inside, results = _hides(jaxprs.called(equation), _given(equation, seen))
            hidden |= inside
            found = found if equation.primitive.name == "scan" else results
        sliced = numbered.slices(equation, made).values()
        hidden |= _is_join(equation, seen) or any(seen[i] == PARAMETERS for i in sliced)
        known |= dict(zip(equation.outvars, found, strict=True))
    return hidden, [_origin(v, known) for v in jaxpr.outvars]


def _origin(v: Any, known: dict) -> int:
    return CONSTANT if jaxprs.is_literal(v) else known.get(v, CONSTANT)


def _given(equation: Equation, origins: Sequence[int]) -> list[int]:
    """Those of the operands of the jaxpr inside: what a scan carries may change."""
    given = list(origins)
    if equation.primitive.name == "scan":
        constants, carried = jaxprs.scan_counts(equation)
        given[constants : constants + carried] = [DATA] * carried
    return given


def _is_join(equation: Equation, origins: Sequence[int]) -> bool:
    parameters = max(origins, default=CONSTANT) == PARAMETERS
    return equation.primitive.name in JOINS and parameters


def _may_use(equation: Equation) -> bool:
    """Is anything joined or sliced inside, or multiplied with what is?"""
    names = (*JOINS, "dynamic_slice", "dot_general")
    opened = equation.primitive.name in OPENED
    return opened and jaxprs.has_primitive(jaxprs.called(equation), names)


def _run(
    jaxpr: Jaxpr,
    values: Sequence[Any],
    origins: Sequence[int],
    sliced: Mapping[Variable, Array] = EMPTY,
) -> tuple[list[Any], list[int]]:
    """The results, arrays or `Pieces`, and what they were computed from.

    `sliced` has results that are known without their equations.
    """
    jaxpr, constants = jaxprs.opened(jaxpr)
    env = dict(zip(jaxpr.constvars, constants, strict=True))
    env |= dict(zip(jaxpr.invars, values, strict=True))
    known = dict(zip(jaxpr.invars, origins, strict=True))
    made = {v: e for e in jaxpr.eqns for v in e.outvars}

    def value(v):
        return v.val if jaxprs.is_literal(v) else env[v]

    for equation in jaxpr.eqns:
        given = [value(v) for v in equation.invars]
        seen = [_origin(v, known) for v in equation.invars]
        found = [max(seen, default=CONSTANT)] * len(equation.outvars)
        if equation.outvars and equation.outvars[0] in sliced:
            results: Any = [sliced[equation.outvars[0]]]
            found = [PARAMETERS]
        elif _is_join(equation, seen):
            results = [joined(equation, [whole(v) for v in given])]
        elif equation.primitive.name == "scan" and _may_use(equation):
            results = _scan(equation, given, seen, numbered.slices(equation, made))
        elif _may_use(equation):
            results, found = _call(equation, given, seen)
        else:
            results = distributed(equation, given)
            if results is None:
                results = jaxprs.evaluate(jaxpr, equation, [whole(v) for v in given])
        env |= dict(zip(equation.outvars, results, strict=True))
        known |= dict(zip(equation.outvars, found, strict=True))
    out = jaxpr.outvars
    return [value(v) for v in out], [_origin(v, known) for v in out]


def _call(
    equation: Equation, values: list[Any], origins: list[int]
) -> tuple[list[Any], list[int]]:
    """A call inline; rematerialisation around the same body."""
    sub, params = jaxprs.called(equation), equation.params
    if equation.primitive.name in jaxprs.CALLS:
        return _run(sub, values, origins)

    def body(values):
        return [whole(v) for v in _run(sub, values, origins)[0]]

    policy, prevent_cse = params["policy"], params["prevent_cse"]
    again = jax.checkpoint(body, policy=policy, prevent_cse=prevent_cse)
    return again(values), [max(origins)] * len(equation.outvars)


def _scan(
    equation: Equation,
    values: list[Any],
    origins: list[int],
    slices: Mapping[Variable, int],
) -> list[Any]:
    """A scan, over what its body takes slices of too."""
    sub, params = jaxprs.called(equation), equation.params
    given = _given(equation, origins)
    constants, carried = jaxprs.scan_counts(equation)
    fixed, rest = values[:constants], [whole(v) for v in values[constants:]]
    slices = {v: i for v, i in slices.items() if origins[i] == PARAMETERS}
    stacked = {i: whole(values[i]) for i in slices.values()}

    def step(carry, rows):
        xs, one = rows
        sliced = {v: one[i][None] for v, i in slices.items()}
        results = _run(sub, [*fixed, *carry, *xs], given, sliced)[0]
        results = list(map(whole, results))
        return results[:carried], results[carried:]

    carry, rows = lax.scan(
        step,
        rest[:carried],
        (rest[carried:], stacked),
        length=params["length"],
        reverse=params["reverse"],
        unroll=params["unroll"],
    )
    return [*carry, *rows]
