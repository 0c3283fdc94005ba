"""Lanczos's method: a symmetric operator as a small tridiagonal matrix.

    F Q ≈ Q T,     Qᵀ Q = I,     Q e₁ = v/|v|,     T tridiagonal [k, k]

so that vᵀ f(F) v ≈ |v|² e₁ᵀ f(T) e₁, of which the mean over random v with E[v vᵀ] = I
is tr f(F) (stochastic Lanczos quadrature), and the extreme eigenvalues of T lie inside
those of F. Every vector is orthogonalised against all before it, twice.

Source: Golub & Welsch (1969), Calculation of Gauss quadrature rules; Ubaru, Chen & Saad
(2017), Fast estimation of tr(f(A)) via stochastic Lanczos quadrature.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from natgrad.typing import Array


class Krylov(NamedTuple):
    """What k products gave.

    Attributes:
        diagonal: of T, [k].
        below: beside it, [k]; the last lies outside T.
        basis: Q's columns as rows, [k, P]; zero from where the space was exhausted.
        extra: what the operator gave beside its products, stacked.
        length: |v|.
    """

    diagonal: Array
    below: Array
    basis: Array
    extra: Any
    length: Array

    def matrix(self) -> np.ndarray:
        """T."""
        off = np.asarray(self.below, float)[:-1]
        diagonal = np.asarray(self.diagonal, float)
        return np.diag(diagonal) + np.diag(off, 1) + np.diag(off, -1)

    def quadrature(self) -> tuple[np.ndarray, np.ndarray]:
        """Nodes θ and weights w with vᵀ f(F) v ≈ Σ w f(θ)."""
        nodes, vectors = np.linalg.eigh(self.matrix())
        return nodes, float(self.length) ** 2 * vectors[0] ** 2

    def image(self) -> Array:
        """F v."""
        first = self.diagonal[0] * self.basis[0] + self.below[0] * self.basis[1]
        return self.length * first

    def solved(self, damping: float) -> Array:
        """(F + λI)⁻¹ v, as far as k steps of conjugate gradients get."""
        right = np.zeros(len(self.diagonal))
        right[0] = float(self.length)
        damped = self.matrix() + damping * np.eye(len(right))
        weights = np.linalg.lstsq(damped, right)[0]
        return jnp.asarray(weights, self.basis.dtype) @ self.basis


def lanczos(
    operator: Callable[[Array], tuple[Array, Any]], v: Array, iterations: int
) -> Krylov:
    """`iterations` steps from v.

    Args:
        operator: x -> (F x, anything to be stacked), F symmetric.
        v: [P], not 0.
        iterations: k >= 2.
    """
    length = jnp.linalg.norm(v)
    basis = jnp.zeros((iterations + 1, v.size), v.dtype).at[0].set(v / length)
    noise = 10 * jnp.finfo(v.dtype).eps

    def advance(carry, index):
        basis, scale = carry
        q = basis[index]
        image, extra = operator(q)
        diagonal = _dot(q, image)
        rest = image
        for _ in range(2):
            along = jnp.matmul(basis, rest, precision=jax.lax.Precision.HIGHEST)
            rest = rest - jnp.matmul(along, basis, precision=jax.lax.Precision.HIGHEST)
        below = jnp.linalg.norm(rest)
        scale = jnp.maximum(scale, jnp.maximum(jnp.abs(diagonal), below))
        alive = below > noise * scale
        below = jnp.where(alive, below, 0)
        following = jnp.where(alive, rest / jnp.where(alive, below, 1), 0)
        return (basis.at[index + 1].set(following), scale), (diagonal, below, extra)

    start = (basis, jnp.zeros((), v.dtype))
    (basis, _), (diagonal, below, extra) = jax.lax.scan(
        advance, start, jnp.arange(iterations)
    )
    return Krylov(diagonal, below, basis[:-1], extra, length)


def _dot(a: Array, b: Array) -> Array:
    return jnp.vdot(a, b, precision=jax.lax.Precision.HIGHEST)
