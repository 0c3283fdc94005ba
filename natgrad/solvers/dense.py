"""Solving (F + λI) x = v: dense kernels, and functions (metric, v, damping) -> x.

The kernels take a symmetric positive semi-definite matrix [P, P]. They are traceable,
batched by vmap, run in the dtype they are given, and never look at values in Python.
Every inverse goes through `lax.custom_linear_solve`, so that derivatives of any order
are those of the solution, x' = (F + λI)⁻¹(v' − (F + λI)' x), not of the algorithm
(differentiating `eigh` at repeated eigenvalues gives finite garbage).

`direct_solution` equilibrates: with D the diagonal of F + λI it factorises
D^-½ (F + λI) D^-½ by Cholesky, D rounded to powers of four, so that the units of the
parameters do not decide what is singular. It refines twice. Where the factorisation
breaks down, meets a pivot below P ε, or leaves a backward error above √ε, it falls back
to the eigendecomposition by the rule of `natgrad.solvers.spectral`: for λ > 0 nothing
is dropped; for λ = 0 the answer is F⁺ v, of least norm in the parameters' own units,
though what counts as 0 is decided in the equilibrated ones. The fallback is reported.

Source: Golub & Van Loan, Matrix Computations (4th ed.), sections 3.5.3 and 4.2.
"""

from __future__ import annotations

import itertools
from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Float

from natgrad.control_flow import any_over_vmap, symmetric_solve
from natgrad.solvers.base import DampedOperator, Solution
from natgrad.solvers.damping import DampingLike, entries
from natgrad.solvers.spectral import HIGHEST, equilibration, spectral_root
from natgrad.typing import Array, ArrayLike, Params


def direct_solution(
    matrix: Float[Array, "P P"], v: Float[Array, " P"], damping: ArrayLike
) -> Solution:
    """(F + λI)⁻¹ v by Cholesky with refinement, or eigendecomposition where it fails.

    Args:
        matrix: F, [P, P], symmetric positive semi-definite.
        v: [P].
        damping: λ >= 0, in the units of F; or the diagonal of Λ, [P].

    Returns:
        x [P]; and as `fallback`, whether Cholesky failed.
    """
    damping = jnp.asarray(damping, matrix.dtype)
    operator = _damped(matrix, damping)
    fixed, fixed_damping = jax.lax.stop_gradient((matrix, damping))  # implicit below
    fixed_operator = _damped(fixed, fixed_damping)
    size, epsilon = fixed.shape[0], jnp.finfo(fixed.dtype).eps
    d = equilibration(jnp.diagonal(fixed) + fixed_damping)
    lower = jax.lax.linalg.cholesky(  # of the transpose: LAPACK's order, so no copy
        d[:, None] * fixed.T * d[None] + jnp.diag(fixed_damping * d**2),
        symmetrize_input=False,
    )
    regular = jnp.min(jnp.diagonal(lower)) ** 2 > size * epsilon

    def solve(b):
        # In scaled coordinates y = x/d, where the matrix has a diagonal of about 1.
        def step(residual):
            return jax.scipy.linalg.cho_solve((lower, True), residual)

        def residual_of(y):
            return d * (b - fixed_operator(d * y))

        y = step(d * b)
        residual = residual_of(y)
        for _ in range(2):
            refined = y + step(residual)
            new_residual = residual_of(refined)
            improved = jnp.sum(new_residual**2) < jnp.sum(residual**2)
            y = jnp.where(improved, refined, y)
            residual = jnp.where(improved, new_residual, residual)
        scale = jnp.sum(y**2) + jnp.sum((d * b) ** 2)
        failed = ~(regular & (jnp.sum(residual**2) <= epsilon * scale))
        spectral = jax.lax.cond(
            any_over_vmap(failed),
            lambda: _spectral_solve(fixed, b, fixed_damping),
            lambda: b,
        )
        return jnp.where(failed, spectral, d * y), failed

    return Solution(*symmetric_solve(operator, v, solve, has_aux=True))


def spectral_solution(
    matrix: Float[Array, "P P"], v: Float[Array, " P"], damping: ArrayLike
) -> Solution:
    """(F + λI)⁺ v by eigendecomposition: the solution of least norm where singular.

    Args:
        matrix: F, [P, P], symmetric positive semi-definite.
        v: [P].
        damping: λ >= 0, or the diagonal of Λ, [P]; for λ > 0 no direction is dropped.

    Returns:
        x [P]; `fallback` is False, since this is the first choice of algorithm.
    """
    damping = jnp.asarray(damping, matrix.dtype)
    fixed, fixed_damping = jax.lax.stop_gradient((matrix, damping))
    value = symmetric_solve(
        _damped(matrix, damping), v, lambda b: _spectral_solve(fixed, b, fixed_damping)
    )
    return Solution(value, jnp.zeros((), bool))


def diagonal_solution(
    diagonal: Float[Array, " P"], v: Float[Array, " P"], damping: ArrayLike
) -> Solution:
    """v/(d + λ), and 0 where d + λ = 0.

    Args:
        diagonal: d >= 0, the diagonal of F.
        v: [P].
        damping: λ >= 0, in the units of F; or the diagonal of Λ, [P].

    Returns:
        x [P]; and as `fallback`, whether v is not 0 at some d + λ = 0.
    """
    total = diagonal + jnp.asarray(damping, diagonal.dtype)
    singular = total == 0
    value = jnp.where(singular, 0, v / jnp.where(singular, 1, total))
    return Solution(value, jnp.any(singular & (v != 0)))


def logdet(matrix: Float[Array, "P P"], damping: Array) -> Float[Array, ""]:
    """log det(F + λI); −inf where singular.

    Args:
        matrix: F, [P, P], symmetric positive semi-definite.
        damping: λ >= 0, in the units of F; or the diagonal of Λ, [P].
    """
    return jnp.linalg.slogdet(damped(matrix, damping))[1]


def damped(matrix: Float[Array, "P P"], damping: Array) -> Float[Array, "P P"]:
    """F + λI.

    Args:
        matrix: F.
        damping: λ >= 0, in the units of F; or the diagonal of Λ, [P].
    """
    damping = damping[:, None] if damping.ndim else damping
    return matrix + damping * jnp.eye(matrix.shape[0], dtype=matrix.dtype)


def cholesky(metric: DampedOperator, v: Params, damping: DampingLike) -> Params:
    """`direct_solution` with the dense matrix of any metric; O(P³).

    Args:
        metric: F.
        v: a tree like the parameters.
        damping: λ >= 0, in the units of F.
    """
    return _through_matrix(direct_solution, metric, v, damping)


def pseudo_inverse(metric: DampedOperator, v: Params, damping: DampingLike) -> Params:
    """`spectral_solution` with the dense matrix of any metric; O(P³).

    Args:
        metric: F.
        v: a tree like the parameters.
        damping: λ >= 0, in the units of F.
    """
    return _through_matrix(spectral_solution, metric, v, damping)


def mirrored(
    rows: Sequence[Float[Array, "m n"]], edges: Sequence[int]
) -> Float[Array, "M M"]:
    """A symmetric matrix from its block rows up to and with the diagonal block.

    Args:
        rows: row i has shape [edges[i + 1] − edges[i], edges[i + 1]].
        edges: where the blocks begin, and the size M.
    """
    spans = itertools.pairwise(edges)
    full_rows = [
        jnp.concatenate([row, *(below[:, a:b].T for below in rows[i + 1 :])], axis=1)
        for i, (row, (a, b)) in enumerate(zip(rows, spans, strict=True))
    ]
    return jnp.concatenate(full_rows)


def _damped(matrix: Array, damping: Array) -> Callable[[Array], Array]:
    def operator(x):
        return jnp.matmul(matrix, x, precision=HIGHEST) + damping * x

    return operator


def _spectral_solve(matrix: Array, b: Array, damping: Array) -> Array:
    if damping.ndim:  # where some λ is 0, (F + Λ)⁺
        positive = jnp.all(damping > 0)
        matrix = jnp.where(positive, matrix, matrix + jnp.diag(damping))
        damping = jnp.where(positive, damping, 0)
    root = spectral_root(matrix, damping)
    return jnp.matmul(root, jnp.matmul(root.T, b, precision=HIGHEST), precision=HIGHEST)


def _through_matrix(kernel, metric, v, damping) -> Params:
    vector, damping = metric.layout.ravel(v), entries(damping, metric)
    return metric.layout.unravel(kernel(metric.dense(), vector, damping).value)
