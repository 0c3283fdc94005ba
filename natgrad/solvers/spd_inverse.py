"""Explicit inverses of positive definite matrices, by block elimination in halves.

With M = [[A, Bᵀ], [B, C]], A⁻¹ = WᵀW and V = B Wᵀ, the rest is S = C − V Vᵀ and

    M⁻¹ = [[A⁻¹ + Tᵀ S⁻¹ T,  −(S⁻¹ T)ᵀ], [−S⁻¹ T,  S⁻¹]],     T = V W = B A⁻¹,

A⁻¹, W and S⁻¹ by the same rule until they are small; those come from a Cholesky
factorisation. V keeps S, and so M⁻¹, as precise as one factorisation of M would; B A⁻¹
in its place would not. That is about 1.7 d³ operations, nearly all in products of large
matrices. A matrix that is not positive definite gives entries that are not finite. The
derivative is dM⁻¹ = −M⁻¹ dM M⁻¹, of any order.

An explicit inverse is applied as a product, which costs less than half of the two
triangular solves with a Cholesky factor; it pays from the second application on.

Source: Golub & Van Loan, Matrix Computations (4th ed.), sections 1.3 and 3.2.11 for
block elimination.
"""

from __future__ import annotations

import collections
import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float

from natgrad.control_flow import cond_in_place
from natgrad.solvers.spectral import HIGHEST, damped_reciprocal, eigh
from natgrad.typing import Array

# Up to this size LAPACK inverts: smaller blocks run faster, but take longer to compile.
_SMALL = 320
# Sizes within these of each other share one program: a weight's I + 1 and O, and
# small ones, where a program of its own costs more than the larger size.
_NEAR, _NEARLY = 128, 0.05


def inverses(
    matrices: Sequence[Float[Array, "*lead d d"]],
    floors: Sequence[Float[Array, "*lead"]],
) -> tuple[list[Float[Array, "*lead d d"]], Bool[Array, ""]]:
    """M⁻¹ of several matrices.

    Where elimination fails, because M is not positive definite to rounding, and
    wherever the floor is 0, eigendecompositions take over by the rule of
    `natgrad.solvers.spectral`: with a floor δ > 0 eigenvalues below δ count as δ, and
    for δ = 0 the result is M⁺.

    Args:
        matrices: symmetric. Near sizes are inverted together: a smaller matrix is
            enlarged by a diagonal to the size of its neighbours.
        floors: δ >= 0 of each matrix, of which M − δI is positive semi-definite.

    Returns:
        (the inverses, whether elimination failed for any of them).
    """
    results, failed = _inverses(matrices, floors)
    return results, failed > 0


@jax.custom_jvp
def _inverses(
    matrices: Sequence[Array], floors: Sequence[Array]
) -> tuple[list[Array], Array]:
    """The same, failure as the number 1: a boolean's derivative has no device axes."""
    shared, mixed = shared_sizes([matrix.shape[-1] for matrix in matrices])
    found = together(
        functools.partial(guarded_inverse, mixed),
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
        sizes: of matrices. Given back are size -> to which it is enlarged, and those
            that several sizes share.
    """
    found: dict[int, int] = {}
    for size in sorted(set(sizes), reverse=True):
        top = min(found.values(), default=size)
        near = top - size <= max(_NEAR, _NEARLY * top)
        found[size] = top if near else size
    found = {size: _halvable(top) for size, top in found.items()}
    return found, frozenset(top for size, top in found.items() if size < top)


@_inverses.defjvp
def _inverses_jvp(primals, tangents):
    results, failed = _inverses(*primals)
    changes = [
        -_product(_product(m, dm), m)
        for m, dm in zip(results, tangents[0], strict=True)
    ]
    return (results, failed), (changes, jnp.zeros_like(failed))


def guarded_inverse(
    mixed: frozenset[int], matrix: Array, floor: Array, size: Array
) -> tuple[Array, Array]:
    """The inverse by either rule, and 1 where elimination failed or directions fell.

    Args:
        mixed: sizes of which some matrices were enlarged.
        matrix: M, enlarged by zeros where its size is a mixed one.
        floor: δ, as for `inverses`.
        size: how many rows are M's own.
    """
    if matrix.shape[0] in mixed:
        matrix = _completed(matrix, size)
    eliminated = spd_inverse(matrix)
    sound = _bounded(eliminated, floor)

    def spectral(carried):
        eliminated, _ = carried
        values, vectors = eigh(matrix)
        reciprocal, dropped = damped_reciprocal(values - floor, floor, size=size)
        root = vectors * jnp.sqrt(reciprocal)[None]
        failed = dropped | ~(sound | (floor == 0))
        other = jnp.where(sound, eliminated, _product(root, root.T))
        return other, failed.astype(float)

    start = (eliminated, jnp.zeros_like(sound, float))
    return cond_in_place(~sound, spectral, start)


def _bounded(inverse: Array, floor: Array) -> Array:
    """Is this the inverse of a matrix that is at least δI, for δ > 0?"""
    finite = jnp.isfinite(jnp.sum(inverse)) & (floor > 0)
    return finite & (jnp.max(diagonal(inverse)) * floor <= 2)


def diagonal(matrix: Float[Array, "*lead d d"]) -> Float[Array, "*lead d"]:
    """The diagonal, by strides, which fuses into what reads it, as a gather would not.

    Args:
        matrix: square.
    """
    *lead, size, _ = matrix.shape
    return matrix.reshape((*lead, size * size))[..., :: size + 1]


def together(function: Callable, *operands: Sequence[Array]) -> list[Any]:
    """The function of each matrix, those of equal sizes by one program.

    These are stacked and walked one matrix at a time: batched LAPACK calls share XLA's
    thread pool with the rest of the program, and on CPUs with few threads they can wait
    for each other for ever.

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
        stacked, start = jax.lax.map(lambda one: function(*one), stacks), 0
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


def spd_inverse(matrix: Float[Array, "d d"]) -> Float[Array, "d d"]:
    """M⁻¹, not finite where M is not positive definite.

    Args:
        matrix: M, symmetric; its lower half is read.
    """
    if matrix.shape[0] <= _SMALL:
        root = _inverse_root(matrix)
        return _product(root.T, root)
    blocks = _eliminate(matrix)
    return _inverse_of(blocks, spd_inverse(blocks.rest))


def _inverse_and_root(matrix: Array) -> tuple[Array, Array]:
    """M⁻¹, and the inverse of M's Cholesky factor."""
    if matrix.shape[0] <= _SMALL:
        root = _inverse_root(matrix)
        return _product(root.T, root), root
    blocks = _eliminate(matrix)
    last, lower = _inverse_and_root(blocks.rest)
    root = _joined(blocks.root, None, _product(lower, blocks.side), lower)
    return _inverse_of(blocks, last), root


class _Elimination(NamedTuple):
    """The first half of M eliminated, in the letters of the module.

    Attributes:
        first: A⁻¹.
        root: W.
        side: −T.
        rest: S.
    """

    first: Array
    root: Array
    side: Array
    rest: Array


def _eliminate(matrix: Array) -> _Elimination:
    half = -(-matrix.shape[0] // 2)
    first, root = _inverse_and_root(matrix[:half, :half])
    scaled = _product(-matrix[half:, :half], root.T)  # −V
    rest = matrix[half:, half:] - _product(scaled, scaled.T)
    return _Elimination(first, root, _product(scaled, root), rest)


def _inverse_of(blocks: _Elimination, last: Array) -> Array:
    """M⁻¹ from S⁻¹."""
    corner = _product(last, blocks.side)
    first = blocks.first + _product(blocks.side.T, corner)
    return _joined(first, corner.T, corner, last)


def _joined(a: Array, b: Array | None, c: Array, d: Array) -> Array:
    """[[a, b], [c, d]], written block by block, which is faster than concatenated."""
    half, size = a.shape[0], a.shape[0] + d.shape[0]
    matrix = jnp.zeros((size, size), a.dtype)
    for block, row, column in ((a, 0, 0), (b, 0, half), (c, half, 0), (d, half, half)):
        if block is not None:
            matrix = jax.lax.dynamic_update_slice(matrix, block, (row, column))
    return matrix


def _inverse_root(matrix: Array) -> Array:
    # Of the transpose: LAPACK's order, so that nothing in front of it is turned round.
    lower = jax.lax.linalg.cholesky(matrix.T, symmetrize_input=False)
    eye = jnp.eye(matrix.shape[0], dtype=matrix.dtype)
    return jax.lax.linalg.triangular_solve(lower, eye, left_side=True, lower=True)


def _product(a: Array, b: Array) -> Array:
    return jnp.matmul(a, b, precision=HIGHEST)


def _halvable(size: int) -> int:
    """The size, or a little more, so that all blocks of a level are of equal sizes.

    What XLA compiles for one of them then serves the others too.
    """
    halvings = max(0, math.ceil(math.log2(size / _SMALL)))
    unit = 4 * 2**halvings if halvings else 1
    return -(-size // unit) * unit


def _enlarged(matrix: Array, size: int) -> Array:
    """[[M, 0], [0, 0]] of so many rows."""
    more = size - matrix.shape[-1]
    edge = [(0, 0)] * (matrix.ndim - 2) + [(0, more)] * 2
    return jnp.pad(matrix, edge) if more else matrix


def _completed(matrix: Array, size: Array) -> Array:
    """[[M, 0], [0, m I]] with m = M₀₀, which lies between eigenvalues of M."""
    row, column = (jax.lax.broadcasted_iota(jnp.int32, matrix.shape, i) for i in (0, 1))
    return jnp.where((row == column) & (row >= size), matrix[0, 0], matrix)
