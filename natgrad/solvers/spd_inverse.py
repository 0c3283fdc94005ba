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
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float

from natgrad.control_flow import any_over_vmap
from natgrad.solvers.spectral import HIGHEST, damped_reciprocal, eigh
from natgrad.typing import Array

# Up to this size LAPACK inverts: smaller blocks run faster, but take longer to compile.
_SMALL = 320
# Sizes within these of each other share one program (a weight's I + 1 and O).
_NEAR, _NEARLY = 16, 0.05


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
            enlarged by the identity to the size of its neighbours.
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
    sizes = sorted({matrix.shape[-1] for matrix in matrices}, reverse=True)
    shared: dict[int, int] = {}
    for size in sizes:
        top = min(shared.values(), default=size)
        near = top - size <= max(_NEAR, _NEARLY * top)
        shared[size] = top if near else size
    padded = [_enlarged(m, shared[m.shape[-1]]) for m in matrices]
    eliminated = [
        inverse[..., : m.shape[-1], : m.shape[-1]]
        for m, inverse in zip(matrices, together(spd_inverse, padded), strict=True)
    ]
    sound = [_bounded(m, floor) for m, floor in zip(eliminated, floors, strict=True)]

    def spectral():
        pairs = together(eigh, matrices)
        by_eigenvalues, dropped = zip(
            *map(_spectral_inverse, pairs, floors), strict=True
        )
        mixed = [
            jnp.where(good[..., None, None], inverse, other)
            for good, inverse, other in zip(
                sound, eliminated, by_eigenvalues, strict=True
            )
        ]
        broken = [
            ~jnp.all(good | (d == 0)) for good, d in zip(sound, floors, strict=True)
        ]
        any_broken = functools.reduce(jnp.logical_or, [*broken, *dropped])
        return mixed, any_broken.astype(float)

    failed = functools.reduce(jnp.logical_or, [~jnp.all(good) for good in sound], False)
    failed = jnp.asarray(failed)
    return jax.lax.cond(
        any_over_vmap(failed),
        spectral,
        lambda: (eliminated, jnp.zeros_like(failed, float)),
    )


@_inverses.defjvp
def _inverses_jvp(primals, tangents):
    results, failed = _inverses(*primals)
    changes = [
        -_product(_product(m, dm), m)
        for m, dm in zip(results, tangents[0], strict=True)
    ]
    return (results, failed), (changes, jnp.zeros_like(failed))


def _bounded(inverse: Array, floor: Array) -> Array:
    """Is this the inverse of a matrix that is at least δI, for δ > 0?"""
    entries = jnp.diagonal(inverse, axis1=-2, axis2=-1)
    least = jnp.isfinite(jnp.sum(inverse, (-2, -1))) & (floor > 0)
    return least & jnp.all(entries * floor[..., None] <= 2, -1)


def _spectral_inverse(pair: tuple[Array, Array], floor: Array) -> tuple[Array, Array]:
    """V diag(1/s) Vᵀ by the rule for s − δ and damping δ, and whether it drops any."""
    values, vectors = pair
    above = values - floor[..., None]
    reciprocal, dropped = damped_reciprocal(above, floor[..., None])
    return _product(vectors * reciprocal[..., None, :], vectors.mT), dropped


def together(function: Callable, matrices: Sequence[Array]) -> list[Any]:
    """The function of each matrix, those of equal sizes by one program.

    These are stacked and walked one matrix at a time: batched LAPACK calls share XLA's
    thread pool with the rest of the program, and on CPUs with few threads they can wait
    for each other for ever.

    Args:
        function: of one matrix [d, d]; gives a tree of arrays.
        matrices: [lead..., d, d].

    Returns:
        For each matrix a tree of arrays [lead..., ...].
    """
    buckets = collections.defaultdict(list)
    for i, matrix in enumerate(matrices):
        buckets[matrix.shape[-1], matrix.dtype].append(i)
    results: list = [None] * len(matrices)
    for (size, _), members in buckets.items():
        if len(members) == 1 and matrices[members[0]].ndim == 2:
            results[members[0]] = function(matrices[members[0]])
            continue
        flat = [matrices[i].reshape(-1, size, size) for i in members]
        stacked, start = jax.lax.map(function, jnp.concatenate(flat)), 0
        for i, matrix in zip(members, flat, strict=True):
            end = start + len(matrix)
            results[i] = jax.tree.map(
                lambda a, lead=matrices[i].shape[:-2], rows=slice(start, end): a[
                    rows
                ].reshape(lead + a.shape[1:]),
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
    half += -half % 16
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


def _enlarged(matrix: Array, size: int) -> Array:
    more = size - matrix.shape[-1]
    if not more:
        return matrix
    edge = [(0, 0)] * (matrix.ndim - 2) + [(0, more)] * 2
    wide = jnp.pad(matrix, edge)
    axes = (wide.ndim - 2, wide.ndim - 1)
    row, column = (jax.lax.broadcasted_iota(int, wide.shape, axis) for axis in axes)
    return jnp.where((row == column) & (row >= matrix.shape[-1]), 1, wide)
