"""The eigendecompositions of the factors A and G of a block, and what inverts by them.

A is a matrix [lead..., I(+1), I(+1)], or its diagonal [I] where the layer's inputs are
rows of the identity; G is a matrix [lead..., O, O]. The inverse of A ⊗ G + λI is that
of `natgrad.metrics.kronecker.metric`.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float

from natgrad.control_flow import symmetric_solve
from natgrad.metrics.blockwise import kron_matvec
from natgrad.metrics.eigenbasis import eigenbases, rotate
from natgrad.solvers import matrix_functions
from natgrad.solvers.lanczos import largest_of_matrix
from natgrad.solvers.matrix_functions import Factor, Spectral
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

    def solve(v):
        return rotate(inverse * rotate(v, left, right), left_back, right_back)

    def solution(v):
        return symmetric_solve(lambda x: forward(x) + damping * x, v, solve)

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
