"""Functions f(F) of an operator that is known by its products, by Lanczos's method.

    F Q ≈ Q T,     Qᵀ Q = I,     Q e₁ = v/|v|,     T tridiagonal [k, k]
    f(F) v ≈ |v| Q f(T) e₁,      vᵀ f(F) v ≈ |v|² e₁ᵀ f(T) e₁

after k products, exactly where f is a polynomial of degree below k or k reaches the
number of distinct eigenvalues. Every vector is orthogonalised against all before it,
twice: memory k P.

Source: Higham (2008), Functions of Matrices, section 13.2; Golub & Welsch (1969),
Calculation of Gauss quadrature rules.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Float

from natgrad.solvers.matrix_functions import Spectral
from natgrad.solvers.spectral import HIGHEST, eigh
from natgrad.typing import Array


class Ritz(NamedTuple):
    """What k products with F know of v: v = Σ c_i x_i, F x_i ≈ θ_i x_i.

    Attributes:
        values: θ, ascending, those below 0 as 0.
        vectors: x_i as rows, orthonormal; 0 from where the space was exhausted.
        weights: c.
    """

    values: Float[Array, " k"]
    vectors: Float[Array, "k P"]
    weights: Float[Array, " k"]


def ritz(
    operator: Callable[[Array], Array], v: Float[Array, " P"], iterations: int
) -> Ritz:
    """Ritz values and vectors from v.

    Args:
        operator: x -> F x, F symmetric.
        v: [P]; 0 gives zeros.
        iterations: k >= 1.
    """
    length = jnp.linalg.norm(v)
    start = jnp.where(length > 0, v / jnp.where(length > 0, length, 1), 0)
    basis = jnp.zeros((iterations + 1, v.size), v.dtype).at[0].set(start)
    noise = 10 * jnp.finfo(v.dtype).eps

    def advance(carry, index):
        basis, scale = carry
        rest = operator(basis[index])
        diagonal = jnp.vdot(basis[index], rest, precision=HIGHEST)
        for _ in range(2):
            along = jnp.matmul(basis, rest, precision=HIGHEST)
            rest = rest - jnp.matmul(along, basis, precision=HIGHEST)
        below = jnp.linalg.norm(rest)
        scale = jnp.maximum(scale, jnp.maximum(jnp.abs(diagonal), below))
        alive = below > noise * scale
        below = jnp.where(alive, below, 0)
        following = jnp.where(alive, rest / jnp.where(alive, below, 1), 0)
        return (basis.at[index + 1].set(following), scale), (diagonal, below)

    (basis, _), (diagonal, below) = jax.lax.scan(
        advance, (basis, jnp.zeros((), v.dtype)), jnp.arange(iterations)
    )
    off = jnp.diag(below[:-1], 1)
    values, vectors = eigh(jnp.diag(diagonal) + off + off.T)
    rows = jnp.matmul(vectors.T, basis[:-1], precision=HIGHEST)
    return Ritz(jnp.maximum(values, 0), rows, length * vectors[0])


def function_of_operator(
    f: Spectral,
    operator: Callable[[Array], Array],
    v: Float[Array, " P"],
    iterations: int,
) -> Float[Array, " P"]:
    """f(F) v, as far as k products get.

    Args:
        f: of an array of eigenvalues, elementwise.
        operator: x -> F x, F symmetric positive semi-definite.
        v: [P].
        iterations: k; P at most.
    """
    values, vectors, weights = ritz(operator, v, min(iterations, v.size))
    return jnp.matmul(f(values) * weights, vectors, precision=HIGHEST)
