"""The factors A and G of a block of a Kronecker metric, and what inverts A ⊗ G + λI.

A is a matrix [lead..., I(+1), I(+1)], or its diagonal [I] where the layer's inputs are
rows of the identity; G is a matrix [lead..., O, O]. `natgrad.metrics.kronecker` says
what the two inverses are.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float

from natgrad.metrics.blockwise import kron_matvec
from natgrad.metrics.eigenbasis import eigenbases, rotate
from natgrad.solvers import matrix_functions
from natgrad.solvers.block_elimination import InverseRule
from natgrad.solvers.lanczos import largest_of_matrix
from natgrad.solvers.matrix_functions import Factor, Spectral
from natgrad.solvers.spd_inverse import diagonal
from natgrad.solvers.spd_inverse import inverses as spd_inverses
from natgrad.solvers.spectral import Eigendecomposition, damped_reciprocal, eigh
from natgrad.typing import Array

# A and G of one block.
Factors = tuple[Array, Array]


class Decomposed(NamedTuple):
    """Both factors of a block and their eigendecompositions.

    The factors carry the derivative, the decompositions are constants that solve.

    Attributes:
        inputs: A.
        outputs: G.
        left: eigenvalues and eigenvectors of A; None for those of a diagonal.
        right: eigenvalues and eigenvectors of G.
    """

    inputs: Float[Array, "*A"]
    outputs: Float[Array, "*lead O O"]
    left: tuple[Float[Array, "*lead I"], Float[Array, "*lead I I"] | None]
    right: tuple[Float[Array, "*lead O"], Float[Array, "*lead O O"] | None]


class Inverted(NamedTuple):
    """The inverses of both damped factors of a block.

    Attributes:
        inputs: (A + π√λ I)⁻¹, a matrix, or a diagonal where A is one.
        outputs: (G + √λ/π I)⁻¹.
        fallback: boolean scalar: did the rule fail, or λ = 0 meet a singular factor?
    """

    inputs: Float[Array, "*A"]
    outputs: Float[Array, "*lead O O"]
    fallback: Bool[Array, ""]


def decompose(
    factors: Sequence[Factors], decomposition: Eigendecomposition = eigh
) -> list[Decomposed]:
    """The eigendecompositions of the factors of several blocks.

    Args:
        factors: A and G of each block.
        decomposition: what finds eigenvalues and eigenvectors of a factor.
    """
    fixed = jax.lax.stop_gradient(list(factors))  # implicit: see `eigen_solve`
    matrices = [a for a, _ in fixed] + [g for _, g in fixed]
    pairs = eigenbases(matrices, decomposition)
    lefts, rights = pairs[: len(fixed)], pairs[len(fixed) :]
    return [
        Decomposed(a, g, left, right)
        for (a, g), left, right in zip(factors, lefts, rights, strict=True)
    ]


def eigen_solve(
    block: Decomposed, damping: Float[Array, ""]
) -> tuple[Callable[[Array], Array], Bool[Array, ""]]:
    """V -> (A ⊗ G + λI)⁻¹ V with an implicit derivative, and whether it is singular.

    Args:
        block: its factors, decomposed.
        damping: λ >= 0, in the units of A ⊗ G.
    """
    (_, left), (_, right) = block.left, block.right
    fixed = jax.lax.stop_gradient(damping)
    inverse, singular = damped_reciprocal(products(block), fixed, (-2, -1))
    forward = kron_matvec(block.inputs, block.outputs)
    left_back, right_back = (None if u is None else u.mT for u in (left, right))

    def solve(_, v):
        return rotate(inverse * rotate(v, left, right), left_back, right_back)

    def solution(v):
        return jax.lax.custom_linear_solve(
            lambda x: forward(x) + damping * x, v, solve, symmetric=True
        )

    return solution, singular


def products(block: Decomposed) -> Float[Array, "*lead I O"]:
    """The eigenvalues a_i g_j of A ⊗ G.

    Args:
        block: its factors, decomposed.
    """
    return block.left[0][..., :, None] * block.right[0][..., None, :]


def functions_of(
    fs: Sequence[Spectral], blocks: Sequence[Decomposed]
) -> list[Callable[[Array], Array]]:
    """For each block V -> the matrix of f(A ⊗ G) vec V.

    Args:
        fs: f of each block.
        blocks: their factors, decomposed.
    """
    return [
        functools.partial(of_products, matrix_functions.apply, f, block)
        for f, block in zip(fs, blocks, strict=True)
    ]


def largest_of_factor(factor: Array, g: Array) -> Float[Array, "*lead"]:
    """Its largest eigenvalue, by products with it.

    Args:
        factor: A or G of a block.
        g: G, which has more axes than an A that is a diagonal.
    """
    if factor.ndim < g.ndim:
        return jnp.max(factor, axis=-1)
    function = largest_of_matrix
    for _ in range(factor.ndim - 2):
        function = jax.vmap(function)
    return function(factor)


def of_products(
    kernel: Callable, f: Spectral, block: Decomposed, *v: Float[Array, "*lead I O"]
) -> Array:
    """A kernel of `natgrad.solvers.matrix_functions` for f(A ⊗ G).

    Args:
        kernel: `apply`, `trace` or `diagonal`.
        f: of the eigenvalues a_i g_j.
        block: its factors, decomposed.
        v: V for `apply`.

    Returns:
        What the kernel gives of A ⊗ G; where A is a diagonal, traces by its entry.
    """

    def whole(inputs, outputs, left, right, *v):
        return kernel(f, [Factor(inputs, *left), Factor(outputs, *right)], *v)

    def by_row(inputs, outputs, left, right, *v):
        del left

        def of_row(a, *row):
            columns = [each[:, None] for each in row]
            found = kernel(lambda g: f(a * g), [Factor(outputs, *right)], *columns)
            return found.reshape(found.shape[:1])

        return jax.vmap(of_row)(inputs, *v)

    function = by_row if block.left[1] is None else whole
    for _ in range(block.outputs.ndim - 2):
        function = jax.vmap(function)
    return function(*block, *v)


def invert_damped(
    factors: Sequence[Factors],
    dampings: Sequence[Float[Array, ""]],
    rule: InverseRule,
) -> list[Inverted]:
    """(A + π√λ I)⁻¹ and (G + √λ/π I)⁻¹ of several blocks, for λ = 0 A⁺ and G⁺.

    Args:
        factors: A and G of each block.
        dampings: λ >= 0 of each block, in the units of A ⊗ G.
        rule: how a matrix is inverted.
    """
    shares = damping_shares(factors, dampings)
    full = [i for i, (a, g) in enumerate(factors) if a.ndim == g.ndim]
    results, failed = spd_inverses(
        [_add_to_diagonal(factors[i][0], shares[i][0]) for i in full]
        + [
            _add_to_diagonal(g, d)
            for (_, g), (_, d) in zip(factors, shares, strict=True)
        ],
        [shares[i][0] for i in full] + [d for _, d in shares],
        rule,
    )
    lefts, rights = iter(results[: len(full)]), iter(results[len(full) :])
    inverted = []
    for (a, g), (share, _) in zip(factors, shares, strict=True):
        if a.ndim == g.ndim:
            inverse, dropped = next(lefts), False
        else:
            inverse, dropped = damped_reciprocal(a, share[..., None])
        inverted.append(Inverted(inverse, next(rights), failed | dropped))
    return inverted


def diagonal_of(a: Float[Array, "*A"], g: Array) -> Float[Array, "*lead I"]:
    """The diagonal of A.

    Args:
        a: A, a matrix or its diagonal.
        g: G, which has more axes than a diagonal.
    """
    return a if a.ndim < g.ndim else diagonal(a)


def damping_shares(
    factors: Sequence[Factors], dampings: Sequence[Float[Array, ""]]
) -> list[tuple[Array, Array]]:
    """(π√λ, √λ/π) of each block, [lead...]; all blocks in one array, for fewer sums.

    Args:
        factors: A and G of each block.
        dampings: λ >= 0 of each block, in the units of A ⊗ G.
    """
    leads = [g.shape[:-2] for _, g in factors]
    root = jnp.sqrt(dampings[0])
    if any(damping is not dampings[0] for damping in dampings):
        root = jnp.sqrt(jnp.stack(dampings))[
            np.repeat(np.arange(len(leads)), [math.prod(lead) for lead in leads])
        ]
    rows = [diagonal_of(a, g) for a, g in factors] + [diagonal(g) for _, g in factors]
    left, right = _means(rows).reshape(2, -1)
    regular = (left > 0) & (right > 0)
    ratio = jnp.where(regular, left, 1) / jnp.where(regular, right, 1)
    pi = jnp.sqrt(ratio)
    shares, start = [], 0
    for lead in leads:
        end = start + math.prod(lead)
        pair = (share[start:end].reshape(lead) for share in (pi * root, root / pi))
        shares.append(tuple(pair))
        start = end
    return shares


def _means(rows: Sequence[Array]) -> Array:
    """The mean over the last axis of arrays [lead..., d], one after the other."""
    longest = max(row.shape[-1] for row in rows)
    flat = [row.reshape(-1, row.shape[-1]) for row in rows]
    wide = [jnp.pad(r, ((0, 0), (0, longest - r.shape[-1]))) for r in flat]
    sizes = np.concatenate([np.full(r.shape[0], r.shape[-1]) for r in flat])
    total = jnp.sum(jnp.concatenate(wide), -1)
    return total / jnp.asarray(sizes, total.dtype)


def _add_to_diagonal(matrix: Array, share: Array) -> Array:
    added = jnp.where(_on_diagonal(matrix), share[..., None, None], 0)
    return matrix + added


def _on_diagonal(matrix: Array) -> Array:
    # A mask, which fuses into what reads it; `diagonal` and `eye` would not.
    axes = (matrix.ndim - 2, matrix.ndim - 1)
    row, column = (jax.lax.broadcasted_iota(int, matrix.shape, i) for i in axes)
    return row == column
