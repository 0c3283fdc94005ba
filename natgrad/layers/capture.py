"""Capture: trace a model once for each set of shapes, find its blocks, prove them."""

from __future__ import annotations

import collections
import concurrent.futures
import dataclasses
import math
from typing import Any

import jax
import jax.numpy as jnp

from natgrad import batch, tree
from natgrad.layers import jaxprs, proof
from natgrad.layers.assemble import blocks_of
from natgrad.layers.blocks import DeclaredBlock
from natgrad.layers.captured import Captured, walked
from natgrad.layers.declared import Declared, Leaf
from natgrad.layers.examples import Examples
from natgrad.layers.interpreter import Interpreter
from natgrad.layers.trials import tolerance
from natgrad.typing import Apply, Inputs, Params


def capture(
    apply: Apply,
    params: Params,
    inputs: Inputs,
    *,
    in_axes: Any = 0,
    declared: Declared | None = None,
) -> Captured:
    """Traces `apply` and finds every use of every parameter.

    Args:
        apply: apply(params, inputs) -> z [N, ...].
        params: parameters, arrays or shapes.
        inputs: inputs, arrays or shapes.
        in_axes: 0 or None for each leaf of the inputs, as for `Model`.
        declared: path of a parameter or subtree -> `Exact()` or `Diagonal()`, for what
            is to be treated by hand.

    Raises:
        ValueError: a parameter of two or more axes is used in a way that is not
            understood, or the uses found do not account for a gradient.
    """
    return _cached(apply, params, inputs, in_axes, dict(declared or {}))


_CACHE: collections.OrderedDict = collections.OrderedDict()
_CACHE_SIZE = 64


def _cached(apply, params, inputs, in_axes, declared) -> Captured:
    """The capture of these shapes, never of these values."""
    leaves, structure = jax.tree.flatten((params, inputs))
    key = (
        apply,
        structure,
        tuple(jax.typeof(leaf) for leaf in leaves),
        repr(in_axes),
        tuple(sorted(declared.items(), key=str)),
        jax.config.jax_enable_x64,
        jax.sharding.get_abstract_mesh(),
    )
    try:
        hash(key)
    except TypeError:
        return _captured(apply, params, inputs, in_axes, declared)[0]
    if key in _CACHE:
        _CACHE.move_to_end(key)
        return _CACHE[key]
    captured, closes_over_tracers = _captured(apply, params, inputs, in_axes, declared)
    if not closes_over_tracers:
        _CACHE[key] = captured
        while len(_CACHE) > _CACHE_SIZE:
            _CACHE.popitem(last=False)
    return captured


def _captured(apply, params, inputs, in_axes, declared) -> tuple[Captured, bool]:
    traced, shape = jax.make_jaxpr(apply, return_shape=True)(params, inputs)
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
        if jnp.issubdtype(jnp.result_type(leaf), jnp.inexact) and jnp.size(leaf)
    ]
    blocks = blocks_of(leaves, walk.findings, declared, size)
    captured = Captured(
        blocks,
        _uncovered(leaves, blocks),
        "",
        tolerance(_floats(traced, leaves)),
        apply,
        in_axes,
        traced,
        jax.tree.structure(shape),
        examples,
    )
    constants = jaxprs.opened(traced)[1]
    tracers = any(isinstance(c, jax.core.Tracer) for c in constants)
    if tracers:
        proven = "not checked: apply closes over traced values"
    elif set(jax.sharding.get_abstract_mesh().axis_types) - {
        jax.sharding.AxisType.Auto
    }:
        proven = _proven_apart(apply, params, inputs, in_axes, declared)
    else:
        proven = proof.prove(captured, apply, params, inputs)
    return dataclasses.replace(captured, proven=proven), tracers


def _floats(traced, leaves) -> set[str]:
    return jaxprs.float_dtypes(traced) | {leaf.dtype for leaf in leaves}


def _proven_apart(apply, params, inputs, in_axes, declared) -> str:
    """The proof where a mesh has manual or explicit axes: of the same shapes, without.

    Mesh and traces are local to a thread, so another thread is outside of all; so are
    settings made by a context manager, of which two decide what `apply` may do.
    """
    wide, ranks = jax.config.jax_enable_x64, jax.config.jax_numpy_rank_promotion
    bare = lambda leaf: jax.ShapeDtypeStruct(jnp.shape(leaf), jnp.result_type(leaf))
    shapes = jax.tree.map(bare, (params, inputs))

    def alone() -> str:
        try:
            with jax.enable_x64(wide), jax.numpy_rank_promotion(ranks):
                return _cached(apply, *shapes, in_axes, declared).proven
        except NameError as error:
            return f"not checked: {error}"

    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        return pool.submit(alone).result()


def _doubled(apply, params, inputs, in_axes, size: int | None):
    """The trace on twice as many examples; None where there is none."""
    if size is None:
        return None
    found = []

    def trace(params, inputs):
        batched, _ = batch.split_inputs(inputs, in_axes)
        twice = {id(leaf): jnp.concatenate([leaf, leaf]) for leaf in batched}
        inputs = jax.tree.map(lambda leaf: twice.get(id(leaf), leaf), inputs)
        found.append(jax.make_jaxpr(apply)(params, inputs))

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
