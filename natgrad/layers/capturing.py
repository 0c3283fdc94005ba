"""Capture: trace a model, find its blocks, check that no use was missed."""

from __future__ import annotations

import collections
import contextlib
import contextvars
import dataclasses
import math
from collections.abc import Iterator
from typing import Any

import jax
import jax.core
import jax.numpy as jnp

from natgrad import tree
from natgrad.layers import jaxprs, loops, proof, rewriting
from natgrad.layers.assemble import blocks_of
from natgrad.layers.blocks import DeclaredBlock
from natgrad.layers.captured import Captured
from natgrad.layers.declared import Declared, DenseBlock, Leaf, declaration
from natgrad.layers.examples import Examples
from natgrad.layers.fingerprint import fingerprint
from natgrad.layers.interpreter import Interpreter, around, is_followed, walked
from natgrad.layers.jaxprs import Program
from natgrad.layers.nesting import same_derivative
from natgrad.layers.proof import TRACED, Proof
from natgrad.layers.trials import bare, is_mapped, outside, tolerance
from natgrad.layers.views import NotCapturedError
from natgrad.model import batch
from natgrad.typing import Apply, Inputs, Params

_VERIFYING: contextvars.ContextVar[bool] = contextvars.ContextVar(
    "natgrad.layers.verify", default=False
)


@contextlib.contextmanager
def verify(enabled: bool = True) -> Iterator[None]:
    """Checks every model that is captured inside by numbers too, as a context manager.

        with natgrad.layers.verify():
            curvature.init(params)

    Without it, what is checked is that every equation that reads a parameter is
    understood, and that no parameter reaches the outputs around the uses found: both by
    the trace alone. With it the gradient is also put together from the uses and
    compared with that of JAX, at random parameters and inputs. That compiles and runs
    two backward passes, once for each program: about twice the time that the gradient
    takes to compile. `natgrad.layers.report` does it always.

    Args:
        enabled: whether to check by numbers.

    Yields:
        Nothing.

    Raises:
        ValueError: inside, a parameter's gradient is not the sum over the uses found.
    """
    token = _VERIFYING.set(enabled)
    try:
        yield
    finally:
        _VERIFYING.reset(token)


def capture(
    apply: Apply,
    params: Params,
    inputs: Inputs,
    *,
    in_axes: Any = 0,
    declared: Declared | None = None,
    program: Program | None = None,
) -> Captured:
    """Traces `apply` and finds every use of every parameter.

    It is traced at each call, so that what it reads from Python, such as an attribute,
    counts with its present value. What was found is kept for programs with the same
    equations. It is checked, by the trace alone, that no parameter reaches the outputs
    around the uses found. A custom derivative that a parameter goes through is compiled
    and run once, at random points, beside the function it replaces. Within
    `natgrad.layers.verify` the gradient is put together from the uses and compared with
    that of JAX, which compiles and runs two backward passes at random parameters, once
    for each program.

    Args:
        apply: apply(params, inputs) -> z [N, ...].
        params: parameters, arrays or shapes.
        inputs: inputs, arrays or shapes.
        in_axes: 0 or None for each leaf of the inputs, as for `Model`.
        declared: path of a parameter or subtree -> `DenseBlock()` or `DiagonalBlock()`,
            for what is to be treated by hand.
        program: the trace of apply(params, inputs), where the caller has it.

    Raises:
        ValueError: a large parameter of two or more axes is used in a way that is not
            understood, or the uses found do not account for a gradient.
    """
    declared, traceable = dict(declared or {}), apply
    if program is None:
        program = jaxprs.trace(apply, params, inputs)
    size = batch.input_count(inputs, in_axes)
    traced = program.jaxpr
    if jaxprs.has_loop(traced, size):
        traceable = _without_loops(apply, traced, params, inputs, in_axes, size)
        traced, _ = jaxprs.trace(traceable, params, inputs)
    some = jaxprs.has_primitive(traced, (*jaxprs.JOINS, "dynamic_slice"))
    if some and rewriting.hides_uses(traced, len(jax.tree.leaves(params))):
        traceable = rewriting.rewritten(traceable)
        traced, _ = jaxprs.trace(traceable, params, inputs)
    key = _key(traced, params, inputs, in_axes, declared)
    found = _FOUND.get(key) if key is not None else None
    if found is None or not found.holds_for(traced):
        found = _analysed(traceable, traced, params, inputs, in_axes, declared)
    structure = jax.tree.structure(program.shape)
    captured = found.captured(apply, in_axes, traced, structure)
    if _VERIFYING.get() and not found.proof.computed:
        done = _proven(captured, apply, params, inputs, in_axes, declared)
        captured = dataclasses.replace(captured, proof=done)
        found = dataclasses.replace(found, proof=done) if done.computed else found
    _remember(key, found)
    return captured


@dataclasses.dataclass(frozen=True)
class Found:
    """What is known of a program: see `Captured`.

    Attributes:
        marked: leaves some use of which needs what comes before it in the program.
        rules: custom derivative -> whether it is that of the function it replaces.
    """

    blocks: tuple
    uncovered: tuple[str, ...]
    precision: float
    examples: Examples
    marked: set[int]
    rules: dict
    proof: Proof = TRACED

    def holds_for(self, traced) -> bool:
        """Have the custom derivatives of another trace what was found of this one's?"""
        return all(
            same_derivative(*jaxprs.equation_at(traced, path)) == same
            for path, same in self.rules.items()
        )

    def captured(self, apply: Apply, in_axes: Any, traced, structure) -> Captured:
        """The blocks of a trace; `structure` is that of its results."""
        return Captured(
            self.blocks,
            self.uncovered,
            self.proof,
            self.precision,
            apply,
            in_axes,
            traced,
            structure,
            self.examples,
            self.marked,
        )


_FOUND: collections.OrderedDict[Any, Found] = collections.OrderedDict()
_KEPT = 64


def _remember(key: Any, found: Found) -> None:
    """Keeps what was found of a program; nothing is kept where there is no key."""
    if key is None:
        return
    _FOUND[key] = found
    _FOUND.move_to_end(key)
    while len(_FOUND) > _KEPT:
        _FOUND.popitem(last=False)


def _key(traced, params, inputs, in_axes, declared):
    """Programs with one key have the same uses; None where no key can be made."""
    try:
        key = (
            fingerprint(traced),
            jax.tree.structure((params, inputs)),
            repr(in_axes),
            tuple(sorted(declared.items(), key=str)),
            jnp.result_type(float),  # float64 under jax_enable_x64
            jax.sharding.get_abstract_mesh(),
        )
        hash(key)
    except TypeError:
        return None
    return key


def _analysed(apply, traced, params, inputs, in_axes, declared) -> Found:
    size = batch.input_count(inputs, in_axes)
    examples = Examples(traced, _doubled(apply, params, inputs, in_axes, size), size)
    walk = Interpreter(examples)

    def discover(params, inputs):
        walked(walk, traced, params, inputs, {})

    jax.eval_shape(discover, params, inputs)
    leaves = [
        Leaf(i, name, jnp.shape(leaf), str(jnp.result_type(leaf)))
        for i, (name, leaf) in enumerate(
            zip(tree.paths(params), jax.tree.leaves(params), strict=True)
        )
        if is_followed(leaf)
    ]
    blocks = blocks_of(leaves, walk.findings, declared, size)
    floats = jaxprs.float_dtypes(traced) | {leaf.dtype for leaf in leaves}
    _check_around(traced, examples, walk.findings.uses, leaves, blocks, params, inputs)
    return Found(
        blocks,
        _uncovered(leaves, blocks),
        tolerance(floats),
        examples,
        walk.findings.marked,
        walk.findings.rules,
    )


def _without_loops(apply, traced, params, inputs, in_axes, size):
    """The function with its loops over the examples as batches; see `loops`."""
    doubled = _doubled(apply, params, inputs, in_axes, size)
    found = set() if doubled is None else loops.over_examples(traced, doubled, size)
    return loops.batched(apply, found) if found else apply


def _check_around(traced, examples, uses, leaves, blocks, params, inputs) -> None:
    """Raises where a parameter has a way to the outputs that was not found."""
    by_hand = {i for b in blocks if isinstance(b, DeclaredBlock) for i in b.leaves}
    names = {leaf.index: leaf.name for leaf in leaves if leaf.index not in by_hand}
    missed = around(traced, examples, uses, list(names), params, inputs)
    if missed:
        name = names[min(missed)]
        raise NotCapturedError(
            f"The parameter {name!r} reaches the outputs otherwise than by the uses "
            "that were found of it. Declare it instead: "
            f"{declaration([name], DenseBlock)}."
        )


def _proven(captured, apply, params, inputs, in_axes, declared) -> Proof:
    """How the numerical check of `natgrad.layers.verify` went."""
    constants = jaxprs.opened(captured._traced)[1]
    if any(isinstance(c, jax.core.Tracer) for c in constants):
        return Proof(False, "not checked: apply closes over traced values")
    if not is_mapped(captured._traced):
        return proof.prove(captured, apply, params, inputs)
    shapes = jax.tree.map(bare, (params, inputs))

    def alone() -> Proof:
        try:
            with verify():
                found = capture(apply, *shapes, in_axes=in_axes, declared=declared)
        except NameError as error:
            return Proof(False, f"not checked: {error}")
        return found.proof

    return outside(alone)


def _doubled(apply, params, inputs, in_axes, size: int | None):
    """The trace on twice as many examples; None where there is none."""
    if size is None:
        return None
    found = []

    def trace(params, inputs):
        batched, _ = batch.split_inputs(inputs, in_axes)
        twice = {id(leaf): jnp.concatenate([leaf, leaf]) for leaf in batched}
        inputs = jax.tree.map(lambda leaf: twice.get(id(leaf), leaf), inputs)
        found.append(jaxprs.trace(apply, params, inputs)[0])

    try:
        jax.eval_shape(trace, params, inputs)
    except Exception:
        return None
    return found[0]


def _uncovered(leaves, blocks) -> tuple[str, ...]:
    covered: collections.Counter = collections.Counter()
    for block in blocks:
        if isinstance(block, DeclaredBlock):
            covered.update({leaf: float("inf") for leaf in block.leaves})
            continue
        for part in (block.weight, block.shift):
            if part is not None:
                sizes = [size for _, size, _ in part.region]
                covered[part.leaf] += math.prod(sizes)
    return tuple(
        leaf.name for leaf in leaves if covered[leaf.index] < math.prod(leaf.shape)
    )
