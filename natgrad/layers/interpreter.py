"""Walks a traced function, finds every use of every parameter, and taps it.

Values that come from a parameter carry marks saying how. Equations that touch no mark,
or whose derivative does not matter, are handed back to JAX untouched; what the others
do is for `natgrad.layers.step` to say.
"""

from __future__ import annotations

from collections.abc import Mapping
from typing import Any

from natgrad.layers import jaxprs
from natgrad.layers.examples import Examples, Path
from natgrad.layers.step import IGNORED, Step
from natgrad.layers.uses import Findings, Marks


class Interpreter:
    """One walk over a traced function.

    Attributes:
        examples: the example axis of every variable.
        taps: path -> (block's name, make), where make(op, use) is the tap's `Work`, or
            another op where the block has no probe; empty when the walk is for finding
            uses.
        stacked: path of a scan -> names of the blocks that it slices.
        findings: what the walk found.
    """

    def __init__(
        self,
        examples: Examples,
        taps: Mapping[Path, tuple] | None = None,
        stacked: Mapping[Path, frozenset[str]] | None = None,
    ):
        self.examples = examples
        self.taps = taps
        self.stacked = stacked or {}
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

        value = lambda v: v.val if jaxprs.is_literal(v) else env[v]
        marks_of = lambda v: () if jaxprs.is_literal(v) else known.get(v, ())
        axis = lambda v: self.examples.axis(
            path, None if jaxprs.is_literal(v) else numbers[v]
        )
        learn(jaxpr.invars, marks)
        for index, equation in enumerate(jaxpr.eqns):
            here, results = (*path, index), equation.outvars
            given = [value(v) for v in equation.invars]
            seen = [marks_of(v) for v in equation.invars]
            need = [v in matters for v in results]
            if any(seen) and any(need):
                axes = [axis(v) for v in (*equation.invars, results[0])]
                step = Step(self, jaxpr, equation, given, seen, here, axes, live, need)
                made, found = step.take()
                learn(results, found)
            else:
                made = jaxprs.evaluate(jaxpr, equation, given)
            env |= dict(zip(results, made, strict=True))
        out = jaxpr.outvars
        return [value(v) for v in out], [marks_of(v) for v in out]

    def tapped_under(self, path: Path) -> bool:
        """Is some tap inside this equation (or is the walk for finding uses)?"""
        if self.taps is None:
            return True
        return any(other[: len(path)] == path for other in self.taps)
