"""Loops over the examples, read as the batch that they are.

`lax.map`, a scan without memory, or a loop whose step n writes row n of its result is
the same function as `vmap` of its body. Inside the loop no value has an axis of
examples; in the batch every value has, so the loop is traced as the batch and its uses
are read there. That takes the memory of the whole batch. A loop whose steps depend on
each other stays as it is.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Set
from typing import Any

import jax
import jax.numpy as jnp

from natgrad.layers import jaxprs
from natgrad.layers.examples import Path
from natgrad.layers.jaxprs import Equation, Jaxpr

# Ops that a step's number may go through on its way to being an index.
UNCHANGED = {"convert_element_type", "broadcast_in_dim", "reshape", "squeeze", "copy"}


def over_examples(one: Jaxpr, two: Jaxpr, size: int, path: Path = ()) -> set[Path]:
    """Finds the loops over the examples, by comparing two traces.

    Args:
        one: the trace on `size` examples.
        two: the trace on twice as many.
        size: N.
        path: where both jaxprs are.

    Returns:
        Paths of the loops that have `size` steps in one trace and twice as many in the
        other. Those whose steps depend on each other are left out.
    """
    (one, _), (two, _) = jaxprs.opened(one), jaxprs.opened(two)
    if [e.primitive for e in one.eqns] != [e.primitive for e in two.eqns]:
        return set()
    paths = set()
    for index, (e, f) in enumerate(zip(one.eqns, two.eqns, strict=True)):
        here = (*path, index)
        lengths = e.params.get("length"), f.params.get("length")
        if lengths == (size, 2 * size):
            paths |= {here} if _Steps.of(e) is not None else set()
        elif e.primitive.name in jaxprs.CALLS | jaxprs.REMAT:
            paths |= over_examples(jaxprs.called(e), jaxprs.called(f), size, (*here, 0))
    return paths


def batched(apply: Callable, loops: Set[Path]) -> Callable:
    """A function with some of its loops replaced by `vmap` of their bodies.

    Args:
        apply: apply(params, inputs).
        loops: paths of the loops.

    Returns:
        A function of the same arguments with the same results.
    """

    def function(params: Any, inputs: Any) -> Any:
        traced, shape = jaxprs.trace(apply, params, inputs)
        results = _run(traced, jax.tree.leaves((params, inputs)), (), loops)
        return jax.tree.unflatten(jax.tree.structure(shape), results)

    return function


def _run(jaxpr: Jaxpr, values: list, path: Path, loops: Set[Path]) -> list:
    jaxpr, constants = jaxprs.opened(jaxpr)
    env = dict(
        zip((*jaxpr.constvars, *jaxpr.invars), [*constants, *values], strict=True)
    )

    def value(v):
        return v.val if jaxprs.is_literal(v) else env[v]

    for index, equation in enumerate(jaxpr.eqns):
        here, operands = (*path, index), [value(v) for v in equation.invars]
        inside = any(loop[: len(here)] == here for loop in loops)
        steps = _Steps.of(equation) if here in loops else None
        if steps is not None:
            results = steps.at_once(equation, operands)
        elif inside:
            sub = jaxprs.called(equation)

            def body(*v, sub=sub, here=here):
                return _run(sub, list(v), (*here, 0), loops)

            if equation.primitive.name in jaxprs.REMAT:
                params = equation.params
                body = jax.checkpoint(
                    body, policy=params["policy"], prevent_cse=params["prevent_cse"]
                )
            results = body(*operands)
        else:
            results = jaxprs.evaluate(jaxpr, equation, operands)
        env |= dict(zip(equation.outvars, results, strict=True))
    return [value(v) for v in jaxpr.outvars]


@dataclasses.dataclass(frozen=True)
class _Steps:
    """A scan whose steps do not depend on each other.

    Attributes:
        counters: operands of the body that are the step's number, plus a start.
        written: place among what is carried -> what each step writes as one row of it.
    """

    counters: frozenset
    written: dict[int, Any]

    @classmethod
    def of(cls, equation: Equation) -> _Steps | None:
        """The steps of a scan; None if they depend on each other."""
        if equation.primitive.name != "scan":
            return None
        body = jaxprs.opened(jaxprs.called(equation))[0]
        first, carried = jaxprs.scan_counts(equation)
        made = {v: e for e in body.eqns for v in e.outvars}
        counters, zeros = step_numbers(equation)
        pairs = list(
            zip(body.invars[first : first + carried], body.outvars, strict=False)
        )
        reads, written = jaxprs.use_counts(body), {}
        for place, (v, out) in enumerate(pairs):
            if out is v or v in counters:
                continue
            row = _row(v, made.get(_hashable(out)), zeros, made)
            if (
                row is None
                or reads[v] != 1
                or v.aval.shape[0] != equation.params["length"]
            ):
                return None
            written[place] = row
        return cls(frozenset(counters), written)

    def at_once(self, equation: Equation, values: list) -> list:
        """The results of all steps, by `vmap`."""
        body, constants = jaxprs.opened(jaxprs.called(equation))
        first, carried = jaxprs.scan_counts(equation)
        length, fixed = equation.params["length"], values[:first]
        start, rows = values[first : first + carried], values[first + carried :]
        outvars = [*(self.written.values()), *body.outvars[carried:]]
        alone = body.replace(outvars=outvars)
        carries = body.invars[first : first + carried]

        def step(number, rows):
            counted = [
                c + number.astype(c.dtype) if v in self.counters else c
                for v, c in zip(carries, start, strict=True)
            ]
            return jaxprs.run(alone, constants, [*fixed, *counted, *rows])

        numbers = jnp.arange(length)
        numbers = numbers[::-1] if equation.params["reverse"] else numbers
        stacked = jax.vmap(step)(numbers, rows)
        results = [
            jnp.asarray(c) + jnp.asarray(length, c.dtype) if v in self.counters else c
            for v, c in zip(carries, map(jnp.asarray, start), strict=True)
        ]
        for place, written in zip(self.written, stacked, strict=False):
            result = written.reshape(results[place].shape)
            results[place] = result[numbers] if equation.params["reverse"] else result
        return [*results, *stacked[len(self.written) :]]


def step_numbers(equation: Equation) -> tuple[set, set]:
    """What counts the steps of a scan.

    Args:
        equation: the scan.

    Returns:
        Operands of the body that are the step's number plus a start, and those of them
        that start at 0.
    """
    body = jaxprs.opened(jaxprs.called(equation))[0]
    first, carried = jaxprs.scan_counts(equation)
    made = {v: e for e in body.eqns for v in e.outvars}
    carries, starts = (
        variables[first : first + carried]
        for variables in (body.invars, equation.invars)
    )
    results = body.outvars[:carried]
    counters = {
        v
        for v, out in zip(carries, results, strict=True)
        if _counts(v, made.get(_hashable(out)))
    }
    zeros = {
        v
        for v, start in zip(carries, starts, strict=True)
        if v in counters and jaxprs.is_literal(start) and start.val == 0
    }
    return counters, zeros


def _hashable(v):
    return None if jaxprs.is_literal(v) else v


def _counts(v, equation: Equation | None) -> bool:
    """Is the equation v + 1?"""
    if equation is None or equation.primitive.name != "add":
        return False
    one, two = equation.invars
    one, two = (two, one) if jaxprs.is_literal(one) else (one, two)
    return one is v and jaxprs.is_literal(two) and two.val == 1


def _row(v, equation: Equation | None, counters, made):
    """What the equation writes as row n of v in step n; None if it does otherwise."""
    if equation is None:
        return None
    name = equation.primitive.name
    if name == "dynamic_update_slice":
        whole, update, *index = equation.invars
        rest = all(jaxprs.is_literal(i) and i.val == 0 for i in index[1:]) or (
            update.aval.shape[1:] == v.aval.shape[1:]
        )
        shape = (1, *v.aval.shape[1:])
        fits = (
            rest and update.aval.shape == shape and is_number(index[0], counters, made)
        )
        return update if whole is v and fits else None
    if name == "scatter":
        whole, index, update = equation.invars
        numbers = equation.params["dimension_numbers"]
        fits = (
            tuple(numbers.inserted_window_dims) == (0,)
            and tuple(numbers.scatter_dims_to_operand_dims) == (0,)
            and tuple(numbers.update_window_dims) == tuple(range(len(v.aval.shape) - 1))
            and not numbers.operand_batching_dims
            and index.aval.shape == (1,)
            and update.aval.shape == v.aval.shape[1:]
            and is_number(index, counters, made)
        )
        return update if whole is v and fits else None
    return None


def is_number(v, counters, made) -> bool:
    """Is a value the step's number, perhaps with the wrap of a negative index?

    Args:
        v: a variable of the body.
        counters: those that are.
        made: variable -> the equation that makes it.
    """
    if jaxprs.is_literal(v) or v in counters:
        return not jaxprs.is_literal(v)
    equation = made.get(v)
    if equation is None:
        return False
    if equation.primitive.name in UNCHANGED:
        return is_number(equation.invars[0], counters, made)
    if equation.primitive.name != "select_n":
        return False
    which, otherwise, _ = equation.invars
    asked = made.get(_hashable(which))
    return (
        asked is not None
        and asked.primitive.name == "lt"
        and jaxprs.is_literal(asked.invars[1])
        and asked.invars[1].val == 0
        and is_number(asked.invars[0], counters, made)
        and is_number(otherwise, counters, made)
    )
