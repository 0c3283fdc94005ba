"""Walks a traced function, finds every use of every parameter, and taps it.

Values that come from a parameter carry a `Mark` saying how. Equations that touch no
mark are handed back to JAX untouched. An equation that uses a marked value linearly is
a use; when its path is among the taps it is evaluated through a tap
(`natgrad.layers.tap`). What surrounds a use (scan, remat, cond, shard_map) is emitted
again around the tapped body (`natgrad.layers.nesting`).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping
from typing import Any

import jax.numpy as jnp

from natgrad import tree
from natgrad.layers import conv, dense, embedding, jaxprs, late, routed, scale_shift
from natgrad.layers.embedding import LookupUse
from natgrad.layers.examples import Examples, Path
from natgrad.layers.marks import Findings, Mark
from natgrad.layers.nesting import NESTING
from natgrad.layers.tap import tap
from natgrad.layers.uses import Site, Use
from natgrad.layers.views import NotUnderstoodError, View, follow

# How to read the equation, by the primitive's name.
MATCHERS = {
    "dot_general": dense.match,
    "conv_general_dilated": conv.match,
    "gather": embedding.match,
    **dict.fromkeys(scale_shift.KINDS, scale_shift.match),
}
LINEAR = frozenset({"neg", *scale_shift.KINDS})


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

    def run(self, jaxpr, values, marks, path: Path, live) -> tuple[list, list]:
        """Evaluates a jaxpr on marked values.

        Args:
            jaxpr: the jaxpr.
            values: of its operands.
            marks: of its operands, None where a value comes from no parameter.
            path: where the jaxpr is.
            live: block's name -> (probe, context), for the taps inside.

        Returns:
            The values and the marks of its results.
        """
        jaxpr, constants = jaxprs.opened(jaxpr)
        reads, numbers = jaxprs.use_counts(jaxpr), jaxprs.numbers(jaxpr)
        env = dict(zip(jaxpr.constvars, constants, strict=True))
        env |= dict(zip(jaxpr.invars, values, strict=True))
        known: dict[Any, Mark] = {}

        def learn(variables, found) -> None:
            for v, mark in zip(variables, found, strict=True):
                # The result of a use stands for it only while nothing else reads it.
                if mark is not None and (mark.source is None or reads[v] == 1):
                    known[v] = mark

        value = lambda v: v.val if jaxprs.is_literal(v) else env[v]
        mark = lambda v: None if jaxprs.is_literal(v) else known.get(v)
        learn(jaxpr.invars, marks)
        for index, equation in enumerate(jaxpr.eqns):
            here = (*path, index)
            given = [value(v) for v in equation.invars]
            seen = [mark(v) for v in equation.invars]
            if any(m is not None for m in seen):
                axes = [
                    self.examples.axis(path, numbers.get(v))
                    for v in (
                        None if jaxprs.is_literal(v) else v
                        for v in (*equation.invars, equation.outvars[0])
                    )
                ]
                step = Step(self, jaxpr, equation, given, seen, here, axes, live)
                results, found = step.take()
                learn(equation.outvars, found)
            else:
                results = jaxprs.evaluate(jaxpr, equation, given)
            env |= dict(zip(equation.outvars, results, strict=True))
        out = jaxpr.outvars
        return [value(v) for v in out], [mark(v) for v in out]

    def tapped_under(self, path: Path) -> bool:
        """Is some tap inside this equation (or is the walk for finding uses)?"""
        if self.taps is None:
            return True
        return any(other[: len(path)] == path for other in self.taps)


@dataclasses.dataclass
class Step:
    """One equation, some operand of which comes from a parameter.

    `axes` are the example axes of its operands and, last, of its first result.
    """

    walk: Interpreter
    jaxpr: Any
    equation: Any
    values: list
    marks: list
    here: Path
    axes: list
    live: Mapping[str, tuple]

    @property
    def name(self) -> str:
        """The primitive."""
        return self.equation.primitive.name

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the first result."""
        return self.equation.outvars[0].aval.shape

    def from_parameters(self) -> list:
        """The marks, without those of the results of other uses."""
        return [m if m is not None and m.source is None else None for m in self.marks]

    def natively(self) -> list:
        """The results, by JAX."""
        return jaxprs.evaluate(self.jaxpr, self.equation, self.values)

    def unmarked(self) -> list:
        """No result comes from a parameter any more."""
        return [None] * len(self.equation.outvars)

    def take(self) -> tuple[list, list]:
        """The results and their marks."""
        from_parameter = [i for i, m in enumerate(self.marks) if m and m.source is None]
        nested = NESTING.get(self.name)
        if nested is not None and from_parameter:
            return nested(self)
        if self.name in IGNORED:
            return self.natively(), self.unmarked()
        try:
            found = self._structural()
            if found is not None:
                return self.natively(), found
            if not from_parameter:
                return self._of_looked_up(), self.unmarked()
            if len(from_parameter) > 1:
                raise NotUnderstoodError("it meets another parameter")
            return self._linear(from_parameter[0])
        except NotUnderstoodError as error:
            self.walk.findings.refuse(self.marks, f"{self.name}: {error}")
            return self.natively(), self.unmarked()

    def _structural(self) -> list | None:
        found = self.unmarked()
        for operand, mark in enumerate(self.marks):
            if mark is None:
                continue
            views = follow(self.equation, mark.view, operand)
            if views is None:
                return None
            scales: list = [mark.scale] * len(views)
            if mark.scaled == "array":
                given = [*self.values]
                given[operand] = mark.scale
                scales = jaxprs.evaluate(self.jaxpr, self.equation, given)
            for i, (view, scale) in enumerate(zip(views, scales, strict=True)):
                aval = self.equation.outvars[i].aval
                if view is not None and not jaxprs.is_integer_like(aval):
                    found[i] = dataclasses.replace(mark, view=view, scale=scale)
        return found

    def _linear(self, operand: int) -> tuple[list, list]:
        if self.name in LINEAR:
            again = self._still_before_the_examples(operand)
            if again is not None:
                return self.natively(), [again]
        matcher = MATCHERS.get(self.name)
        if matcher is None:
            raise NotUnderstoodError("no rule for this primitive")
        examples, mark, axes = self.walk.examples, self.marks[operand], self.axes
        use = matcher(self._site(operand))
        if mark.early is not None:
            use = late.match(mark.early[0], use)
        elif examples.size is not None and all(axis is None for axis in axes):
            # One result for all examples: it is used where it meets them.
            view = View.whole(mark.view.leaf, self.shape)
            early = (use, tuple(self.values), mark.scale)
            return self.natively(), [Mark(view, early=early)]
        self.walk.findings.uses[self.here] = use
        beside = self.marks[1 - operand] if len(self.marks) == 2 else None
        if beside is not None and self.name in {"add", "add_any"} and not mark.scaled:
            self.walk.findings.joins[self.here] = (beside.source, beside.view)
        result = None
        if use.result is not None:
            result = Mark(use.result, source=self.here)
        if isinstance(use, LookupUse):
            whole = View.whole(mark.view.leaf, self.shape)
            given = (use, tuple(self.values), mark.scale)
            result = Mark(whole, source=self.here, looked_up=given)
        return self._evaluated(use, mark), [result]

    def _of_looked_up(self) -> list:
        """The results, a product of looked-up matrices being the use they are for."""
        found = [i for i, mark in enumerate(self.marks) if mark and mark.looked_up]
        if self.name != "dot_general" or len(found) != 1:
            return self.natively()
        mark = self.marks[found[0]]
        try:
            use = routed.match(self._site(found[0]), mark.looked_up[0])
        except NotUnderstoodError:
            return self.natively()
        self.walk.findings.uses.pop(mark.source, None)
        self.walk.findings.uses[self.here] = use
        return self._evaluated(use, mark)

    def _site(self, operand: int) -> Site:
        mark = self.marks[operand]
        return Site(
            self.here,
            self.equation,
            operand,
            mark.view,
            mark.scaled,
            tuple(self.axes),
            self.walk.examples.size,
        )

    def _evaluated(self, use: Use, mark: Mark) -> list:
        found = (self.walk.taps or {}).get(self.here)
        if found is None:
            return self.natively()
        block, make = found
        op = lambda *operands: jaxprs.evaluate(self.jaxpr, self.equation, operands)[0]
        probe, context = self.live[block]
        if probe is None:  # then `make` changes the op
            return [make(op, use)(*self.values)]
        probe = tree.varying_like(probe, self.values)
        work = make(op, use)
        scale = mark.scale
        before = mark.early or mark.looked_up
        if before is not None:
            scale = (mark.scale, *before[1:])
        return [tap(work, list(self.values), scale, probe, context)]

    def _still_before_the_examples(self, operand: int) -> Mark | None:
        """The mark of a multiple, or of a sum with a constant; None at a use.

        What has no example axis is not yet one example's, so a parameter may go
        through it as a linear map and be used later.
        """
        mark = self.marks[operand]
        if self.name == "neg":
            return mark.times(jnp.asarray(-1.0), self.shape)
        other = self.values[1 - operand]
        before = self.walk.examples.size is not None and self.axes[-1] is None
        multiplies = self.name in {"mul", "div"}
        if self.name == "div" and operand == 1:
            return None
        if not (before or (multiplies and jnp.ndim(other) == 0)):
            return None
        view = scale_shift.described(mark.view, self.shape)
        mark = dataclasses.replace(mark, view=view)
        if self.name == "sub" and operand == 1:
            return mark.times(jnp.asarray(-1.0), self.shape)
        if not multiplies:
            return mark
        factor = other if self.name == "mul" else 1.0 / jnp.asarray(other)
        return mark.times(jnp.asarray(factor), self.shape)


# Parameters that come through these no longer matter to the derivative.
IGNORED = frozenset(
    {"stop_gradient", "iota", "eq", "ne", "lt", "le", "gt", "ge", "sign"}
)
