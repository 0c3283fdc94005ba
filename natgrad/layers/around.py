"""Does a parameter reach the outputs around its uses? Asked of the trace alone.

Every use that was found is cut: its parameter is stopped there. What remains is
linearised by JAX, whose own rules say through which equations a tangent goes. If the
outputs still depend on the tangent of a parameter, some use of it was missed. Nothing
is compiled or run.
"""

from __future__ import annotations

from collections.abc import Mapping, Sequence

import jax

from natgrad.layers import jaxprs
from natgrad.layers.captured import walked
from natgrad.layers.examples import Examples, Path
from natgrad.layers.interpreter import Interpreter
from natgrad.layers.uses import Use
from natgrad.typing import Inputs, Params


def around(
    traced: jaxprs.Jaxpr,
    examples: Examples,
    uses: Mapping[Path, Use],
    leaves: Sequence[int],
    params: Params,
    inputs: Inputs,
) -> set[int]:
    """Those of some leaves that reach the outputs otherwise than by their uses.

    Args:
        traced: the program.
        examples: of its variables.
        uses: all uses that were found.
        leaves: indices of the parameters to look at.
        params: parameters, arrays or shapes.
        inputs: inputs, arrays or shapes.
    """
    taps = {path: (path, _cut) for path in uses}
    live = dict.fromkeys(uses, (None, None))
    flat, structure = jax.tree.flatten(params)

    def tangents(flat, inputs, directions):
        def outputs(mine):
            full = list(flat)
            for index, leaf in zip(leaves, mine, strict=True):
                full[index] = leaf
            tree = jax.tree.unflatten(structure, full)
            return walked(Interpreter(examples, taps), traced, tree, inputs, live)

        return jax.linearize(outputs, [flat[i] for i in leaves])[1](directions)

    directions = [flat[i] for i in leaves]
    linear = jaxprs.opened(jax.make_jaxpr(tangents)(flat, inputs, directions))[0]
    others = len(linear.invars) - len(leaves)
    found = _reached(linear, [set()] * others + [{i} for i in leaves])
    return set().union(*found)


def _cut(op, use):
    """The op of a use, with its parameter stopped."""

    def cut(*operands):
        given = list(operands)
        given[use.operand] = jax.lax.stop_gradient(given[use.operand])
        return op(*given)

    return cut


def _reached(jaxpr, given: list[set[int]]) -> list[set[int]]:
    """Which of the operands each result depends on."""
    jaxpr, _ = jaxprs.opened(jaxpr)
    found = dict(zip(jaxpr.invars, given, strict=True))
    of = lambda v: set() if jaxprs.is_literal(v) else found.get(v, set())
    for equation in jaxpr.eqns:
        operands = [of(v) for v in equation.invars]
        if equation.primitive.name in jaxprs.CALLS:
            results = _reached(jaxprs.called(equation), operands)
        else:
            results = [set().union(*operands)] * len(equation.outvars)
        found |= dict(zip(equation.outvars, results, strict=True))
    return [of(v) for v in jaxpr.outvars]
