"""Walks a traced function: finds every use of every parameter, or taps those found.

In a walk that finds uses, values that come from a parameter carry marks saying how.
Equations that touch no mark, or whose derivative does not matter, are handed back to
JAX untouched; what the others do is for `natgrad.layers.step` to say. Taps go to the
equations of uses by their paths. There marks are for those parameters alone whose uses
need more than their operands, such as what they were multiplied by before.
"""

from __future__ import annotations

import math
from collections.abc import Mapping, Sequence, Set
from typing import Any

import jax
import jax.numpy as jnp

from natgrad.layers import jaxprs
from natgrad.layers.examples import Examples, Path
from natgrad.layers.step import IGNORED, Step
from natgrad.layers.tap import Tap, evaluated
from natgrad.layers.uses import Findings, Mark, Marks, Use
from natgrad.layers.views import View
from natgrad.typing import Inputs, Params


class Interpreter:
    """One walk over a traced function.

    Attributes:
        examples: the example axis of every variable.
        finds: is the walk for finding uses, without taps?
        taps: path of a use -> its tap.
        stacked: path of a scan -> names of the blocks that it slices.
        marked: leaves of the parameters that have marks in a walk with taps.
        tapped: path of an equation -> the taps that need its operands alone.
        around_taps: paths of equations that some tap is inside of.
        findings: what the walk found.
    """

    def __init__(
        self,
        examples: Examples,
        taps: Mapping[Path, Tap] | None = None,
        stacked: Mapping[Path, Set[str]] | None = None,
        marked: Set[int] = frozenset(),
    ):
        self.examples = examples
        self.finds = taps is None
        self.taps = taps or {}
        self.stacked = stacked or {}
        self.marked = marked
        self.tapped: dict[Path, list] = {}
        self.around_taps: set[Path] = set()
        for path, tap in self.taps.items():
            # Several uses of one equation have paths inside of it.
            here = path[:-1] if path[-1] < 0 else path
            self.around_taps |= {here[:end] for end in range(1, len(here))}
            if tap.use.view.leaf not in marked:
                self.tapped.setdefault(here, []).append((tap, None))
        self.findings = Findings()

    def run(
        self, jaxpr, values, marks, path: Path, live, needed=None
    ) -> tuple[list, list]:
        """Evaluates a jaxpr on marked values.

        Args:
            jaxpr: the jaxpr.
            values: of its operands.
            marks: of its operands, a tuple each: a sum comes from several parameters.
            path: where the jaxpr is.
            live: block's name -> (probe, context), for the taps inside.
            needed: whether the derivative of each result matters; None for all.

        Returns:
            The values and the marks of its results.
        """
        jaxpr, constants = jaxprs.opened(jaxpr)
        reads, numbers = jaxprs.use_counts(jaxpr), jaxprs.numbers(jaxpr)
        matters = jaxprs.before(jaxpr, needed, IGNORED)
        env = dict(zip(jaxpr.constvars, constants, strict=True))
        env |= dict(zip(jaxpr.invars, values, strict=True))
        known: dict[Any, Marks] = {}

        def learn(variables, found) -> None:
            for v, marks in zip(variables, found, strict=True):
                # The result of a use stands for it only while nothing else reads it.
                known[v] = tuple(m for m in marks if m.source is None or reads[v] == 1)

        def value(v):
            return v.val if jaxprs.is_literal(v) else env[v]

        def marks_of(v):
            return () if jaxprs.is_literal(v) else known.get(v, ())

        def axis(v):
            return self.examples.axis(
                path, None if jaxprs.is_literal(v) else numbers[v]
            )

        learn(jaxpr.invars, marks)
        for index, equation in enumerate(jaxpr.eqns):
            here, results = (*path, index), equation.outvars
            given = [value(v) for v in equation.invars]
            seen = [marks_of(v) for v in equation.invars]
            need = [v in matters for v in results]
            if here in self.tapped:
                made = evaluated(jaxpr, equation, given, self.tapped[here], live)
            elif (any(seen) and any(need)) or here in self.around_taps:
                step = Step(self, jaxpr, equation, given, seen, here, axis, live, need)
                made, found = step.take()
                learn(results, found)
            else:
                made = jaxprs.evaluate(jaxpr, equation, given)
            env |= dict(zip(results, made, strict=True))
        out = jaxpr.outvars
        return [value(v) for v in out], [marks_of(v) for v in out]

    def tapped_under(self, path: Path) -> bool:
        """Whether some tap is inside an equation.

        Args:
            path: of the equation.

        Returns:
            True if so, and in a walk for finding uses.
        """
        return self.finds or path in self.around_taps


def walked(walk: Interpreter, traced, params, inputs, live) -> list:
    """Evaluates a traced apply(params, inputs), its parameters marked where need be.

    Args:
        walk: the interpreter.
        traced: the closed jaxpr.
        params: the parameters.
        inputs: the inputs.
        live: block's name -> (probe, context).

    Returns:
        The results, flat.
    """
    leaves, rest = jax.tree.leaves(params), jax.tree.leaves(inputs)
    marks = [
        (Mark(View.whole(i, jnp.shape(leaf))),)
        if is_followed(leaf) and (walk.finds or i in walk.marked)
        else ()
        for i, leaf in enumerate(leaves)
    ]
    given = [*leaves, *rest]
    results, found = walk.run(traced, given, [*marks, *[()] * len(rest)], (), live)
    walk.findings.refuse(found, "it is returned as it is")
    return results


def is_followed(leaf) -> bool:
    """Whether a parameter has entries that have a derivative.

    Args:
        leaf: the parameter, an array or a shape.

    Returns:
        True where it is floating and not empty.
    """
    inexact = jnp.issubdtype(jnp.result_type(leaf), jnp.inexact)
    return inexact and math.prod(jnp.shape(leaf)) > 0


def around(
    traced: jaxprs.Jaxpr,
    examples: Examples,
    uses: Mapping[Path, Use],
    leaves: Sequence[int],
    params: Params,
    inputs: Inputs,
) -> set[int]:
    """Which parameters reach the outputs otherwise than by the uses that were found?

    The trace alone is asked. Every use that was found is cut: its parameter is stopped
    there. What remains is linearised by JAX, whose own rules say through which
    equations a tangent goes. If the outputs still depend on the tangent of a parameter,
    some use of it was missed. Nothing is compiled or run.

    Args:
        traced: the program.
        examples: of its variables.
        uses: all uses that were found.
        leaves: indices of the parameters to look at.
        params: parameters, arrays or shapes.
        inputs: inputs, arrays or shapes.

    Returns:
        The indices of those that do.
    """
    taps = {path: Tap(use, str(path), _cut) for path, use in uses.items()}
    live = {tap.block: (None, None) for tap in taps.values()}
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

    def of(v):
        return set() if jaxprs.is_literal(v) else found.get(v, set())

    for equation in jaxpr.eqns:
        operands = [of(v) for v in equation.invars]
        if equation.primitive.name in jaxprs.CALLS:
            results = _reached(jaxprs.called(equation), operands)
        else:
            results = [set().union(*operands)] * len(equation.outvars)
        found |= dict(zip(equation.outvars, results, strict=True))
    return [of(v) for v in jaxpr.outvars]
