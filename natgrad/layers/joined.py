"""Parameters that lie side by side in one product, read as a product each.

    x [W_1, W_2] + [b_1, b_2] = [x W_1 + b_1, x W_2 + b_2]

The gates of a recurrent cell, or queries, keys and values, are often computed so, since
one large product is quicker than several. Of the joined matrix no axis belongs to one
parameter; in the function that is traced instead each product has its own.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import Any

import jax
from jax import lax

from natgrad.layers import jaxprs
from natgrad.layers.jaxprs import JOINS, Equation, Jaxpr
from natgrad.layers.pieces import distributed, joined, whole

# What a value was computed from: constants, parameters too, or data too.
CONSTANT, PARAMETERS, DATA = range(3)
OPENED = jaxprs.CALLS | jaxprs.REMAT | {"scan"}


def joins(program: Jaxpr, parameters: int) -> bool:
    """Are parameters concatenated anywhere in a program?

    Args:
        program: the closed jaxpr.
        parameters: how many of its first operands are parameters.
    """
    operands = len(jaxprs.opened(program)[0].invars)
    origins = [PARAMETERS] * parameters + [DATA] * (operands - parameters)
    return _joins(program, origins)[0]


def apart(apply: Callable) -> Callable:
    """A function whose products with joined parameters are a product for each.

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


def _joins(jaxpr: Jaxpr, origins: Sequence[int]) -> tuple[bool, list[int]]:
    """Whether it does, and what its results were computed from."""
    jaxpr, _ = jaxprs.opened(jaxpr)
    known = dict(zip(jaxpr.invars, origins, strict=True))
    any_joined = False
    for equation in jaxpr.eqns:
        seen = [_origin(v, known) for v in equation.invars]
        found = [max(seen, default=CONSTANT)] * len(equation.outvars)
        if equation.primitive.name in OPENED:
            inside, results = _joins(jaxprs.called(equation), _given(equation, seen))
            any_joined |= inside
            found = found if equation.primitive.name == "scan" else results
        any_joined |= _is_join(equation, seen)
        known |= dict(zip(equation.outvars, found, strict=True))
    return any_joined, [_origin(v, known) for v in jaxpr.outvars]


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
    """Is anything joined inside, or multiplied with what is?"""
    names = (*JOINS, "dot_general")
    opened = equation.primitive.name in OPENED
    return opened and jaxprs.has_primitive(jaxprs.called(equation), names)


def _run(
    jaxpr: Jaxpr, values: Sequence[Any], origins: Sequence[int]
) -> tuple[list[Any], list[int]]:
    """The results, arrays or `Pieces`, and what they were computed from."""
    jaxpr, constants = jaxprs.opened(jaxpr)
    env = dict(zip(jaxpr.constvars, constants, strict=True))
    env |= dict(zip(jaxpr.invars, values, strict=True))
    known = dict(zip(jaxpr.invars, origins, strict=True))

    def value(v):
        return v.val if jaxprs.is_literal(v) else env[v]

    for equation in jaxpr.eqns:
        given = [value(v) for v in equation.invars]
        seen = [_origin(v, known) for v in equation.invars]
        found = [max(seen, default=CONSTANT)] * len(equation.outvars)
        if _is_join(equation, seen):
            results: Any = [joined(equation, [whole(v) for v in given])]
        elif _may_use(equation):
            results, found = _nested(equation, given, seen)
        else:
            results = distributed(equation, given)
            if results is None:
                results = jaxprs.evaluate(jaxpr, equation, [whole(v) for v in given])
        env |= dict(zip(equation.outvars, results, strict=True))
        known |= dict(zip(equation.outvars, found, strict=True))
    out = jaxpr.outvars
    return [value(v) for v in out], [_origin(v, known) for v in out]


def _nested(
    equation: Equation, values: list[Any], origins: list[int]
) -> tuple[list[Any], list[int]]:
    """A call inline; rematerialisation and a scan around the same body."""
    sub, params = jaxprs.called(equation), equation.params
    given = _given(equation, origins)
    if equation.primitive.name in jaxprs.CALLS:
        return _run(sub, values, given)
    found = [max(origins, default=CONSTANT)] * len(equation.outvars)

    def body(values):
        return [whole(v) for v in _run(sub, values, given)[0]]

    if equation.primitive.name in jaxprs.REMAT:
        policy, prevent_cse = params["policy"], params["prevent_cse"]
        again = jax.checkpoint(body, policy=policy, prevent_cse=prevent_cse)
        return again(values), found
    constants, carried = jaxprs.scan_counts(equation)
    fixed, rest = values[:constants], [whole(v) for v in values[constants:]]

    def step(carry, slices):
        results = body([*fixed, *carry, *slices])
        return results[:carried], results[carried:]

    carry, rows = lax.scan(
        step,
        rest[:carried],
        rest[carried:],
        length=params["length"],
        reverse=params["reverse"],
        unroll=params["unroll"],
    )
    return [*carry, *rows], found
