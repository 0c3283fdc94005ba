"""One equation that reads something which comes from a parameter.

An equation that uses a marked value linearly is a use; if its path is among the taps it
is evaluated through its tap (`natgrad.layers.tap`). What is around a use (scan, remat,
cond, shard_map) is emitted again around the tapped body (`natgrad.layers.nesting`).
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Mapping
from typing import Any

import jax.numpy as jnp

from natgrad.layers import conv, dense, embedding, jaxprs, late, routed, scale_shift
from natgrad.layers.embedding import LookupUse
from natgrad.layers.examples import ExampleAxis, Path
from natgrad.layers.nesting import NESTING
from natgrad.layers.tap import evaluated
from natgrad.layers.uses import Mark, Marks, Site, Use
from natgrad.layers.views import NotUnderstoodError, View, follow

# How to read the equation, by the primitive's name.
MATCHERS = {
    "dot_general": dense.match,
    "conv_general_dilated": conv.match,
    "gather": embedding.match,
    **dict.fromkeys(scale_shift.KINDS, scale_shift.match),
}
LINEAR = frozenset({"neg", "select_n", *scale_shift.KINDS})

# Parameters that come through these no longer matter to the derivative.
IGNORED = frozenset(
    {"stop_gradient", "iota", "eq", "ne", "lt", "le", "gt", "ge", "sign"}
)


@dataclasses.dataclass
class Step:
    """One equation, some operand of which comes from a parameter.

    `axis` gives the example axis of a variable; `need` is whether the derivative of
    each result matters; `walk` is the interpreter.
    """

    walk: Any
    jaxpr: Any
    equation: Any
    values: list
    marks: list[Marks]
    here: Path
    axis: Callable[[Any], ExampleAxis | None]
    live: Mapping[str, tuple]
    need: list[bool]

    @functools.cached_property
    def axes(self) -> list[ExampleAxis | None]:
        """The example axes of the operands and, last, of the first result."""
        variables = (*self.equation.invars, self.equation.outvars[0])
        return [self.axis(v) for v in variables]

    @property
    def name(self) -> str:
        """The primitive."""
        return self.equation.primitive.name

    @property
    def shape(self) -> tuple[int, ...]:
        """The shape of the first result."""
        return self.equation.outvars[0].aval.shape

    @property
    def early(self) -> bool:
        """Is the first result one for all examples?"""
        return self.walk.examples.size is not None and self.axes[-1] is None

    def from_parameters(self) -> list[Marks]:
        """The marks, without those of the results of other uses."""
        return [tuple(m for m in marks if m.source is None) for marks in self.marks]

    def natively(self) -> list:
        """The results, by JAX."""
        return jaxprs.evaluate(self.jaxpr, self.equation, self.values)

    def unmarked(self) -> list[Marks]:
        """No result comes from a parameter any more."""
        return [()] * len(self.equation.outvars)

    def take(self) -> tuple[list, list[Marks]]:
        """The results and their marks."""
        mine = self.from_parameters()
        nested = NESTING.get(self.name)
        if nested is not None and (any(mine) or self.here in self.walk.around_taps):
            return nested(self)
        if self.name in IGNORED:
            return self.natively(), self.unmarked()
        refuse = self.walk.findings.refuse
        try:
            found = self._structural()
        except NotUnderstoodError as error:
            refuse(mine, f"{self.name}: {error}")
            return self.natively(), self.unmarked()
        if found is not None:
            return self.natively(), found
        if not any(mine):
            return self._of_looked_up(), self.unmarked()
        if sum(map(bool, mine)) > 1 and not self.early:
            refuse(mine, f"{self.name}: it meets another parameter")
            return self.natively(), self.unmarked()
        uses, passed = [], []
        several = sum(map(len, mine)) > 1
        for operand, marks in enumerate(mine):
            for mark in marks:
                # Uses of one equation have paths of their own.
                path = (*self.here, -1 - len(uses)) if several else self.here
                try:
                    found = self._linear(operand, mark, path)
                except NotUnderstoodError as error:
                    refuse([(mark,)], f"{self.name}: {error}")
                    continue
                (passed if isinstance(found, Mark) else uses).append(found)
        return self._evaluated(uses), [(*passed, *self._result_of(uses))]

    def _structural(self) -> list[Marks] | None:
        found = self.unmarked()
        for operand, marks in enumerate(self.marks):
            for mark in marks:
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
                        moved = dataclasses.replace(mark, view=view, scale=scale)
                        found[i] = (*found[i], moved)
        return found

    def _linear(self, operand: int, mark: Mark, path: Path) -> Mark | tuple[Use, Mark]:
        """The mark of the result, or the use of this one."""
        if self.name in LINEAR:
            again = self._still_before_the_examples(operand, mark)
            if again is not None:
                return again
        matcher = MATCHERS.get(self.name)
        if matcher is None:
            raise NotUnderstoodError("no rule for this primitive")
        use = matcher(self._site(operand, mark, path))
        if mark.early is not None:
            use = late.match(mark.early[0], use)
        elif self.walk.examples.size is not None and not any(
            axis is not None for axis in self.axes
        ):
            # One result for all examples: it is used where it meets them.
            view = View.whole(mark.view.leaf, self.shape)
            return Mark(view, early=(use, tuple(self.values), mark.scale))
        self._note(path, use, mark)
        beside = self.marks[1 - operand] if len(self.marks) == 2 else ()
        if beside and self.name in {"add", "add_any"} and not mark.scaled:
            self.walk.findings.joins[path] = (beside[0].source, beside[0].view)
        return use, mark

    def _note(self, path: Path, use: Use, mark: Mark) -> None:
        """What was found: the use, and whether its tap needs more than its operands."""
        findings = self.walk.findings
        findings.uses[path] = use
        before = mark.early or mark.looked_up or mark.scale is not None
        if before or path != self.here:
            findings.marked.add(mark.view.leaf)

    def _result_of(self, uses: list) -> Marks:
        """The mark that the first use leaves on the result."""
        if not uses or uses[0][0].result is None:
            return ()
        use, mark = uses[0]
        if not isinstance(use, LookupUse):
            return (Mark(use.result, source=use.path),)
        if len(uses) > 1:
            return ()
        looked_up = (use, tuple(self.values), mark.scale)
        whole = View.whole(mark.view.leaf, self.shape)
        return (Mark(whole, source=use.path, looked_up=looked_up),)

    def _of_looked_up(self) -> list:
        """The results, a product of looked-up matrices being the use they are for."""
        found = [
            (i, mark, mark.looked_up[0])
            for i, marks in enumerate(self.marks)
            for mark in marks
            if mark.looked_up
        ]
        if self.name != "dot_general" or len(found) != 1:
            return self.natively()
        ((operand, mark, lookup),) = found
        site = self._site(operand, mark, self.here)
        try:
            use = routed.match(site, lookup)
        except NotUnderstoodError:
            return self.natively()
        self.walk.findings.uses.pop(mark.source, None)
        self._note(self.here, use, mark)
        return self._evaluated([(use, mark)])

    def _site(self, operand: int, mark: Mark, path: Path) -> Site:
        return Site(
            path,
            self.equation,
            operand,
            mark.view,
            mark.scaled,
            tuple(self.axes),
            self.walk.examples.size,
        )

    def _evaluated(self, uses: list) -> list:
        """The results, through the taps of those uses that have one."""
        taps = []
        for use, mark in uses:
            if (found := self.walk.taps.get(use.path)) is not None:
                before = mark.early or mark.looked_up
                scale = mark.scale if before is None else (mark.scale, *before[1:])
                taps.append((found, scale))
        if not taps:
            return self.natively()
        return evaluated(self.jaxpr, self.equation, self.values, taps, self.live)

    def _still_before_the_examples(self, operand: int, mark: Mark) -> Mark | None:
        """The mark of a multiple, or of a sum with a constant; None at a use.

        What has no example axis is not yet one example's, so a parameter may go
        through it as a linear map and be used later.
        """
        if self.name == "neg":
            return mark.times(jnp.asarray(-1.0), self.shape)
        if self.name == "select_n":
            if operand == 0 or not self.early:
                raise NotUnderstoodError("no rule for this primitive")
            taken = jnp.asarray(
                self.values[0] == operand - 1, self.values[operand].dtype
            )
            return mark.times(taken, self.shape)
        other = self.values[1 - operand]
        multiplies = self.name in {"mul", "div"}
        if self.name == "div" and operand == 1:
            return None
        if not (self.early or (multiplies and jnp.ndim(other) == 0)):
            return None
        view = scale_shift.described(mark.view, self.shape)
        mark = dataclasses.replace(mark, view=view)
        if self.name == "sub" and operand == 1:
            return mark.times(jnp.asarray(-1.0), self.shape)
        if not multiplies:
            return mark
        factor = other if self.name == "mul" else 1.0 / jnp.asarray(other)
        return mark.times(jnp.asarray(factor), self.shape)
