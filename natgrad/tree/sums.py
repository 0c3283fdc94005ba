"""Arithmetic of trees, and which of them differ from device to device."""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float, Integer, UInt

from natgrad.tree.layout import working_dtype
from natgrad.typing import Array, Key

_SMALL = 4096


def all_finite(tree: Any) -> Bool[Array, ""]:
    """Does every floating leaf hold finite numbers only?

    Args:
        tree: a tree of arrays; leaves that are not floating count as finite.
    """
    # x − x is 0, or NaN where x is not finite: one reading of memory, and the least to
    # compile. A product with a constant would be that, and an array of constants.
    leaves = _gathered(
        [
            leaf.astype(working_dtype(leaf))
            for leaf in map(jnp.asarray, jax.tree.leaves(tree))
            if jnp.issubdtype(leaf.dtype, jnp.inexact)
        ]
    )
    sums = [jnp.sum(leaf - leaf) for leaf in leaves]
    return jnp.isfinite(sum(sums)) if sums else jnp.array(True)


def any_nonzero(tree: Any) -> Bool[Array, ""]:
    """Is some entry other than 0, as NaN is?

    Args:
        tree: a tree of floating arrays.
    """
    # By a sum, which XLA has at hand where other reductions are compiled.
    leaves = _gathered(jax.tree.leaves(tree))
    return ~(jnp.asarray(sum(jnp.sum(jnp.abs(leaf)) for leaf in leaves)) == 0)


def largest(
    values: Float[Array, "..."], axis: int | None = None
) -> Float[Array, "..."]:
    """The maximum, NaN where an entry is.

    On CPUs XLA's own maximum of 4096 entries or more passes over NaN; its sums do not.

    Args:
        values: an array.
        axis: over which; None for all.
    """
    lost = jnp.sum(jnp.where(jnp.isnan(values), values, 0), axis)
    return jnp.max(values, axis) + lost


def increment(
    count: Integer[Array, ""], when: Bool[Array, ""] | bool = True, period: int = 1
) -> Integer[Array, ""]:
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


def where(condition: Bool[Array, ""], tree: Any, other: Any) -> Any:
    """One of two trees, leaf by leaf.

    Args:
        condition: a boolean scalar.
        tree: what is taken where it holds.
        other: what is taken elsewhere, with leaves of the same shapes.
    """

    def chosen(a, b):
        return a if a is b else jnp.where(condition, a, b)

    return jax.tree.map(chosen, tree, other)


def zeros_where(condition: Bool[Array, ""], tree: Any) -> Any:
    """Zeros where the condition holds, else the tree.

    Args:
        condition: a boolean scalar.
        tree: a tree of arrays; a copy, unless it is read entry by entry.
    """
    return where(condition, jax.tree.map(jnp.zeros_like, tree), tree)


def inner(tree: Any, other: Any) -> Float[Array, ""]:
    """⟨tree, other⟩, at full precision in the working dtype.

    Args:
        tree: a tree of arrays.
        other: one with leaves of the same shapes.
    """
    dtype = working_dtype(tree, other)
    leaves, structure = jax.tree.flatten(tree)
    ones, others = (
        _gathered([leaf.astype(dtype) for leaf in each])
        for each in (leaves, structure.flatten_up_to(other))
    )
    products = map(functools.partial(jnp.vdot, precision="highest"), ones, others)
    return sum(products, start=jnp.zeros((), dtype))


def _gathered(leaves: Sequence[Array]) -> list[Array]:
    """The leaves, small ones in one vector with zeros, for the same sums.

    XLA compiles the sum of a small array into three functions of its own, which cost
    far more than a copy; from `_SMALL` entries on it has one at hand. Sharded leaves
    stay as they are.
    """
    small = [
        leaf.size < _SMALL and not any(jax.typeof(leaf).sharding.spec)
        for leaf in leaves
    ]
    rest = [leaf for leaf, is_small in zip(leaves, small, strict=True) if not is_small]
    flat = [
        leaf.reshape(-1)
        for leaf, is_small in zip(leaves, small, strict=True)
        if is_small
    ]
    if not flat:
        return rest
    dtype = working_dtype(flat)
    missing = max(0, _SMALL - sum(leaf.size for leaf in flat))
    pieces = [leaf.astype(dtype) for leaf in flat] + [jnp.zeros(missing, dtype)]
    return [jnp.concatenate(pieces), *rest]


def raw_key(key: Key) -> UInt[Array, " n"]:
    """The key's data, whether the key is typed or raw.

    Args:
        key: a random key.
    """
    typed = jnp.issubdtype(key.dtype, jax.dtypes.prng_key)
    return jax.random.key_data(key) if typed else key


def next_key(key: UInt[Array, " n"]) -> UInt[Array, " n"]:
    """The raw key of the next step: one more in its first word.

    A seed below 2³² is the last word, so no key of another seed is met. Keys of which
    one word differs by one are as independent as those of seeds that do (Salmon et al.
    2011, Parallel random numbers: as easy as 1, 2, 3), and `jax.random.split` is a
    loop, which takes as long to compile as a layer.

    Args:
        key: as `jax.random.PRNGKey` gives it.
    """
    return key + (np.arange(key.shape[-1]) == 0).astype(key.dtype)


def zeros_of(shapes: Any) -> Any:
    """Zeros that vary over devices where the given leaves do.

    Inside shard_map a scan needs that of the sum that it starts from.

    Args:
        shapes: a tree of arrays or of `jax.ShapeDtypeStruct`s.

    Returns:
        A tree of arrays of these shapes and dtypes.
    """
    return jax.tree.map(
        lambda leaf: varying_like(jnp.zeros(leaf.shape, leaf.dtype), leaf), shapes
    )


def varying_like(values: Any, operands: Any) -> Any:
    """The values, declared to vary over every mesh axis that an operand varies over.

    Inside shard_map a statistic is one device's; the derivative of this declaration
    sums it over the devices.

    Args:
        values: a tree of arrays.
        operands: a tree of arrays.

    Returns:
        A tree of the same numbers as `values`.
    """
    axes = varying(operands)

    def declared(value):
        missing = tuple(sorted(axes - varying(value)))
        return jax.lax.pcast(value, missing, to="varying") if missing else value

    return jax.tree.map(declared, values)


def varying(values: Any) -> frozenset:
    """The mesh axes over which some leaf differs from device to device.

    Args:
        values: a tree of arrays.
    """
    leaves = jax.tree.leaves(values)
    return frozenset().union(
        *(jax.typeof(leaf).manual_axis_type.varying for leaf in leaves)
    )


def same_on_devices(values: Any, like: Any) -> Any:
    """Values that are equal on all devices, declared so, by a mean over them.

    Args:
        values: a tree of arrays.
        like: a tree of arrays; over the axes that none of them varies over the values
            are equal.
    """
    axes = tuple(sorted(varying(values) - varying(like)))
    return jax.lax.pmean(values, axes) if axes else values
