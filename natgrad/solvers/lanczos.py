"""Functions f(F) of an operator that is known by its products, by Lanczos's method.

    F Q ≈ Q T,     Qᵀ Q = I,     Q e₁ = v/|v|,     T tridiagonal [k, k]
    f(F) v ≈ |v| Q f(T) e₁,      vᵀ f(F) v ≈ |v|² e₁ᵀ f(T) e₁

after k products, exactly where f is a polynomial of degree below k or k reaches the
number of distinct eigenvalues. Every vector is orthogonalised against all before it,
twice: memory k P.

Source: Higham (2008), Functions of Matrices, section 13.2; Golub & Welsch (1969),
Calculation of Gauss quadrature rules; Ubaru, Chen & Saad (2017), Fast estimation of
tr(f(A)) via stochastic Lanczos quadrature, for traces by random v.
"""

from __future__ import annotations

import bisect
import functools
import itertools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from natgrad import tree
from natgrad.control_flow import lifted
from natgrad.solvers.chains import Chain, contraction, missing, put
from natgrad.solvers.divided_differences import divided_difference
from natgrad.solvers.matrix_functions import Spectral
from natgrad.solvers.spectral import HIGHEST, eigh
from natgrad.typing import Array

# With a matrix, for its largest eigenvalue.
_PRODUCTS = 100


class Krylov(NamedTuple):
    """What k products with F know of v; the methods are for the host, in float64.

    Attributes:
        diagonal: of T.
        below: beside it; the last lies outside T.
        basis: Q's columns as rows; 0 from where the space was exhausted.
        extra: what the operator gave beside its products, stacked.
        length: |v|.
    """

    diagonal: Float[Array, " k"]
    below: Float[Array, " k"]
    basis: Float[Array, "k P"]
    extra: Any
    length: Float[Array, ""]

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
        """F v, for k >= 2."""
        first = self.diagonal[0] * self.basis[0] + self.below[0] * self.basis[1]
        return self.length * first

    def solved(self, damping: float) -> Array:
        """(F + λI)⁻¹ v, as far as k steps of conjugate gradients get."""
        right = np.zeros(len(self.diagonal))
        right[0] = float(self.length)
        damped = self.matrix() + damping * np.eye(len(right))
        weights = np.linalg.lstsq(damped, right)[0]
        return jnp.asarray(weights, self.basis.dtype) @ self.basis


def krylov(
    operator: Callable[[Array], tuple[Array, Any]],
    v: Float[Array, " P"],
    iterations: int,
) -> Krylov:
    """T and Q from v.

    Args:
        operator: x -> (F x, anything to be stacked), F symmetric.
        v: [P]; 0 gives zeros.
        iterations: k >= 1.
    """
    length = jnp.linalg.norm(v)
    start = jnp.where(length > 0, v / jnp.where(length > 0, length, 1), 0)
    basis = jnp.zeros((iterations + 1, v.size), v.dtype).at[0].set(start)
    noise = 10 * jnp.finfo(v.dtype).eps

    def advance(carry, index):
        basis, scale = carry
        rest, extra = operator(basis[index])
        diagonal = jnp.vdot(basis[index], rest, precision=HIGHEST)
        for _ in range(2):
            along = jnp.matmul(basis, rest, precision=HIGHEST)
            rest = rest - jnp.matmul(along, basis, precision=HIGHEST)
        below = jnp.linalg.norm(rest)
        scale = jnp.maximum(scale, jnp.maximum(jnp.abs(diagonal), below))
        alive = below > noise * scale
        below = jnp.where(alive, below, 0)
        following = jnp.where(alive, rest / jnp.where(alive, below, 1), 0)
        return (basis.at[index + 1].set(following), scale), (diagonal, below, extra)

    (basis, _), (diagonal, below, extra) = jax.lax.scan(
        advance, (basis, jnp.zeros((), v.dtype)), jnp.arange(iterations)
    )
    return Krylov(diagonal, below, basis[:-1], extra, length)


class Ritz(NamedTuple):
    """What k products with F know of v: v = Σ c_i x_i, F x_i ≈ θ_i x_i.

    Attributes:
        values: θ, ascending, those below 0 as 0. The first are those of vectors that
            are 0, and one of the spectrum; 1 where v = 0.
        vectors: x_i as rows, orthonormal; 0 for as many as the space lacks.
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
    space = krylov(lambda x: (operator(x), ()), v, iterations)
    diagonal, below = space.diagonal, space.below[:-1]
    scale = jnp.maximum(jnp.max(jnp.abs(diagonal)), jnp.max(space.below))
    # What is beyond an exhausted space gets values far below all others, of which it is
    # told: f may not be finite at 0, which need not be an eigenvalue.
    lacking = jnp.arange(iterations) > jnp.sum(jnp.cumprod(below > 0))
    off = jnp.diag(below, 1)
    values, vectors = eigh(jnp.diag(jnp.where(lacking, -scale, diagonal)) + off + off.T)
    values = jnp.where(values < -scale / 2, diagonal[0], jnp.maximum(values, 0))
    values = jnp.where(space.length > 0, values, 1)
    rows = jnp.matmul(vectors.T, space.basis, precision=HIGHEST)
    return Ritz(values, rows, space.length * vectors[0])


def function_of_operator(
    f: Spectral,
    operator: Callable[[Array], Array],
    v: Float[Array, " P"],
    iterations: int,
) -> Float[Array, " P"]:
    """f(F) v, as far as k products get.

    Derivatives are those of f(F) v, of any order in F, in v and in what f closes over:
    the first in F forwards in k² products, backwards in 2 k, and each further order in
    k times as many.

    Args:
        f: of an array of eigenvalues, elementwise.
        operator: x -> F x, F symmetric positive semi-definite.
        v: [P].
        iterations: k; P at most.
    """
    product, arrays = lifted(operator, v)
    run, constants = lifted(f, jnp.zeros((), v.dtype))
    evaluate = functools.partial(_evaluate, product, min(iterations, v.size))
    chain = Chain(evaluate, run, (0,), linear=False)
    return contraction(chain, (arrays,), (), tuple(constants), (None, v))


def largest_eigenvalue(
    operator: Callable[[Array], Array], start: Float[Array, " P"], iterations: int
) -> Float[Array, ""]:
    """⟨x, F x⟩ of the last Ritz vector x, from inside; to first order in F exact.

    Args:
        operator: x -> F x, F symmetric positive semi-definite.
        start: [P].
        iterations: k; P at most.
    """
    product, arrays = lifted(operator, start)
    fixed = jax.lax.stop_gradient(arrays)
    count = min(iterations, start.size)
    x = ritz(lambda x: product(*fixed, x)[0], start, count).vectors[-1]
    return jnp.vdot(x, operator(x), precision=HIGHEST)


def largest_of_matrix(matrix: Float[Array, "n n"]) -> Float[Array, ""]:
    """Max s of a symmetric matrix by 100 products, from inside.

    Args:
        matrix: symmetric positive semi-definite.
    """
    start = jax.random.normal(jax.random.PRNGKey(0), matrix.shape[:1], matrix.dtype)
    return largest_eigenvalue(
        lambda x: jnp.matmul(matrix, x, precision=HIGHEST), start, _PRODUCTS
    )


def _evaluate(product, iterations, chain, arrays, bases, constants, operands):
    """See `natgrad.solvers.chains.contraction`: W, tangents of F, and V.

    A chain is walked from its ends, from each Ritz vector through the next derivative
    of F to new Ritz vectors; f is read where the walk ends.
    """
    del bases
    (arrays,), f, left_out = arrays, chain.f(constants), missing(operands)
    first, *tangents, last = operands
    edges = [0, *itertools.accumulate(chain.orders)]
    slots = [tangents[a:b] for a, b in itertools.pairwise(edges)]
    moved = functools.partial(_moved, product, arrays)

    def f_at(*points):
        return divided_difference(f, jnp.broadcast_arrays(*points))

    def walk(v, slots, finish, *points):
        found = ritz(lambda x: product(*arrays, x)[0], v, iterations)
        if not slots:
            return finish(found, *points)

        def term(pair):
            value, weight, x = jax.tree.map(lambda leaf: leaf[0], pair)
            return walk(weight * moved(slots[0], x), slots[1:], finish, *points, value)

        pairs = found.values, found.weights, found.vectors
        return tree.sum_over_chunks(term, pairs, 1)

    def vector(found, *points):
        weights = f_at(found.values, *points) * found.weights
        return jnp.matmul(weights, found.vectors, precision=HIGHEST)

    if left_out == 0:
        return walk(last, slots[::-1], vector)
    if left_out == len(operands) - 1:
        return walk(first, slots, vector)
    slot = bisect.bisect_right(edges, left_out - 1) - 1
    hole, position = slots[slot], left_out - 1 - edges[slot]
    zero = {i: jnp.zeros_like(arrays[i]) for i in chain.moving[left_out - 1]}

    def from_both(right, *behind):
        def gradient(left, *before):
            points = left.values[:, None], right.values[None], *before, *behind
            scaled = left.weights[:, None] * f_at(*points) * right.weights[None]
            images = jnp.matmul(scaled.T, left.vectors, precision=HIGHEST)

            def pulled(pair):
                x, image = jax.tree.map(lambda leaf: leaf[0], pair)
                along = lambda tangent: moved(put(hole, {position: tangent}), x)
                return jax.vjp(along, zero)[1](image)[0]

            return tree.sum_over_chunks(pulled, (right.vectors, images), 1)

        return walk(first, slots[:slot], gradient)

    return walk(last, slots[:slot:-1], from_both)


def _moved(product, arrays, tangents, x):
    """The derivative of F x in its arrays, along all of the tangents."""

    def along(function, tangent):
        def slope(values):
            at = lambda moving: function(put(values, moving))
            return jax.jvp(at, ({i: values[i] for i in tangent},), (tangent,))[1]

        return slope

    return functools.reduce(along, tangents, lambda a: product(*a, x)[0])(arrays)
