"""Explicit inverses of positive definite matrices, by halves.

    [A  B ]⁻¹   [A⁻¹ + U Tᵀ  −U ]        T = A⁻¹ B,   S = D − Bᵀ T,   U = T S⁻¹
    [Bᵀ D ]   = [−Uᵀ         S⁻¹],

down to a size at which Cholesky takes over: 4/3 d³ multiplications, nearly all of them
in products, against 3 d³ of Cholesky and a triangular solve with the identity. All
pivots are those of a Cholesky factorisation; a matrix that is not positive definite
gives entries that are not finite. The derivative is dM⁻¹ = −M⁻¹ dM M⁻¹, of any order.

Source: Higham, Accuracy and Stability of Numerical Algorithms (2nd ed.), section 14.
"""

from __future__ import annotations

import collections
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from natgrad.solvers import HIGHEST
from natgrad.typing import Array

# Up to this size products gain less time than they take to compile.
_SMALL = 640
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
    return _by_halves(matrix)


@spd_inverse.defjvp
def _spd_inverse_jvp(primals, tangents):
    inverse = spd_inverse(*primals)
    return inverse, -_product(_product(inverse, tangents[0]), inverse)


def _by_halves(matrix: Array) -> Array:
    size = matrix.shape[0]
    if size <= _SMALL:
        return _by_cholesky(matrix)
    half = -(-size // 2)
    half += -half % 16
    a, b, d = matrix[:half, :half], matrix[:half, half:], matrix[half:, half:]
    first = _by_halves(a)
    turned = _product(first, b)
    last = _by_halves(d - _product(b.T, turned))
    corner = -_product(turned, last)
    first = first - _product(corner, turned.T)
    above = jnp.concatenate([first, corner], axis=1)
    return jnp.concatenate([above, jnp.concatenate([corner.T, last], axis=1)])


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
