"""How much memory a function takes, from its jaxpr: what is alive at once.

Values are made in the order of the equations and die with their last use; what nothing
uses is never made. Inside a loop one step is alive, beside what all steps give. XLA
fuses operations, and then takes less; it also hoists what is the same in every step out
of a loop, and copies operands of products.
"""

from __future__ import annotations

import math
from collections.abc import Callable, Sequence
from typing import Any

from natgrad.layers.jaxprs import (
    Equation,
    Jaxpr,
    Variable,
    is_literal,
    opened,
    scan_counts,
    sub_jaxprs,
    trace,
)

# Results of these are their operands, seen otherwise.
_VIEWS = frozenset({"reshape", "squeeze", "expand_dims", "pvary", "pcast"})


def live_bytes(function: Callable, *operands: Any) -> int:
    """The most bytes alive at once; results are counted and operands are not.

    Args:
        function: of trees of arrays.
        *operands: its arguments, arrays or shapes.
    """
    jaxpr, _ = opened(trace(function, *operands).jaxpr)
    return _most(jaxpr, [True] * len(jaxpr.outvars))


def _most(jaxpr: Jaxpr, wanted: Sequence[bool]) -> int:
    """The most bytes alive in a jaxpr of which these results are wanted."""
    end = _last_uses(jaxpr, wanted)
    alive, most = {}, 0
    for i, equation in enumerate(jaxpr.eqns):
        made = {v: _bytes(v) for v in equation.outvars if v in end}
        if not made:
            continue
        most = max(most, sum(alive.values()) + _inside(equation, made))
        alive = {v: size for v, size in (alive | made).items() if end[v] > i}
    return most


def _last_uses(jaxpr: Jaxpr, wanted: Sequence[bool]) -> dict[Variable, int]:
    """Of what is used at all: the equation after which it dies."""
    source: dict[Variable, Variable] = {}  # of what is a view

    def base(v):
        return source.get(v, v)

    for equation in jaxpr.eqns:
        if equation.primitive.name in _VIEWS:
            source[equation.outvars[0]] = base(equation.invars[0])
    results = [v for v, use in zip(jaxpr.outvars, wanted, strict=True) if use]
    end = {base(v): len(jaxpr.eqns) for v in results if not is_literal(v)}
    for i, equation in reversed(list(enumerate(jaxpr.eqns))):
        if any(base(v) in end for v in equation.outvars):
            for v in equation.invars:
                if not is_literal(v):
                    end.setdefault(base(v), i)
    return end


def _inside(equation: Equation, made: dict[Variable, int]) -> int:
    """The most bytes alive while an equation is evaluated, its results among them."""
    results, name = sum(made.values()), equation.primitive.name
    subs = [opened(sub)[0] for sub in sub_jaxprs(equation)]
    wanted = [v in made for v in equation.outvars]
    if name == "scan":
        (body,) = subs
        constants, carried = scan_counts(equation)
        slices = sum(map(_bytes, body.invars[constants + carried :]))
        wanted[:carried] = [True] * carried
        return results + slices + _most(body, wanted)
    each = []
    for sub in subs:
        alike = len(sub.outvars) == len(wanted) and name != "while"
        each.append(_most(sub, wanted if alike else [True] * len(sub.outvars)))
    most = max(each, default=0)
    return results + most if name == "while" else max(results, most)


def _bytes(variable: Variable) -> int:
    aval = variable.aval
    if not hasattr(aval, "shape"):
        return 0
    return math.prod(aval.shape) * aval.dtype.itemsize
