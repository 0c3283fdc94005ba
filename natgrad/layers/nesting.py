"""Equations that run other jaxprs: emitted again around the tapped body.

A scan sums over time and stacks over layers, a switch leaves zeros in the branches not
taken, rematerialisation recomputes inputs instead of keeping them: all by JAX's own
derivative rules, because each is emitted as itself with the probes among its operands.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from natgrad.layers import jaxprs
from natgrad.layers.fingerprint import fingerprint
from natgrad.layers.trials import disagreement, draw, tolerance

# An interpreter's `Step`: one equation, some operand of which comes from a parameter.
Step = Any


def _inline(step: Step) -> tuple[list, list]:
    """A call: as if its equations stood here."""
    sub = jaxprs.called(step.equation)
    path = (*step.here, 0)
    return step.walk.run(sub, step.values, step.marks, path, step.live, step.need)


def _inside(step: Step, sub, values, marks, number: int, live) -> list:
    """The results of a jaxpr inside, out of which no parameter may come as it is."""
    path = (*step.here, number)
    results, found = step.walk.run(sub, values, marks, path, live, None)
    step.walk.findings.refuse(found, f"{step.name}: it comes out as it went in")
    return results


def _custom(step: Step) -> tuple[list, list]:
    """A function with a derivative of its own: inlined only if that changes nothing."""
    same = same_derivative(step.jaxpr, step.equation)
    step.walk.findings.rules[step.here] = same
    if same:
        return _inline(step)
    reason = f"{step.name}: it has a derivative of its own"
    step.walk.findings.refuse(step.marks, reason)
    return step.natively(), step.unmarked()


def _remat(step: Step) -> tuple[list, list]:
    """Rematerialisation, with its policy, around the tapped body."""
    if not step.walk.tapped_under(step.here):
        return step.natively(), step.unmarked()
    params, sub = step.equation.params, jaxprs.called(step.equation)
    marks = step.from_parameters()

    def body(values, live):
        return _inside(step, sub, values, marks, 0, live)

    again = jax.checkpoint(
        body, policy=params["policy"], prevent_cse=params["prevent_cse"]
    )
    return again(step.values, dict(step.live)), step.unmarked()


def _cond(step: Step) -> tuple[list, list]:
    """A switch: probes of the branches not taken stay zero."""
    if not step.walk.tapped_under(step.here):
        return step.natively(), step.unmarked()

    def branch(number: int, jaxpr):
        marks = step.from_parameters()[1:]
        return lambda values, live: _inside(step, jaxpr, values, marks, number, live)

    branches = [branch(i, j) for i, j in enumerate(step.equation.params["branches"])]
    which, values = jnp.asarray(step.values[0], jnp.int32), step.values[1:]
    return jax.lax.switch(which, branches, values, dict(step.live)), step.unmarked()


def _scan(step: Step) -> tuple[list, list]:
    """A scan: parameters sliced by it get stacked probes, constant ones are summed."""
    if not step.walk.tapped_under(step.here):
        return step.natively(), step.unmarked()
    params, sub = step.equation.params, jaxprs.called(step.equation)
    constants, carried = jaxprs.scan_counts(step.equation)
    body_jaxpr = jaxprs.opened(sub)[0]
    if params["length"] > 1:
        step.walk.findings.loops.add(step.here)
    marks, findings = step.from_parameters(), step.walk.findings
    for i in range(constants, constants + carried):
        if body_jaxpr.outvars[i - constants] is not body_jaxpr.invars[i]:
            findings.refuse([marks[i]], "scan: it is carried and changed")
            marks[i] = ()
    for i in range(constants + carried, len(marks)):
        sliced = [m for m in marks[i] if m.scaled != "array" and m.early is None]
        rest = [m for m in marks[i] if m.scaled == "array" or m.early is not None]
        findings.refuse([rest], "scan: it is multiplied before it is sliced")
        marks[i] = tuple(
            dataclasses.replace(m, view=m.view.scanned(step.here)) for m in sliced
        )
    sliced = step.walk.stacked.get(step.here, frozenset())
    stacked = {k: v for k, v in step.live.items() if k in sliced}
    shared = {k: v for k, v in step.live.items() if k not in sliced}
    fixed, values = step.values[:constants], step.values[constants:]

    def body(carry, slices):
        xs, stacked = slices
        given = [*fixed, *carry, *xs]
        path, live = (*step.here, 0), {**shared, **stacked}
        out, found = step.walk.run(sub, given, marks, path, live)
        same = zip(body_jaxpr.outvars, body_jaxpr.invars[constants:], strict=False)
        unchanged = [out is v for out, v in same][:carried]
        lost = [m for i, m in enumerate(found) if i >= carried or not unchanged[i]]
        findings.refuse(lost, "scan: it comes out as it went in")
        return out[:carried], out[carried:]

    carry, ys = jax.lax.scan(
        body,
        values[:carried],
        (values[carried:], stacked),
        length=params["length"],
        reverse=params["reverse"],
        unroll=params["unroll"],
    )
    kept = marks[constants : constants + carried]
    return [*carry, *ys], [*kept, *([()] * len(ys))]


def _shard_map(step: Step) -> tuple[list, list]:
    """A map over devices: replicated parameters are followed into it."""
    if not step.walk.tapped_under(step.here):
        return step.natively(), step.unmarked()
    params, marks = step.equation.params, step.from_parameters()
    for i, (mine, spec) in enumerate(zip(marks, params["in_specs"], strict=True)):
        split = any(axis is not None for axis in spec)
        if split or any(m.scaled or m.early for m in mine):
            step.walk.findings.refuse([mine], "shard_map: it is split over devices")
            marks[i] = ()

    def body(values, live):
        return _inside(step, params["jaxpr"], values, marks, 0, live)

    everywhere = jax.sharding.PartitionSpec()
    mapped = jax.shard_map(
        body,
        mesh=params["mesh"],
        in_specs=(list(params["in_specs"]), everywhere),
        out_specs=list(params["out_specs"]),
        axis_names=set(params["newly_manual_axes"]),
        check_vma=params["check_vma"],
    )
    return mapped(step.values, dict(step.live)), step.unmarked()


NESTING: dict[str, Callable[[Step], tuple[list, list]]] = {
    **dict.fromkeys(jaxprs.CALLS, _inline),
    **dict.fromkeys(jaxprs.CUSTOM, _custom),
    **dict.fromkeys(jaxprs.REMAT, _remat),
    "cond": _cond,
    "scan": _scan,
    "shard_map": _shard_map,
}


def same_derivative(jaxpr, equation) -> bool:
    """Whether a custom rule has the derivative of the function it replaces.

    Values and pullbacks are compared at random points, so a rule that only rewrites a
    derivative more accurately passes, and a straight-through or clipped gradient does
    not. It is compiled and run once for each rule, as far as it can be told from others
    by its trace.

    Args:
        jaxpr: the jaxpr that holds the equation.
        equation: a call with a custom derivative.

    Returns:
        True where both agree to rounding.
    """
    generator = np.random.default_rng(0)
    values = [
        v.val if jaxprs.is_literal(v) else draw(generator, v.aval)
        for v in equation.invars
    ]
    cotangents = [draw(generator, v.aval) for v in equation.outvars]
    called = jaxprs.called(equation)

    def both(values, cotangents):
        def given(*xs):
            return jaxprs.evaluate(jaxpr, equation, xs)

        def plain(*xs):
            return jaxprs.as_function(called)(*xs)

        return [_pulled(function, values, cotangents) for function in (given, plain)]

    def decide() -> bool:
        mine, other = traced.lower().compile()(values, cotangents)
        types = jaxprs.float_dtypes(called) | {str(v.dtype) for v in cotangents}
        return all(
            disagreement(a, b) < tolerance(types)
            for a, b in zip(jax.tree.leaves(mine), jax.tree.leaves(other), strict=True)
            if jnp.issubdtype(a.dtype, jnp.inexact)
        )

    traced = jax.jit(both).trace(values, cotangents)
    try:
        key = fingerprint(traced.jaxpr, values=True)
        hash(key)
    except TypeError:
        return decide()
    if key not in _DECIDED:
        _DECIDED[key] = decide()
        if len(_DECIDED) > _KEPT:
            del _DECIDED[next(iter(_DECIDED))]
    return _DECIDED[key]


# What `same_derivative` found: the trace of a rule beside that of its function -> it.
_DECIDED: dict[Any, bool] = {}
_KEPT = 256


def _pulled(function, values, cotangents) -> tuple:
    out, pull = jax.vjp(lambda *xs: tuple(function(*xs)), *values)
    return out, pull(tuple(cotangents))
