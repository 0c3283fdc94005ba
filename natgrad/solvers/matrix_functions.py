"""Functions f(F) of symmetric matrices and of Kronecker products of two of them.

    f(F) = Σ_i f(s_i) u_i u_iᵀ,     F = U diag(s) Uᵀ,     s >= 0

f is any JAX function of an array, taken elementwise; eigenvalues that rounding makes
negative count as 0. For F = A ⊗ G the eigenvalues are the products a_i g_j.

Source: Higham (2008), Functions of Matrices, sections 1.2 and 3.2.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Float

from natgrad.solvers.spd_inverse import together
from natgrad.solvers.spectral import HIGHEST, eigh
from natgrad.typing import Array

# Of an array of eigenvalues, elementwise.
Spectral = Callable[[Array], Array]


def shifted(f: Spectral, damping: Array) -> Spectral:
    """s -> f(s + λ).

    Args:
        f: of eigenvalues.
        damping: λ.
    """
    return lambda s: f(s + damping)


class Factor(NamedTuple):
    """A symmetric matrix, and its eigendecomposition as constants.

    Attributes:
        matrix: A, which carries the derivative.
        values: its eigenvalues, ascending, those below 0 as 0.
        vectors: their eigenvectors as columns.
    """

    matrix: Float[Array, "n n"]
    values: Float[Array, " n"]
    vectors: Float[Array, "n n"]


def decomposed(matrices: Sequence[Float[Array, "*lead n n"]]) -> list[Factor]:
    """Each matrix with its eigendecomposition; those of one size by one program.

    Args:
        matrices: symmetric.
    """
    pairs = together(eigh, jax.lax.stop_gradient(list(matrices)))
    return [
        Factor(matrix, jnp.maximum(values, 0), vectors)
        for matrix, (values, vectors) in zip(matrices, pairs, strict=True)
    ]


def apply(f: Spectral, factors: Sequence[Factor], v: Float[Array, "n m"]) -> Array:
    """f(A) V, or of two factors the matrix of f(A ⊗ G) vec V.

    Args:
        f: of eigenvalues.
        factors: (A,), or (A, G).
        v: V, [n, m]; of two factors [I, O].

    Returns:
        An array like V.
    """
    return _out(factors, _values(f, factors) * _in(factors, v))


def trace(f: Spectral, factors: Sequence[Factor]) -> Float[Array, ""]:
    """tr f(A), or tr f(A ⊗ G).

    Args:
        f: of eigenvalues.
        factors: (A,), or (A, G).
    """
    return jnp.sum(_values(f, factors))


def diagonal(f: Spectral, factors: Sequence[Factor]) -> Float[Array, "n m"]:
    """diag f(A) as [n, 1], or that of f(A ⊗ G) as a matrix [I, O].

    Args:
        f: of eigenvalues.
        factors: (A,), or (A, G).
    """
    squares = [factor._replace(vectors=factor.vectors**2) for factor in factors]
    return _out(squares, _values(f, factors))


def from_zero(f: Spectral) -> Spectral:
    """s -> (f(s) − f(0))/s, with the limit f'(0) at 0.

    Args:
        f: of eigenvalues.
    """

    def quotient(s):
        null = s == 0
        zero = jnp.zeros_like(s)
        slope = jax.jvp(f, (zero,), (jnp.ones_like(s),))[1]
        return jnp.where(null, slope, (f(s) - f(zero)) / jnp.where(null, 1, s))

    return quotient


def _values(f, factors):
    left, *right = [factor.values for factor in factors]
    return f(left[:, None] * (right[0][None] if right else 1))


def _in(factors, v):
    v = jnp.matmul(factors[0].vectors.T, v, precision=HIGHEST)
    for factor in factors[1:]:
        v = jnp.matmul(v, factor.vectors, precision=HIGHEST)
    return v


def _out(factors, v):
    v = jnp.matmul(factors[0].vectors, v, precision=HIGHEST)
    for factor in factors[1:]:
        v = jnp.matmul(v, factor.vectors.T, precision=HIGHEST)
    return v
