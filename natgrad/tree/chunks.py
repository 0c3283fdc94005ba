"""Loops over chunks of examples, in which each device keeps its own examples.

Under `jax.jit` N examples that are spread over D devices lie on them in a row, N/D
each. A chunk of neighbours would lie on one device, and XLA would gather all examples
on every device to loop over chunks there. So a chunk takes as many of each device:
examples are seen as [D, N/D, ...] and cut along the second axis.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from natgrad.tree.sums import zeros_of
from natgrad.typing import Array, ArrayLike


def device_parts(count: int) -> int:
    """D, in how many equal parts examples may lie on devices; 1 on one device.

    Inside `jax.shard_map` the examples are one device's, and D is 1.

    Args:
        count: N.
    """
    if jax.sharding.get_abstract_mesh().manual_axes:
        return 1
    devices = jax.device_count()
    return devices if count % devices == 0 else 1


def slice_chunk(
    array: Array, first: ArrayLike, number: int, *, axis: int = 0, parts: int = 1
) -> Array:
    """Some entries of each of the equal parts of an axis.

    Args:
        array: any.
        first: the first entry of each part that is taken; may be traced.
        number: how many are taken of each part.
        axis: that is cut.
        parts: D.

    Returns:
        An array whose axis has D · number entries.
    """
    before, after = array.shape[:axis], array.shape[axis + 1 :]
    apart = array.reshape((*before, parts, array.shape[axis] // parts, *after))
    taken = jax.lax.dynamic_slice_in_dim(apart, first, number, axis + 1)
    return taken.reshape((*before, parts * number, *after))


def sum_over_chunks(
    function: Callable[[Any], Any], examples: Any, chunk_size: int, parts: int = 1
) -> Any:
    """Σ over chunks of function(chunk).

    One chunk is alive at a time, in the backward pass of a derivative too.

    Args:
        function: a tree of leaves [n, ...] -> a tree of arrays, the same for every n.
        examples: a tree of leaves [N, ...].
        chunk_size: n of all chunks but the last, which may be smaller; a multiple of D
            is taken, at least D.
        parts: D, which divides N; see `device_parts`.

    Returns:
        A tree like one result of `function`.
    """
    size, each, full = _sizes(examples, chunk_size, parts)
    if size >= each:
        return function(examples)
    stacked = _stacked(examples, size, full, parts)
    first = jax.tree.map(lambda leaf: leaf[0], stacked)
    step = jax.checkpoint(function)
    zeros = zeros_of(jax.eval_shape(step, first))
    total, _ = jax.lax.scan(
        lambda total, chunk: (jax.tree.map(jnp.add, total, step(chunk)), None),
        zeros,
        stacked,
    )
    if full * size < each:
        rest = _rest(examples, full * size, parts)
        total = jax.tree.map(jnp.add, total, step(rest))
    return total


def map_over_chunks(
    function: Callable[[Any], Any], examples: Any, chunk_size: int, parts: int = 1
) -> Any:
    """What function gives for every chunk, one after the other in the examples' order.

    Args:
        function: a tree of leaves [n, ...] -> a tree of leaves [n, ...], for every n.
        examples: as of `sum_over_chunks`.
        chunk_size: as of `sum_over_chunks`.
        parts: as of `sum_over_chunks`.

    Returns:
        A tree of leaves [N, ...].
    """
    size, each, full = _sizes(examples, chunk_size, parts)
    if size >= each:
        return function(examples)
    found = jax.lax.map(function, _stacked(examples, size, full, parts))

    def by_part(leaf):  # [full, D n, ...] -> [D, full n, ...]
        own = leaf.shape[2:]
        apart = jnp.swapaxes(leaf.reshape((full, parts, size, *own)), 0, 1)
        return apart.reshape((parts, full * size, *own))

    found = jax.tree.map(by_part, found)
    if full * size < each:
        rest = function(_rest(examples, full * size, parts))
        found = jax.tree.map(
            lambda a, b: jnp.concatenate(
                [a, b.reshape((parts, each - full * size, *b.shape[1:]))], axis=1
            ),
            found,
            rest,
        )
    return jax.tree.map(lambda a: a.reshape((parts * each, *a.shape[2:])), found)


def pairs_of_chunks(
    make: Callable[[Any], Any],
    product: Callable[[Any, Any], Array],
    examples: Any,
    chunk_size: int,
    parts: int = 1,
) -> Array:
    """⟨r_kn, r_jm⟩ of all pairs of examples, [K, N, K, N], two chunks alive at a time.

    What is made of a chunk is kept while it meets the half of the chunks that follow it
    in a circle, so each chunk is made about N/2n times.

    Args:
        make: a tree of leaves [n, ...] -> the rows r of these examples.
        product: (rows, rows) -> their inner products, [K, n, K, n].
        examples: as of `sum_over_chunks`.
        chunk_size: as of `sum_over_chunks`; the last chunk is filled up.
        parts: as of `sum_over_chunks`.
    """
    size, each, _ = _sizes(examples, chunk_size, parts)
    number = -(-each // size)
    stacked = _stacked(filled(examples, chunk_size, parts), size, number, parts)
    half = number // 2 + 1

    def chunk(i):
        return make(jax.tree.map(lambda leaf: leaf[i % number], stacked))

    @jax.checkpoint
    def of_first(i):
        own = chunk(i)
        of_second = jax.checkpoint(lambda d: product(own, chunk(i + d)))
        return jax.lax.map(of_second, jnp.arange(half))

    blocks = jax.lax.map(of_first, jnp.arange(number))  # [i, d, K, Dn, K, Dn]
    k = blocks.shape[2]
    blocks = blocks.reshape((number * half, *blocks.shape[2:]))
    i, j = np.indices((number, number))
    ahead, behind = (j - i) % number, (i - j) % number
    below = ahead >= half
    found = blocks[np.where(below, j * half + behind, i * half + ahead)]
    turned = jnp.moveaxis(found, (2, 3), (4, 5))
    found = jnp.where(below[..., None, None, None, None], turned, found)
    found = found.reshape((number, number, *2 * (k, parts, size)))
    found = found.transpose((2, 3, 0, 4, 5, 6, 1, 7))  # [K, D, i, n, K, D, j, n]
    found = found.reshape((k, parts, number * size, k, parts, number * size))
    found = found[:, :, :each, :, :, :each]
    return found.reshape((k, parts * each, k, parts * each))


def filled(examples: Any, chunk_size: int, parts: int = 1) -> Any:
    """Examples whose last chunk is filled up, in each part by its first examples.

    What is outside of a loop over full chunks, XLA keeps for the loops that follow.

    Args:
        examples: as of `sum_over_chunks`.
        chunk_size: as of `sum_over_chunks`.
        parts: as of `sum_over_chunks`.
    """
    size, each, _ = _sizes(examples, chunk_size, parts)

    def fill(leaf):
        apart = leaf.reshape((parts, each, *leaf.shape[1:]))
        whole = jnp.concatenate([apart, apart[:, : -each % size]], axis=1)
        return whole.reshape((-1, *leaf.shape[1:]))

    return jax.tree.map(fill, examples)


def unfilled(array: Array, count: int, parts: int = 1) -> Array:
    """What belongs to the examples that there were before they were filled up.

    Args:
        array: [N' >= N, ...].
        count: N.
        parts: as of `sum_over_chunks`.
    """
    apart = array.reshape((parts, -1, *array.shape[1:]))[:, : count // parts]
    return apart.reshape((count, *array.shape[1:]))


def zeros_for_filled(array: Array, count: int, parts: int = 1) -> Array:
    """The inverse of `unfilled`, with zeros.

    Args:
        array: [N, ...].
        count: N'.
        parts: as of `sum_over_chunks`.
    """
    apart = array.reshape((parts, -1, *array.shape[1:]))
    more = ((0, 0), (0, count // parts - apart.shape[1])) + ((0, 0),) * (array.ndim - 1)
    return jnp.pad(apart, more).reshape((count, *array.shape[1:]))


def _sizes(examples: Any, chunk_size: int, parts: int) -> tuple[int, int, int]:
    """Of each part: examples of a chunk, examples, and full chunks."""
    each = jax.tree.leaves(examples)[0].shape[0] // parts
    size = min(max(1, chunk_size // parts), each)
    return size, each, each // size


def _stacked(examples: Any, size: int, full: int, parts: int) -> Any:
    """The full chunks, leaves [full, D · size, ...]."""

    def stack(leaf):
        own = leaf.shape[1:]
        apart = leaf.reshape((parts, leaf.shape[0] // parts, *own))
        apart = apart[:, : full * size].reshape((parts, full, size, *own))
        return jnp.swapaxes(apart, 0, 1).reshape((full, parts * size, *own))

    return jax.tree.map(stack, examples)


def _rest(examples: Any, done: int, parts: int) -> Any:
    """What is left of each part after so many examples."""

    def cut(leaf):
        each, own = leaf.shape[0] // parts, leaf.shape[1:]
        apart = leaf.reshape((parts, each, *own))[:, done:]
        return apart.reshape((parts * (each - done), *own))

    return jax.tree.map(cut, examples)
