"""Parameter trees as vectors, their checks, and sums over chunks of examples.

Only what `jax.tree` and `optax.tree` lack.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from natgrad.typing import Array, Key, Params


def working_dtype(*trees: Any) -> jnp.dtype:
    """The floating dtype statistics are kept in: at least float32.

    bfloat16 and float16 leaves give float32, float64 leaves float64.
    """
    leaves = [leaf for tree in trees for leaf in jax.tree.leaves(tree)]
    return jnp.result_type(jnp.float32, *(leaf.dtype for leaf in leaves))


@dataclasses.dataclass(frozen=True)
class Layout:
    """How a parameter tree lies in a vector [P], in `ravel_pytree` order.

    Hashable, so it can be the static part of a metric.
    """

    treedef: Any
    shapes: tuple[tuple[int, ...], ...]
    dtypes: tuple[Any, ...]

    @classmethod
    def of(cls, params: Params) -> Layout:
        """The layout of `params`; raises where a leaf is not a real floating array."""
        check_params(params)
        leaves, treedef = jax.tree.flatten(params)
        if not leaves:
            raise ValueError("params has no array leaves: there is nothing to solve.")
        return cls(
            treedef,
            tuple(jnp.shape(leaf) for leaf in leaves),
            tuple(jnp.result_type(leaf) for leaf in leaves),
        )

    @property
    def sizes(self) -> tuple[int, ...]:
        """The number of parameters in each leaf."""
        return tuple(math.prod(shape) for shape in self.shapes)

    @property
    def size(self) -> int:
        """P, the number of parameters."""
        return sum(self.sizes)

    @property
    def dtype(self) -> jnp.dtype:
        """The dtype of the vector: at least float32."""
        return jnp.result_type(jnp.float32, *self.dtypes)

    def ravel(self, tree: Params, lead: int = 0) -> Array:
        """Concatenate the leaves, keeping `lead` leading axes: [..., P]."""
        leaves = self.treedef.flatten_up_to(tree)
        flat = [
            jnp.reshape(leaf, (*jnp.shape(leaf)[:lead], -1)).astype(self.dtype)
            for leaf in leaves
        ]
        return jnp.concatenate(flat, axis=-1)

    def split(self, vector: Array) -> Params:
        """A tree shaped like the parameters, in the vector's dtype, from [P]."""
        leaves, start = [], 0
        for shape, size in zip(self.shapes, self.sizes, strict=True):
            leaves.append(vector[start : start + size].reshape(shape))
            start += size
        return jax.tree.unflatten(self.treedef, leaves)

    def unravel(self, vector: Array) -> Params:
        """A tree shaped like the parameters, in their dtypes, from [P]."""
        leaves = jax.tree.leaves(self.split(vector))
        cast = [
            leaf.astype(dtype) for leaf, dtype in zip(leaves, self.dtypes, strict=True)
        ]
        return jax.tree.unflatten(self.treedef, cast)

    def positions(self, leaf: int) -> np.ndarray:
        """Where the entries of leaf number `leaf` lie in the vector."""
        start = sum(self.sizes[:leaf])
        return np.arange(start, start + self.sizes[leaf])

    def check(self, tree: Any, name: str) -> None:
        """Raise a ValueError unless `tree` is shaped like the parameters."""
        given = [jnp.shape(leaf) for leaf in jax.tree.leaves(tree)]
        if jax.tree.structure(tree) != self.treedef or given != list(self.shapes):
            raise ValueError(
                f"{name} must be shaped like the parameters. Expected "
                f"{jax.tree.unflatten(self.treedef, self.shapes)}, got "
                f"{jax.tree.map(jnp.shape, tree)}."
            )


def check_sharding(what: str, array: Array) -> None:
    """Raise a ValueError where an array is sharded over explicit axes of a mesh."""
    sharding = jax.typeof(array).sharding
    axes = [axis for axis in sharding.spec if axis is not None]
    if axes:
        raise ValueError(
            f"{what} sharded over explicit axes of the mesh, {axes}: make it with "
            "axis_types=(jax.sharding.AxisType.Auto,), or under jax.set_mesh wrap "
            "the step in jax.sharding.auto_axes(step, out_sharding=PartitionSpec())."
        )


def check_params(params: Params) -> None:
    """Raise a ValueError unless every leaf is a real floating array.

    Nor may one be sharded over explicit axes of a mesh.
    """
    for path, leaf in jax.tree_util.tree_leaves_with_path(params):
        dtype = jnp.result_type(leaf)
        if not jnp.issubdtype(dtype, jnp.floating):
            where = jax.tree_util.keystr(path) or "params"
            raise ValueError(
                f"Every parameter must be a real floating array, but {where} has "
                f"dtype {dtype}. Cast it to a floating dtype, or keep what is not "
                "trained out of params: it can travel in inputs (see Model.in_axes)."
            )
        if isinstance(leaf, jax.Array):
            where = jax.tree_util.keystr(path) or "params"
            check_sharding(f"The parameter {where} is", leaf)


def check_kept(kept: Any, now: Any) -> None:
    """Raise a ValueError unless what a state kept has the shapes of what is there now.

    Args:
        kept: a part of an optimizer's state.
        now: the same part for the parameters of this step.
    """
    expected, given = (jax.tree.map(jnp.shape, each) for each in (kept, now))
    if given != expected:
        raise ValueError(
            "The optimizer's state was made for parameters of other shapes: it keeps "
            f"{expected}, where these parameters need {given}. Call init(params) again "
            "when the shapes of the parameters change."
        )


def paths(params: Params) -> list[str]:
    """One name a leaf, such as 'dense_1/kernel', in leaf order."""
    return [
        jax.tree_util.keystr(path, simple=True, separator="/")
        for path, _ in jax.tree_util.tree_leaves_with_path(params)
    ]


def all_finite(tree: Any) -> Array:
    """A boolean scalar: does every floating leaf hold finite numbers only?"""
    # The sum is finite if all entries are, since they cannot overflow together when
    # scaled down by more than there are of them: one reading of memory, and the least
    # to compile.
    sums = [
        jnp.sum(2.0**-66 * leaf.astype(working_dtype(leaf)))
        for leaf in map(jnp.asarray, jax.tree.leaves(tree))
        if jnp.issubdtype(leaf.dtype, jnp.inexact)
    ]
    return jnp.isfinite(sum(sums)) if sums else jnp.array(True)


def increment(count: Array, when: Array | bool = True, period: int = 1) -> Array:
    """count + 1 where `when` holds, without overflow and in the dtype of `count`.

    At the largest number it falls back by one period, so that count % period goes on.

    Args:
        count: an integer >= 0 (or −1), shape ().
        when: a boolean, shape ().
        period: of what is done every so many counts.
    """
    largest = jnp.iinfo(count.dtype).max
    step = jnp.where(count == largest, 1 - period, 1)
    return count + jnp.where(when, step, 0).astype(count.dtype)


def where(condition: Array, tree: Any, other: Any) -> Any:
    """`tree` where the scalar `condition` holds, else `other`, leaf by leaf."""
    return jax.tree.map(lambda a, b: jnp.where(condition, a, b), tree, other)


def inner(tree: Any, other: Any) -> Array:
    """⟨tree, other⟩ in the working dtype, shape ()."""
    dtype = working_dtype(tree, other)
    products = jax.tree.map(
        lambda a, b: jnp.vdot(
            a.astype(dtype), b.astype(dtype), precision=jax.lax.Precision.HIGHEST
        ),
        tree,
        other,
    )
    return sum(jax.tree.leaves(products), start=jnp.zeros((), dtype))


def sum_over_chunks(
    function: Callable[[Any], Any], examples: Any, chunk_size: int
) -> Any:
    """Σ over chunks of function(chunk), where a chunk holds `chunk_size` examples.

    Every leaf of `examples` has the leading axis N; the last chunk may be smaller.
    One chunk is alive at a time, in the backward pass of a derivative too.
    """
    count = jax.tree.leaves(examples)[0].shape[0]
    whole = count // chunk_size
    if whole <= 1 and count <= chunk_size:
        return function(examples)
    stacked = jax.tree.map(
        lambda leaf: leaf[: whole * chunk_size].reshape(
            (whole, chunk_size, *leaf.shape[1:])
        ),
        examples,
    )
    first = jax.tree.map(lambda leaf: leaf[0], stacked)
    zeros = zeros_of(jax.eval_shape(function, first))
    step = jax.checkpoint(function)
    total, _ = jax.lax.scan(
        lambda total, chunk: (jax.tree.map(jnp.add, total, step(chunk)), None),
        zeros,
        stacked,
    )
    if whole * chunk_size < count:
        rest = jax.tree.map(lambda leaf: leaf[whole * chunk_size :], examples)
        total = jax.tree.map(jnp.add, total, step(rest))
    return total


def zeros_of(shapes: Any) -> Any:
    """Zeros of these shapes and dtypes, which vary over devices where these do.

    Inside shard_map a scan needs that of a sum to start from.
    """
    return jax.tree.map(
        lambda leaf: varying_like(jnp.zeros(leaf.shape, leaf.dtype), leaf), shapes
    )


def varying_like(values: Any, operands: Any) -> Any:
    """The values, declared to vary over every mesh axis that an operand varies over.

    Inside shard_map a statistic is one device's; the derivative of this declaration
    sums it over the devices.
    """
    axes = varying(operands)

    def declared(value):
        missing = tuple(sorted(axes - varying(value)))
        return jax.lax.pcast(value, missing, to="varying") if missing else value

    return jax.tree.map(declared, values)


def varying(values: Any) -> frozenset:
    """The mesh axes over which some leaf differs from device to device."""
    leaves = jax.tree.leaves(values)
    return frozenset().union(
        *(jax.typeof(leaf).manual_axis_type.varying for leaf in leaves)
    )


def raw_key(key: Key) -> Array:
    """The key's data, an array of integers, whether the key is typed or raw."""
    typed = jnp.issubdtype(key.dtype, jax.dtypes.prng_key)
    return jax.random.key_data(key) if typed else key


def metric_pytree(*static: str):
    """A class decorator: a frozen dataclass and a pytree with these fields static."""

    def register(cls):
        cls = dataclasses.dataclass(frozen=True, eq=False)(cls)
        names = [field.name for field in dataclasses.fields(cls)]
        data = [name for name in names if name not in static]
        return jax.tree_util.register_dataclass(cls, data, list(static))

    return register
