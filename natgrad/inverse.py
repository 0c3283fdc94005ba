"""Explicit inverses of positive definite matrices, by sweeps over blocks.

Sweeping M over the indices K replaces, with P = M_KK⁻¹ and C the other rows of M_:K,

    M_KK by −P,     C by C P,     the rest by M − C P Cᵀ;

swept over all blocks of indices, M has become −M⁻¹. That is 2 d³ operations, nearly all
in products with C, and one small program whatever d is; P comes from a Cholesky
factorisation of the block, as does all of M⁻¹ for small d. The pivots are those of
block elimination: a matrix that is not positive definite gives entries that are not
finite. The derivative is dM⁻¹ = −M⁻¹ dM M⁻¹, of any order.

Source: Lange, Numerical Analysis for Statisticians (2nd ed.), section 7.4.
"""

from __future__ import annotations

import collections
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from natgrad.solvers import HIGHEST
from natgrad.typing import Array

# Up to this size LAPACK is as fast; above, blocks of about so many rows.
_SMALL, _BLOCK = 384, 112
# Sizes within these of each other share one program (a weight's I + 1 and O).
_NEAR, _NEARLY = 16, 0.05


def inverses(matrices: Sequence[Array]) -> list[Array]:
    """The inverse of each positive definite matrix [..., d, d]; near sizes together.

    A smaller matrix is enlarged by the identity to the size of its neighbours.
    """
    sizes = sorted({matrix.shape[-1] for matrix in matrices}, reverse=True)
    shared: dict[int, int] = {}
    for size in sizes:
        top = min(shared.values(), default=size)
        near = top - size <= max(_NEAR, _NEARLY * top)
        shared[size] = top if near else size
    padded = [_enlarged(m, shared[m.shape[-1]]) for m in matrices]
    found = together(spd_inverse, padded)
    return [
        inverse[..., : m.shape[-1], : m.shape[-1]]
        for m, inverse in zip(matrices, found, strict=True)
    ]


def together(function: Callable, matrices: Sequence[Array]) -> list[Any]:
    """function(matrix [d, d]) of each of [..., d, d], equal sizes by one program.

    These are stacked and walked one matrix at a time: batched LAPACK calls share XLA's
    thread pool with the rest of the program, and on CPUs with few threads they can wait
    for each other for ever.
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
        whole, start = jax.lax.map(function, jnp.concatenate(flat)), 0
        for i, piece in zip(members, flat, strict=True):
            lead, part = matrices[i].shape[:-2], slice(start, start + len(piece))
            cut = lambda a, lead=lead, part=part: a[part].reshape(lead + a.shape[1:])
            results[i] = jax.tree.map(cut, whole)
            start += len(piece)
    return results


@jax.custom_jvp
def spd_inverse(matrix: Array) -> Array:
    """M⁻¹ of a positive definite matrix [d, d]."""
    return (_by_cholesky if matrix.shape[0] <= _SMALL else _by_sweeps)(matrix)


@spd_inverse.defjvp
def _spd_inverse_jvp(primals, tangents):
    inverse = spd_inverse(*primals)
    return inverse, -_product(_product(inverse, tangents[0]), inverse)


def _by_sweeps(matrix: Array) -> Array:
    size = matrix.shape[0]
    count = -(-size // _BLOCK)
    width = -(-size // count)
    width += -width % 8

    def sweep(k, m):
        start = k * width
        rows = jax.lax.dynamic_slice_in_dim(m, start, width, axis=1)
        pivot = _by_cholesky(jax.lax.dynamic_slice_in_dim(rows, start, width))
        nothing = jnp.zeros_like(pivot)
        others = jax.lax.dynamic_update_slice_in_dim(rows, nothing, start, 0)
        turned = _product(others, pivot)
        m = m - _product(turned, others.T)
        turned = jax.lax.dynamic_update_slice_in_dim(turned, -pivot, start, 0)
        m = jax.lax.dynamic_update_slice_in_dim(m, turned, start, 1)
        return jax.lax.dynamic_update_slice_in_dim(m, turned.T, start, 0)

    wide = _enlarged(matrix, count * width)
    return -jax.lax.fori_loop(0, count, sweep, wide)[:size, :size]


def _by_cholesky(matrix: Array) -> Array:
    lower = jax.lax.linalg.cholesky(matrix, symmetrize_input=False)
    eye = jnp.eye(matrix.shape[0], dtype=matrix.dtype)
    half = jax.lax.linalg.triangular_solve(lower, eye, left_side=True, lower=True)
    return _product(half.T, half)


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
