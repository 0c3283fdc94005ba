"""Which axis of each value runs over the examples: trace twice, compare the shapes.

The same function is traced on N examples and on 2N. An axis whose size doubles, from
kN to 2kN, holds the examples; no rule about any primitive is needed for that. Only
when other axes were merged with it (k > 1, a reshape of [N, T, I] to [N T, I]) is its
order needed too:

    position = (outer index, example, inner index),     k = outer · inner,

which follows from the reshape that made it and is inherited by values of the same size.
Where the two traces cannot be laid side by side (a Python loop over the batch), or two
axes double at once, the answer is UNKNOWN and whoever needs it is told so.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Sequence

from natgrad.layers import jaxprs
from natgrad.layers.jaxprs import Jaxpr

Path = tuple[int, ...]


@dataclasses.dataclass(frozen=True)
class ExampleAxis:
    """Axis `axis` of size outer · N · inner, the example being its middle digit."""

    axis: int
    outer: int = 1
    inner: int = 1


# The examples are in there, and it could not be found out where.
UNKNOWN = ExampleAxis(-1)


class Examples:
    """The example axis of every variable of a traced function.

    Variables are found by the path of the jaxpr they live in, (equation, sub-jaxpr,
    equation, ...), since one jaxpr may be called in several places, and by their number
    in it (`jaxprs.numbers`), so that another trace of the same program reads them too.

    Attributes:
        size: N, or None when no input has an example axis.
    """

    def __init__(self, traced: Jaxpr, doubled: Jaxpr | None, size: int | None):
        self.size = size
        self._axes: dict[tuple[Path, int], ExampleAxis | None] = {}
        self._aligned: set[Path] = set()
        if size is not None and doubled is not None:
            self._walk(traced, doubled, size, (), {})

    def axis(self, path: Path, number: int | None) -> ExampleAxis | None:
        """The example axis of a variable.

        Args:
            path: of its jaxpr.
            number: its own, None for a literal.

        Returns:
            The axis; None if the variable has none; UNKNOWN if it could not be found
            out.
        """
        if self.size is None or number is None:
            return None
        if path not in self._aligned:
            return UNKNOWN
        return self._axes.get((path, number), UNKNOWN)

    def _walk(self, one: Jaxpr, two: Jaxpr, size: int, path: Path, known: dict) -> None:
        """Notes the axes of all variables of a jaxpr, those of some operands known."""

        def record(number: int, v, w, candidates: Sequence) -> None:
            shape, doubled = (getattr(x.aval, "shape", ()) for x in (v, w))
            self._axes[path, number] = _compared(shape, doubled, size, candidates)

        (one, _), (two, _) = jaxprs.opened(one), jaxprs.opened(two)
        names = [[e.primitive.name for e in j.eqns] for j in (one, two)]
        if names[0] != names[1] or len(one.invars) != len(two.invars):
            return
        self._aligned.add(path)
        numbers = jaxprs.numbers(one)
        for v, w in zip(
            (*one.constvars, *one.invars), (*two.constvars, *two.invars), strict=True
        ):
            record(numbers[v], v, w, [known[v]] if v in known else [])
        for index, (e, f) in enumerate(zip(one.eqns, two.eqns, strict=True)):
            operands = [
                self.axis(path, None if jaxprs.is_literal(v) else numbers[v])
                for v in e.invars
            ]
            for v, w in zip(e.outvars, f.outvars, strict=True):
                record(numbers[v], v, w, _merged(e, v, operands, size))
            if e.primitive.name == "shard_map":
                # One device's share of the examples has another size.
                continue
            if e.params.get("length") != f.params.get("length"):
                # A loop over the examples, whose steps have no axis of them.
                continue
            subs = zip(jaxprs.sub_jaxprs(e), jaxprs.sub_jaxprs(f), strict=True)
            for place, (sub, other) in enumerate(subs):
                inner = jaxprs.opened(sub)[0].invars
                same = len(inner) == len(operands)
                marks = dict(zip(inner, operands, strict=True)) if same else {}
                self._walk(sub, other, size, (*path, index, place), marks)


def _compared(
    shape: Sequence[int], doubled: Sequence[int], size: int, candidates: Sequence
) -> ExampleAxis | None:
    """The axis that doubled; of several orders the candidates agree on one."""
    if len(shape) != len(doubled):
        return UNKNOWN
    changed = [i for i, (a, b) in enumerate(zip(shape, doubled, strict=True)) if a != b]
    if not changed:
        return None
    axis = changed[0]
    if len(changed) > 1 or doubled[axis] != 2 * shape[axis] or shape[axis] % size:
        return UNKNOWN
    factor = shape[axis] // size
    if factor == 1:
        return ExampleAxis(axis)
    orders = {
        (c.outer, c.inner) for c in candidates if c and c.outer * c.inner == factor
    }
    return ExampleAxis(axis, *orders.pop()) if len(orders) == 1 else UNKNOWN


def _merged(equation, result, operands: Sequence, size: int) -> list[ExampleAxis]:
    """Orders (outer, inner) that a result of the equation may have."""
    known = [mark for mark in operands if mark and mark != UNKNOWN]
    if equation.primitive.name == "concatenate" and known:
        axis, pieces = equation.params["dimension"], len(operands)
        if all(mark == ExampleAxis(axis) for mark in operands):
            return [ExampleAxis(axis, pieces, 1)]
    if equation.primitive.name != "reshape" or not known:
        return known
    (mark,), shape = known, equation.invars[0].aval.shape
    order = equation.params.get("dimensions") or range(len(shape))
    shape = [shape[axis] for axis in order]
    axis = list(order).index(mark.axis)
    # Row-major: entries after the example digit, in the whole array.
    after = mark.inner * math.prod(shape[axis + 1 :])
    orders, stride = [], 1
    for new in reversed(range(len(result.aval.shape))):
        length = result.aval.shape[new]
        inner = after // stride if after % stride == 0 else 0
        if inner and length % (inner * size) == 0:
            orders.append(ExampleAxis(new, length // (inner * size), inner))
        stride *= length
    return orders
