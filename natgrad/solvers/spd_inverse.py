"""Explicit inverses of positive definite matrices, several at a time.

A rule computes M⁻¹: `natgrad.solvers.block_elimination`, which takes the fewest
operations, or `natgrad.solvers.newton_schulz`, which takes nothing but products. What
the rule does not vouch for is inverted by eigenvalues. The derivative is
dM⁻¹ = −M⁻¹ dM M⁻¹, of any order.

An explicit inverse is applied as a product, which costs less than half of the two
triangular solves with a Cholesky factor; it pays from the second application on.
"""

from __future__ import annotations

import collections
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float

from natgrad.control_flow import any_over_vmap, one_by_one_on_cpu
from natgrad.solvers.block_elimination import (
    ELIMINATION,
    InverseRule,
    halvable,
    product,
)
from natgrad.solvers.spectral import damped_reciprocal, eigh
from natgrad.typing import Array

# Sizes within these of each other share one program: a weight's I + 1 and O, and
# small ones, where a program of its own costs more than the larger size. So do others,
# as long as that adds no more than this part to the operations of all.
_NEAR, _NEARLY, _MORE = 128, 0.05, 0.02


def inverses(
    matrices: Sequence[Float[Array, "*lead d d"]],
    floors: Sequence[Float[Array, "*lead"]],
    rule: InverseRule = ELIMINATION,
) -> tuple[list[Float[Array, "*lead d d"]], Bool[Array, ""]]:
    """M⁻¹ of several matrices.

    Where the rule fails, because M is not positive definite to rounding, and
    wherever the floor is 0, eigendecompositions take over by the rule of
    `natgrad.solvers.spectral`: with a floor δ > 0 eigenvalues below δ count as δ, and
    for δ = 0 the result is M⁺.

    Args:
        matrices: symmetric. Near sizes are inverted together: a smaller matrix is
            enlarged by a diagonal to the size of its neighbours.
        floors: δ >= 0 of each matrix, of which M − δI is positive semi-definite.
        rule: how M⁻¹ is computed.

    Returns:
        (the inverses, whether the rule failed for any of them).
    """
    results, failed = _inverses(rule, matrices, floors)
    return results, failed > 0


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _inverses(
    rule: InverseRule, matrices: Sequence[Array], floors: Sequence[Array]
) -> tuple[list[Array], Array]:
    """The same, failure as the number 1: a boolean's derivative has no device axes."""
    shared, mixed = shared_sizes([matrix.shape[-1] for matrix in matrices])
    found = together(
        functools.partial(guarded_inverse, rule, mixed),
        [_enlarged(m, shared[m.shape[-1]]) for m in matrices],
        floors,
        [jnp.full(m.shape[:-2], m.shape[-1], jnp.int32) for m in matrices],
    )
    results = [
        inverse[..., : m.shape[-1], : m.shape[-1]]
        for m, (inverse, _) in zip(matrices, found, strict=True)
    ]
    failed = [jnp.max(failure) for _, failure in found]
    return results, functools.reduce(jnp.maximum, failed, jnp.zeros(()))


def shared_sizes(sizes: Sequence[int]) -> tuple[dict[int, int], frozenset[int]]:
    """Which sizes share a program.

    Args:
        sizes: of all matrices. Given back are size -> to which it is enlarged, and
            those that several sizes share.
    """
    found: dict[int, int] = {}
    allowed = _MORE * sum(size**3 for size in sizes)
    for size in sorted(set(sizes), reverse=True):
        top = min(found.values(), default=size)
        near = top - size <= max(_NEAR, _NEARLY * top)
        more = 0 if near else sizes.count(size) * (top**3 - size**3)
        found[size] = top if more <= allowed else size
        allowed -= more if more <= allowed else 0
    found = {size: halvable(top) for size, top in found.items()}
    return found, frozenset(top for size, top in found.items() if size < top)


@_inverses.defjvp
def _inverses_jvp(rule, primals, tangents):
    results, failed = _inverses(rule, *primals)
    changes = [
        -product(product(m, dm), m) for m, dm in zip(results, tangents[0], strict=True)
    ]
    return (results, failed), (changes, jnp.zeros_like(failed))


@functools.partial(jax.jit, static_argnums=(0, 1))  # traced once for each size
def guarded_inverse(
    rule: InverseRule, mixed: frozenset[int], matrix: Array, floor: Array, size: Array
) -> tuple[Array, Array]:
    """The inverse by rule or eigenvalues; 1 where the first failed or directions fell.

    Args:
        rule: how M⁻¹ is computed.
        mixed: sizes of which some matrices were enlarged.
        matrix: M, enlarged by zeros where its size is a mixed one.
        floor: δ, as for `inverses`.
        size: how many rows are M's own.
    """
    if matrix.shape[0] in mixed:
        matrix = _completed(matrix, size)
    found, vouched = rule(matrix, floor)
    sound = vouched & _bounded(found, floor)

    def spectral():
        values, vectors = eigh(matrix)  # ascending
        values = values - floor
        top = jnp.maximum(values[-1], 0)
        reciprocal, _ = damped_reciprocal(values, floor, size=size, largest=top)
        scale = jnp.sqrt(reciprocal)
        dropped, root = scale[0] == 0, vectors * scale[None]
        other = product(root, root.T)
        failed = dropped | ~(sound | (floor == 0))
        return jnp.where(sound, found, other), failed.astype(float)

    return jax.lax.cond(
        any_over_vmap(~sound),
        spectral,
        lambda: (found, jnp.zeros_like(sound, float)),
    )


def _bounded(inverse: Array, floor: Array) -> Array:
    """Is this the inverse of a matrix that is at least δI, for δ > 0?"""
    # XLA's sum sees what is not finite; its maximum, on the diagonal, passes over NaN.
    finite = jnp.isfinite(jnp.sum(inverse)) & (floor > 0)
    return finite & (jnp.max(inverse) * floor <= 2)


def diagonal(matrix: Float[Array, "*lead d d"]) -> Float[Array, "*lead d"]:
    """The diagonal, by strides, which fuses into what reads it, as a gather would not.

    Args:
        matrix: square.
    """
    *lead, size, _ = matrix.shape
    return matrix.reshape((*lead, size * size))[..., :: size + 1]


def together(function: Callable, *operands: Sequence[Array]) -> list[Any]:
    """The function of each matrix, those of equal sizes by one program.

    These are stacked; see `one_by_one_on_cpu`.

    Args:
        function: of one matrix [d, d], and of its further operands; gives a tree of
            arrays.
        operands: the matrices [lead..., d, d], then numbers [lead...] of each.

    Returns:
        For each matrix a tree of arrays [lead..., ...].
    """
    matrices = operands[0]
    buckets = collections.defaultdict(list)
    for i, matrix in enumerate(matrices):
        buckets[matrix.shape[-1], matrix.dtype].append(i)
    results: list = [None] * len(matrices)
    for members in buckets.values():
        given = [[operand[i] for i in members] for operand in operands]
        if len(members) == 1 and given[0][0].ndim == 2:
            results[members[0]] = function(*(each for (each,) in given))
            continue
        leads = [matrices[i].shape[:-2] for i in members]
        flat = [
            [
                a.reshape((-1, *a.shape[len(lead) :]))
                for a, lead in zip(each, leads, strict=True)
            ]
            for each in given
        ]
        stacks = [jnp.concatenate(each) for each in flat]
        stacked, start = one_by_one_on_cpu(function, *stacks), 0
        for i, lead in zip(members, leads, strict=True):
            end = start + math.prod(lead)
            results[i] = jax.tree.map(
                lambda a, lead=lead, rows=slice(start, end): a[rows].reshape(
                    lead + a.shape[1:]
                ),
                stacked,
            )
            start = end
    return results


def _enlarged(matrix: Array, size: int) -> Array:
    """[[M, 0], [0, 0]] of so many rows."""
    more = size - matrix.shape[-1]
    edge = [(0, 0)] * (matrix.ndim - 2) + [(0, more)] * 2
    return jnp.pad(matrix, edge) if more else matrix


def _completed(matrix: Array, size: Array) -> Array:
    """[[M, 0], [0, m I]] with m = M₀₀, which lies between eigenvalues of M."""
    row, column = (jax.lax.broadcasted_iota(jnp.int32, matrix.shape, i) for i in (0, 1))
    return jnp.where((row == column) & (row >= size), matrix[0, 0], matrix)
