"""Solving (Bᵀ B + λI) x = v with M×M matrices: the push-through identity.

For B [M, P] with M rows, K = B Bᵀ and any u [M] at all, with r = v − Bᵀ u,

    (Bᵀ B + λI)⁻¹ v = Bᵀ (K + λI)⁻¹ (u − B r/λ) + r/λ.

u = 0 is the familiar (v − Bᵀ (K + λI)⁻¹ B v)/λ, which loses all digits when v lies in
the range of Bᵀ and λ is small, as the loss's own gradient does: it subtracts equal
things and divides by λ. There u with Bᵀ u ≈ v is taken (two steps of iterated Tikhonov
regularisation), and what is left of r at rounding level counts as 0. For λ = 0 this is
the solution of least norm.

K + λI is factorised by Cholesky; where that fails, or λ drowns in the rounding of K, by
eigendecomposition with negative eigenvalues of K clipped, which is reported. Forming K
squares the condition number of B; refinement through B (not K) undoes that,

    x ← x + (Bᵀ B + λI)⁻¹ ρ,      ρ = v − Bᵀ (B x) − λ x,

as long as ρ falls and is above rounding (for a large B: above its square root, since a
refinement costs as much as a gradient). Where B is small enough to be written out and
λ < 1e-6 |K|, K is not used at all: R of [B; √λI]ᵀ = Q R gives (K + λI)⁻¹ = R⁻¹ R⁻ᵀ.

With x64 on, K is formed and factorised in float64.

Source: Ren & Goldfarb (2019), Efficient subsampled Gauss-Newton and natural gradient
methods for training neural networks, section 3; Björck, Numerical Methods for Least
Squares Problems (1996), sections 2.7 and 2.9.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from natgrad import tree
from natgrad.jacobian import Jacobian
from natgrad.solvers import HIGHEST, Solution, any_member
from natgrad.typing import Array, ArrayLike, Params

# Numbers in a B that may be written out for a QR decomposition.
_WRITTEN_OUT = 2**24
# λ relative to |K| under which Cholesky's K is not trusted in float32.
_TINY = 1e-6
# Corrections through B, and steps of iterated Tikhonov regularisation, at most.
_REFINEMENTS, _STEPS = 2, 4


def sample_space_solution(
    jacobian: Jacobian, v: Params, damping: ArrayLike
) -> Solution:
    """(Bᵀ B + λI)⁻¹ v and Bᵀ B x, with implicit derivatives of any order.

    Args:
        jacobian: B.
        v: a tree like the parameters.
        damping: λ >= 0.
    """
    dtype = jacobian.layout.dtype
    damping = jnp.asarray(damping, dtype)
    v = jax.tree.map(lambda leaf: leaf.astype(dtype), v)

    def damped(x):
        return _plus(jacobian.pull(jacobian.push(x)), damping, x)

    fixed = jax.lax.stop_gradient((jacobian, damping))  # the derivative is implicit
    inverse, failed = _inverse(*fixed)
    solve = lambda _, b: _refined(*fixed, inverse, b)
    value, residual = jax.lax.custom_linear_solve(
        damped, v, solve, symmetric=True, has_aux=True
    )
    # F x = v − λ x − ρ, whose derivative is that of the exact solution.
    product = jax.tree.map(lambda b, x, r: b - damping * x - r, v, value, residual)
    return Solution(value, failed, product)


def _inverse(jacobian: Jacobian, damping: Array) -> tuple[Callable, Array]:
    """u -> (K + λI)⁻¹ u, and whether Cholesky failed."""
    wide = jnp.promote_types(jacobian.layout.dtype, jax.dtypes.canonicalize_dtype(float))
    jacobian = jax.tree.map(lambda leaf: leaf.astype(wide), jacobian)
    damping = damping.astype(wide)
    gram = jacobian.gram()
    size, epsilon = gram.shape[0], jnp.finfo(wide).eps
    largest = jnp.max(jnp.diagonal(gram))
    tiny = (damping < _tiny(wide, size) * largest) & (damping > 0)
    tiny = tiny & (size * jacobian.layout.size <= _WRITTEN_OUT)
    lower = jax.lax.cond(
        any_member(tiny),
        lambda: _by_qr(jacobian, damping, size),
        lambda: jnp.linalg.cholesky(
            gram + damping * jnp.eye(size, dtype=wide), symmetrize_input=False
        ),
    )
    rounding = size * epsilon
    smallest = jnp.min(jnp.diagonal(lower)) ** 2
    regular = smallest > jnp.where(tiny, rounding**2, rounding) * largest
    failed = ~(regular & (damping > 0) & jnp.all(jnp.isfinite(lower)))

    def spectral():
        values, vectors = jnp.linalg.eigh((gram + gram.T) / 2)
        values = jnp.maximum(values, 0)
        total = values + damping
        cutoff = size * epsilon * jnp.max(values)
        keep = (values > cutoff) | (damping > cutoff)
        return vectors, jnp.where(keep, 1 / jnp.where(keep, total, 1), 0)

    nothing = lambda: (jnp.zeros_like(gram), jnp.zeros_like(gram[0]))
    vectors, scales = jax.lax.cond(any_member(failed), spectral, nothing)

    def solve(u):
        b = u.astype(wide)
        rotated = scales * jnp.matmul(vectors.T, b, precision=HIGHEST)
        by_eigenvectors = jnp.matmul(vectors, rotated, precision=HIGHEST)
        x = jax.scipy.linalg.cho_solve((lower, True), b)
        return jnp.where(failed, by_eigenvectors, x).astype(u.dtype)

    return solve, failed


def _tiny(dtype, size: int) -> float:
    """λ/|K| under which K's rounding, or that of the squares in it, drowns λ."""
    epsilon = float(jnp.finfo(dtype).eps)
    return max(_TINY, size * epsilon) if epsilon > 1e-10 else size * epsilon


def _by_qr(jacobian: Jacobian, damping: Array, size: int) -> Array:
    """The Cholesky factor of K + λI from B rather than from K."""
    rows = jacobian.explicit().T.astype(damping.dtype)
    eye = jnp.eye(size, dtype=damping.dtype)
    upper = jnp.linalg.qr(jnp.concatenate([rows, jnp.sqrt(damping) * eye]), mode="r")
    return (upper * jnp.sign(jnp.diagonal(upper))[:, None]).T


def _refined(jacobian, damping, inverse, b) -> tuple[Params, Params]:
    """x, refined through B, and its residual."""
    epsilon = jnp.finfo(jacobian.layout.dtype).eps
    small = jacobian.size * jacobian.layout.size <= _WRITTEN_OUT
    enough = (100 * epsilon**2 if small else epsilon) * tree.inner(b, b)

    def unfinished(state):
        _, rest, count, improved = state
        above = tree.inner(rest, rest) > enough
        again = (count <= _REFINEMENTS) & improved & above & (damping > 0)
        return (count == 0) | again

    def step(state):
        x, rest, count, _ = state
        new = _plus(x, 1, _pushed_through(jacobian, damping, inverse, rest))
        product = jacobian.pull(jacobian.push(new))
        left = jax.tree.map(lambda b, p, x: b - p - damping * x, b, product, new)
        improved = tree.inner(left, left) < tree.inner(rest, rest)
        take = improved | (count == 0)
        x, rest = tree.where(take, (new, left), (x, rest))
        return x, rest, count + 1, improved

    zero = jax.tree.map(jnp.zeros_like, b)
    start = (zero, b, jnp.zeros((), jnp.int32), jnp.array(True))
    x, rest, _, _ = jax.lax.while_loop(unfinished, step, start)
    return x, rest


def _pushed_through(jacobian, damping, inverse, b) -> Params:
    """The identity, with u = 0, or with Bᵀ u ≈ b where that can be had."""
    c = jacobian.push(b)
    u = inverse(c)
    square = tree.inner(b, b)
    epsilon = jnp.finfo(c.dtype).eps
    # |b − Bᵀ u|², as far as it can be had from M numbers.
    rest = square - jnp.vdot(u, c + damping * u, precision=HIGHEST)
    inside = (damping == 0) | (rest < 1e-2 * square)

    def split():
        v = u
        for _ in range(_STEPS - 1):
            v = u + damping * inverse(v)
        left = _plus(b, -1, jacobian.pull(v))
        counts = tree.inner(left, left) > 100 * epsilon**2 * square
        left = tree.where(
            counts & (damping > 0), left, jax.tree.map(jnp.zeros_like, left)
        )
        ours = tree.where(inside, (v, left), (jnp.zeros_like(v), b))
        return (*ours, jnp.where(inside, jacobian.push(left), c))

    whole = lambda: (jnp.zeros_like(u), b, c)
    u, r, c = jax.lax.cond(any_member(inside), split, whole)
    inverse_damping = 1 / jnp.where(damping > 0, damping, 1)
    x = jacobian.pull(inverse(u - inverse_damping * c))
    return _plus(x, inverse_damping, r)


def _plus(tree_, scale, other) -> Params:
    return jax.tree.map(lambda a, b: a + scale * b, tree_, other)
