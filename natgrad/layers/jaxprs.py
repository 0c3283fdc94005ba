"""The only file that touches a jaxpr's insides, so that a new JAX is met in one place.

A jaxpr is a list of equations; an equation names a primitive, its operands and its
results. Everything here uses public names (`jax.make_jaxpr`, `jax.extend.core`). What
differs between JAX 0.10 and 0.12 is met by three functions: `opened` (a jaxpr and its
constants became one object), `scan_counts` (how a scan says which operands it carries)
and `evaluate`, which hands a single equation back to JAX.
"""

from __future__ import annotations

from collections import Counter
from collections.abc import Callable, Iterable, Iterator, Sequence
from typing import Any, NamedTuple

import jax
import jax.extend as jex
import numpy as np

from natgrad.model import batch

Jaxpr = Any
Equation = Any
Variable = Any

# Primitives that run one jaxpr once, on their own operands.
CALLS = frozenset({"jit", "pjit", "closed_call", "core_call"})
REMAT = frozenset({"remat2", "remat", "checkpoint"})
CUSTOM = frozenset({"custom_jvp_call", "custom_vjp_call", "custom_vjp_call_jaxpr"})

# Primitives that join arrays, and the name of the axis along which they do.
JOINS = {"concatenate": "dimension", "stack": "axis"}


class Program(NamedTuple):
    """A function as it was traced.

    Attributes:
        jaxpr: the closed jaxpr.
        shape: a tree of `jax.ShapeDtypeStruct`, those of the results.
    """

    jaxpr: Jaxpr
    shape: Any


def trace(function: Callable, *operands: Any) -> Program:
    """Traces a function now.

    `jax.make_jaxpr` keeps what it traced of a function that it has seen, with the
    values that the function read from Python then; this does not.

    Args:
        function: what is traced; its results are a tree of arrays.
        *operands: its arguments, arrays or shapes.

    Returns:
        The closed jaxpr and the shapes of the results.
    """

    def anew(*operands):
        return function(*operands)

    with batch.traceable():
        return Program(*jax.make_jaxpr(anew, return_shape=True)(*operands))


def opened(jaxpr: Jaxpr) -> tuple[Jaxpr, list]:
    """The open jaxpr and the constants of a closed, merged or open one.

    Args:
        jaxpr: any of these.

    Returns:
        The jaxpr whose equations can be read, and its constants.
    """
    return getattr(jaxpr, "jaxpr", jaxpr), list(getattr(jaxpr, "consts", ()) or ())


def is_literal(variable: Variable) -> bool:
    """Whether an operand is a constant that is written into the equation."""
    return isinstance(variable, jex.core.Literal)


def is_dropped(variable: Variable) -> bool:
    """Whether a result is thrown away."""
    return isinstance(variable, jex.core.DropVar)


def use_counts(jaxpr: Jaxpr) -> Counter:
    """How often each variable of a jaxpr is read, being returned included."""
    reads = [v for equation in jaxpr.eqns for v in equation.invars]
    return Counter(v for v in [*reads, *jaxpr.outvars] if not is_literal(v))


def before(
    jaxpr: Jaxpr, needed: Sequence[bool] | None, stopping: frozenset[str]
) -> set[Variable]:
    """The variables whose derivative matters to that of the results.

    Args:
        jaxpr: the jaxpr.
        needed: whether each result matters; None for all.
        stopping: primitives through which no derivative goes.

    Returns:
        The variables.
    """
    needed = [True] * len(jaxpr.outvars) if needed is None else needed
    pairs = zip(jaxpr.outvars, needed, strict=True)
    found = {v for v, need in pairs if need and not is_literal(v)}
    for equation in reversed(jaxpr.eqns):
        stops = equation.primitive.name in stopping
        if not stops and any(v in found for v in equation.outvars):
            found |= {v for v in equation.invars if not is_literal(v)}
    return found


def numbers(jaxpr: Jaxpr) -> dict[Variable, int]:
    """The variables of a jaxpr in the order in which they are made.

    Args:
        jaxpr: the jaxpr.

    Returns:
        Variable -> its place.
    """
    made = [v for equation in jaxpr.eqns for v in equation.outvars]
    return {v: i for i, v in enumerate([*jaxpr.constvars, *jaxpr.invars, *made])}


def equation_at(jaxpr: Jaxpr, path: Sequence[int]) -> tuple[Jaxpr, Equation]:
    """The equation at a path, and the jaxpr that holds it.

    Args:
        jaxpr: the outermost jaxpr.
        path: (equation, sub-jaxpr, equation, ...), indices.

    Returns:
        The jaxpr and the equation.
    """
    jaxpr, _ = opened(jaxpr)
    equation, rest = jaxpr.eqns[path[0]], path[1:]
    return (
        equation_at(sub_jaxprs(equation)[rest[0]], rest[1:])
        if rest
        else (
            jaxpr,
            equation,
        )
    )


def evaluate(jaxpr: Jaxpr, equation: Equation, values: Sequence) -> list:
    """The results of one equation, computed by JAX itself.

    Args:
        jaxpr: the jaxpr that holds it.
        equation: the equation.
        values: of its operands.

    Returns:
        One entry a result, None for those that are dropped.
    """
    operands = {
        v: value
        for v, value in zip(equation.invars, values, strict=True)
        if not is_literal(v)
    }
    kept = [v for v in equation.outvars if not is_dropped(v)]
    alone = jaxpr.replace(
        constvars=(),
        invars=list(operands),
        outvars=kept,
        eqns=[equation],
    )
    closed = jex.core.ClosedJaxpr(alone, [])
    results = iter(jex.core.jaxpr_as_fun(closed)(*operands.values()))
    return [None if is_dropped(v) else next(results) for v in equation.outvars]


def run(jaxpr: Jaxpr, constants: Sequence, values: Sequence) -> list:
    """The results of an open jaxpr.

    Args:
        jaxpr: the jaxpr.
        constants: values of its constants.
        values: values of its operands.

    Returns:
        The results, flat.
    """
    alone = jaxpr.replace(constvars=(), invars=[*jaxpr.constvars, *jaxpr.invars])
    closed = jex.core.ClosedJaxpr(alone, [])
    return jex.core.jaxpr_as_fun(closed)(*constants, *values)


def as_function(jaxpr: Jaxpr):
    """A closed or open jaxpr as a function of its operands."""
    jaxpr, constants = opened(jaxpr)
    return jex.core.jaxpr_as_fun(jex.core.ClosedJaxpr(jaxpr, constants))


def open_axes(jaxpr: Jaxpr) -> set:
    """The mapped axes that a jaxpr names and does not map itself."""
    effects = opened(jaxpr)[0].effects
    return {effect.name for effect in effects if hasattr(effect, "name")}


def called(equation: Equation) -> Jaxpr:
    """The one jaxpr that a call, remat, custom rule or scan runs."""
    found = [equation.params.get(name) for name in ("jaxpr", "call_jaxpr", "fun_jaxpr")]
    return next(jaxpr for jaxpr in found if jaxpr is not None)


def sub_jaxprs(equation: Equation) -> list[Jaxpr]:
    """Every jaxpr among the parameters of an equation, in a fixed order."""
    return list(_jaxprs_in(equation.params))


def has_loop(jaxpr: Jaxpr, length: int | None) -> bool:
    """Whether a program has a loop of a given number of steps.

    Args:
        jaxpr: the program.
        length: the number of steps; None for no number.

    Returns:
        True if there is one, in any jaxpr inside.
    """
    return any(
        e.params.get("length") == length
        or any(has_loop(sub, length) for sub in sub_jaxprs(e))
        for e in opened(jaxpr)[0].eqns
        if length is not None
    )


def has_primitive(jaxpr: Jaxpr, names: Iterable[str]) -> bool:
    """Whether a program has one of some primitives, in any jaxpr inside."""
    return any(
        e.primitive.name in names
        or any(has_primitive(sub, names) for sub in sub_jaxprs(e))
        for e in opened(jaxpr)[0].eqns
    )


def float_dtypes(jaxpr: Jaxpr) -> set[str]:
    """The names of the floating types of all values computed, in every jaxpr inside."""
    jaxpr, _ = opened(jaxpr)
    found = set()
    for equation in jaxpr.eqns:
        types = [getattr(v.aval, "dtype", None) for v in equation.outvars]
        found |= {
            str(t)
            for t in types
            if t is not None and jax.numpy.issubdtype(t, np.inexact)
        }
        for inner in sub_jaxprs(equation):
            found |= float_dtypes(inner)
    return found


def _jaxprs_in(params: dict) -> Iterator[Jaxpr]:
    kinds = (jex.core.Jaxpr, jex.core.ClosedJaxpr)
    for _, value in sorted(params.items()):
        for item in value if isinstance(value, tuple | list) else (value,):
            if isinstance(item, kinds):
                yield item


def scan_counts(equation: Equation) -> tuple[int, int]:
    """How many operands of a scan are constants, and how many are carried."""
    params = equation.params
    if "num_consts" in params:
        return params["num_consts"], params["num_carry"]
    constants, carried, _ = (len(group) for group in params["ft_in"].unpack())
    return constants, carried


def is_integer_like(aval: Any) -> bool:
    """Whether a value has no derivative: integers, booleans, random keys."""
    return not jax.numpy.issubdtype(aval.dtype, np.inexact)
