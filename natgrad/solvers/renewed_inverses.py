"""Inverses of damped matrices, renewed one at a time where the old ones lie.

What `natgrad.solvers.spd_inverse.inverses` gives, for matrices of which only some are
due. On CPUs there is room for one matrix of each program beside what is kept: a matrix
is copied there, inverted, and its inverse written over the old one. Elsewhere matrices
of near sizes are one batch, as an accelerator wants them.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float

from natgrad.control_flow import any_over_vmap, cond_in_place
from natgrad.solvers.block_elimination import ELIMINATION, InverseRule
from natgrad.solvers.spd_inverse import guarded_inverse, shared_sizes
from natgrad.solvers.spectral import HIGHEST
from natgrad.typing import Array


class Kept(NamedTuple):
    """An inverse that is kept, and what it is to be made of.

    Attributes:
        matrix: M, symmetric and positive semi-definite.
        share: δ >= 0, what is added to its diagonal.
        due: shall the inverse be renewed?
        old: the inverse so far.
    """

    matrix: Float[Array, "*lead d d"]
    share: Float[Array, "*lead"]
    due: Bool[Array, ""]
    old: Float[Array, "*lead d d"]


def renewed_inverses(
    kept: Sequence[Kept], first: Bool[Array, ""], rule: InverseRule = ELIMINATION
) -> tuple[list[Float[Array, "*lead d d"]], list[Array], Array]:
    """(M + δI)⁻¹ where they are due, else the old ones.

    Args:
        kept: the inverses, each with its matrix.
        first: are there no old ones? Else one that is not finite replaces none.
        rule: how a matrix is inverted.

    Returns:
        (the inverses; of each the number 1 where the rule failed, else 0; how many
        were renewed).
    """
    sizes, mixed = shared_sizes([one.matrix.shape[-1] for one in kept])
    programs: dict = {}
    for i, one in enumerate(kept):
        key = sizes[one.matrix.shape[-1]], one.matrix.dtype
        programs.setdefault(key, []).append(i)
    inverses: list = [None] * len(kept)
    failed: list = [None] * len(kept)
    number = jnp.zeros((), jnp.int32)
    for (size, _), members in programs.items():
        batch = _Batch(size, [kept[i].matrix.shape for i in members])
        inverse = functools.partial(_inverse, rule, mixed)
        new, failures, count = _renewed(
            batch, inverse, [kept[i] for i in members], first
        )
        number = number + count
        for i, inverse, failure in zip(members, new, failures, strict=True):
            inverses[i], failed[i] = inverse, failure
    return inverses, failed, number


@functools.partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def _inverse(
    rule: InverseRule,
    mixed: frozenset[int],
    matrix: Array,
    floor: Array,
    size: Array,
) -> tuple[Array, Array]:
    return guarded_inverse(rule, mixed, matrix, floor, size)


@_inverse.defjvp
def _inverse_jvp(rule, mixed, primals, tangents):
    inverse, failed = _inverse(rule, mixed, *primals)
    change = functools.reduce(
        functools.partial(jnp.matmul, precision=HIGHEST),
        (-inverse, tangents[0], inverse),
    )
    return (inverse, failed), (change, jnp.zeros_like(failed))


class _Batch:
    """The matrices of one program, those of a stack [lead..., d, d] one by one."""

    def __init__(self, size: int, shapes: Sequence[tuple[int, ...]]):
        self.size = size
        self.shapes = shapes
        counts = [math.prod(shape[:-2]) for shape in shapes]
        self.owners = np.repeat(np.arange(len(shapes)), counts)
        self.places = np.concatenate([np.arange(count) for count in counts])
        self.own_sizes = np.repeat([shape[-1] for shape in shapes], counts)

    def flat(self, arrays: Sequence[Array]) -> list[Array]:
        """Each with one leading axis."""
        return [a.reshape((-1, *a.shape[-2:])) for a in arrays]

    def shaped(self, arrays: Sequence[Array]) -> list[Array]:
        """Each in its own shape again."""
        return [a.reshape(s) for a, s in zip(arrays, self.shapes, strict=True)]

    def each(self, scalars: Sequence[Array]) -> Array:
        """One number a stack, or one a matrix, as one a matrix of the batch."""
        leads = [shape[:-2] for shape in self.shapes]
        wide = map(jnp.broadcast_to, scalars, leads)
        return jnp.concatenate([jnp.reshape(one, -1) for one in wide])

    def largest(self, numbers: Array) -> list[Array]:
        """The largest number of each stack."""
        ends = np.cumsum([math.prod(shape[:-2]) for shape in self.shapes])
        return [jnp.max(part) for part in jnp.split(numbers, ends[:-1])]


class _Program(NamedTuple):
    """What inverts the matrices of a batch, and what they are made of.

    Attributes:
        batch: their shapes.
        guarded: (matrix, δ, own size) -> its inverse, 1 where the rule failed.
        matrices: each with one leading axis.
        shares: δ of each matrix of the batch.
        first: are there no old inverses?
    """

    batch: _Batch
    guarded: Callable[..., tuple[Array, Array]]
    matrices: list[Array]
    shares: Array
    first: Array

    def enlarged(self, k: Any, place: Any, share: Array) -> Array:
        """M + δI of a matrix of the k-th stack, [size, size] with zeros."""
        matrix = jax.lax.dynamic_index_in_dim(self.matrices[k], place, keepdims=False)
        matrix = matrix + share * jnp.eye(matrix.shape[-1], dtype=matrix.dtype)
        return jnp.pad(matrix, [(0, self.batch.size - matrix.shape[-1])] * 2)

    def inverse(self, *matrix: Array) -> tuple[Array, Array, Array]:
        """Of an enlarged matrix; did the rule fail, and may it replace another?"""
        inverse, failed = self.guarded(*matrix)
        sound = self.first | jnp.isfinite(jnp.sum(inverse))
        return inverse, failed.astype(self.shares.dtype), sound


def _renewed(
    batch: _Batch,
    guarded: Callable[..., tuple[Array, Array]],
    kept: Sequence[Kept],
    first: Array,
) -> tuple[list[Array], list[Array], Array]:
    """The same for matrices that share a program."""
    matrices = batch.flat([one.matrix for one in kept])
    shares = batch.each([one.share for one in kept])
    program = _Program(batch, guarded, matrices, shares, first)
    results, failures, count = jax.lax.platform_dependent(
        batch.flat([one.old for one in kept]),
        any_over_vmap(batch.each([one.due for one in kept])),
        cpu=functools.partial(_one_by_one, program),
        default=functools.partial(_at_once, program),
    )
    return batch.shaped(results), batch.largest(failures), count


def _one_by_one(
    program: _Program, old: list[Array], due: Array
) -> tuple[list[Array], Array, Array]:
    """(the inverses, where the rule failed, how many are new)."""
    batch, shares = program.batch, program.shares
    stacks = range(len(old))
    branches = [functools.partial(program.enlarged, k) for k in stacks]

    def turn(carried, each):
        owner, place, now, share, own_size = each

        def renew(carried):
            results, _, count = carried
            matrix = jax.lax.switch(owner, branches, place, share)
            inverse, failure, sound = program.inverse(matrix, share, own_size)

            def write(result):
                before = jax.lax.dynamic_index_in_dim(result, place, keepdims=False)
                part = inverse[: before.shape[0], : before.shape[0]]
                part = jnp.where(sound, part, before)
                return jax.lax.dynamic_update_index_in_dim(result, part, place, 0)

            results = [cond_in_place(owner == k, write, results[k]) for k in stacks]
            return results, failure, count + 1

        results, count = carried
        start = (results, jnp.zeros_like(share), count)
        results, failure, count = cond_in_place(now, renew, start)
        return (results, count), failure

    each = (batch.owners, batch.places, due, shares, batch.own_sizes)
    (results, count), failures = jax.lax.scan(
        turn, (old, jnp.zeros((), jnp.int32)), tuple(map(jnp.asarray, each))
    )
    return results, failures, count


def _at_once(
    program: _Program, old: list[Array], due: Array
) -> tuple[list[Array], Array, Array]:
    """The same in one batch."""
    batch, shares = program.batch, program.shares

    def renew(carried):
        results, _, count = carried
        each = zip(batch.owners, batch.places, shares, strict=True)
        stack = jnp.stack([program.enlarged(k, place, one) for k, place, one in each])
        own_sizes = jnp.asarray(batch.own_sizes)
        inverses, failures, sound = jax.vmap(program.inverse)(stack, shares, own_sizes)
        written, start = [], 0
        for result in results:
            rows, size = slice(start, start + result.shape[0]), result.shape[-1]
            taken = (due & sound)[rows, None, None]
            written.append(jnp.where(taken, inverses[rows, :size, :size], result))
            start = rows.stop
        failures = jnp.where(due, failures, 0)
        return written, failures, count + jnp.sum(due, dtype=jnp.int32)

    start = (old, jnp.zeros_like(shares), jnp.zeros((), jnp.int32))
    return cond_in_place(jnp.any(due), renew, start)
