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
squares the condition number of B; refinement of w = (K + λI)⁻¹ h through B undoes that,

    w ← w + (K + λI)⁻¹ e,      e = h − λ w − B (Bᵀ w),

as long as e halves and is above rounding; x = Bᵀ w + r/λ has the residual Bᵀ e. A large
B is refined through only where the rounding of K matters, λ < ε^¾ |K|, since that takes
two products with it. Where B is small enough to be written out and λ < 1e-6 |K|, in
float64 M ε |K|, K is not used: R of [B; √λI]ᵀ = Q R gives (K + λI)⁻¹ = R⁻¹ R⁻ᵀ.

With x64 on, K is formed and factorised in float64.

Source: Ren & Goldfarb (2019), Efficient subsampled Gauss-Newton and natural gradient
methods for training neural networks; Björck (1996), Numerical Methods for Least Squares
Problems.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp

from natgrad import tree
from natgrad.control_flow import any_over_vmap
from natgrad.solvers.base import Remainder, Solution
from natgrad.solvers.score_jacobian import Jacobian
from natgrad.solvers.spectral import HIGHEST, spectral_root
from natgrad.typing import Array, ArrayLike, Params

# Numbers in a B that may be written out for a QR decomposition.
_WRITTEN_OUT = 2**24
# λ relative to |K| under which Cholesky's K is not trusted in float32.
_TINY = 1e-6
# Corrections through B, and steps of iterated Tikhonov regularisation, at most.
_REFINEMENTS, _STEPS = 3, 4


def sample_space_solution(
    jacobian: Jacobian, v: Params, damping: ArrayLike
) -> Solution:
    """(Bᵀ B + λI)⁻¹ v with implicit derivatives of any order, and what is left of v.

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
    inverse, gram, failed = _inverse(*fixed)
    solve = lambda _, b: _solved(*fixed, inverse, gram, b)
    value, rest = jax.lax.custom_linear_solve(
        damped, v, solve, symmetric=True, has_aux=True
    )
    return Solution(value, failed, Remainder(*rest))


def _inverse(
    jacobian: Jacobian, damping: Array
) -> tuple[Callable[[Array], Array], Array, Array]:
    """u -> (K + λI)⁻¹ u, K, and whether Cholesky failed."""
    dtype = jacobian.layout.dtype
    wide = jnp.promote_types(dtype, jax.dtypes.canonicalize_dtype(float))
    jacobian = jax.tree.map(lambda leaf: leaf.astype(wide), jacobian)
    damping = damping.astype(wide)
    gram = jacobian.gram()
    size, epsilon = gram.shape[0], jnp.finfo(wide).eps
    diagonal = jnp.diagonal(gram) + damping
    largest = jnp.max(diagonal)
    small = size * jacobian.layout.size <= _WRITTEN_OUT
    tiny = (damping < _tiny(wide, size) * largest) & (damping > 0) & small
    by_cholesky = lambda: jax.lax.linalg.cholesky(  # of Kᵀ: LAPACK's order, so no copy
        gram.T + damping * jnp.eye(size, dtype=wide), symmetrize_input=False
    )
    by_qr = lambda: _by_qr(jacobian, damping, size)
    lower = (
        jax.lax.cond(any_over_vmap(tiny), by_qr, by_cholesky)
        if small
        else by_cholesky()
    )
    # Beside the row's own entry of K, so that rows of different sizes do not matter.
    pivots = jnp.diagonal(lower) ** 2 / jnp.where(diagonal > 0, diagonal, 1)
    rounding = size * epsilon
    regular = jnp.min(pivots) > jnp.where(tiny, rounding**2, rounding)
    failed = ~(regular & (damping > 0) & jnp.all(jnp.isfinite(lower)))
    root = jax.lax.cond(
        any_over_vmap(failed),
        lambda: spectral_root(gram, damping),
        lambda: jnp.zeros_like(gram),
    )

    def solve(u):
        b = u.astype(wide)
        by_cholesky = lambda: jax.scipy.linalg.cho_solve((lower, True), b)

        def by_eigenvectors():
            x = jnp.matmul(root.T, b, precision=HIGHEST)
            x = jnp.matmul(root, x, precision=HIGHEST)
            return jnp.where(failed, x, by_cholesky())

        x = jax.lax.cond(any_over_vmap(failed), by_eigenvectors, by_cholesky)
        return x.astype(u.dtype)

    return solve, gram.astype(dtype), failed


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


class _Split(NamedTuple):
    """v = Bᵀ u + r: how much of v is in the range of Bᵀ.

    Attributes:
        u: [M].
        pushed: B r, [M].
        outside: 1 if r counts, 0 if it is rounding.
    """

    u: Array
    pushed: Array
    outside: Array


def gram_solution(
    jacobian: Jacobian, b: Array, damping: ArrayLike
) -> tuple[Array, Array]:
    """(B Bᵀ + λI)⁻¹ b for λ > 0, refined through B, and whether Cholesky failed.

    Args:
        jacobian: B.
        b: [M].
        damping: λ.
    """
    b = b.astype(jacobian.layout.dtype)
    damping = jnp.asarray(damping, b.dtype)
    fixed = jax.lax.stop_gradient((jacobian, damping))
    inverse, gram, failed = _inverse(*fixed)
    value = jax.lax.custom_linear_solve(
        lambda w: jacobian.push(jacobian.pull(w)) + damping * w,
        b,
        lambda _, b: _refined(*fixed, inverse, gram, b)[0],
        symmetric=True,
    )
    return value, failed


def _refined(jacobian, damping, inverse, gram, h) -> tuple[Array, Array]:
    """w = (K + λI)⁻¹ h and e = h − (K + λI) w, refined through B where it pays."""
    w = inverse(h)
    e = h - jnp.matmul(gram, w, precision=HIGHEST) - damping * w
    epsilon = jnp.finfo(w.dtype).eps
    size = jnp.max(jnp.sum(jnp.abs(gram), axis=1))
    small = jacobian.size * jacobian.layout.size <= _WRITTEN_OUT
    worthwhile = (epsilon**0.75 * size > damping) | small
    worthwhile = worthwhile & (damping > 0)
    enough = 10 * epsilon * jnp.linalg.norm(h)

    def unfinished(state):
        _, e, count, improved = state
        above = jnp.linalg.norm(e) > enough
        return worthwhile & improved & above & (count <= _REFINEMENTS)

    def step(state):
        w, e, count, _ = state
        # The first e was that of K, which is no measure: measure w itself.
        closer = jnp.where(count == 0, w, w + inverse(e))
        rest = h - damping * closer - jacobian.push(jacobian.pull(closer))
        improved = (count == 0) | (jnp.linalg.norm(rest) < jnp.linalg.norm(e) / 2)
        return *tree.where(improved, (closer, rest), (w, e)), count + 1, improved

    begun = tree.varying_like((jnp.zeros((), jnp.int32), jnp.array(True)), (w, e))
    state = (w, e, *begun)
    w, e, _, _ = jax.lax.while_loop(unfinished, step, state)
    return w, e


def _solved(jacobian, damping, inverse, gram, b) -> tuple[Params, tuple[Array, Array]]:
    """x, and (|ρ|, ⟨x, ρ⟩) of its residual ρ = Bᵀ e."""
    u, pushed, outside = _split(jacobian, damping, inverse, b)
    share = outside / jnp.where(damping > 0, damping, 1)
    w, e = _refined(jacobian, damping, inverse, gram, u - share * pushed)
    rows = jacobian.pull(w - share * u)
    x = jax.tree.map(lambda p, b: p + share * b, rows, b)
    dot = lambda a, b: jnp.matmul(a, b, precision=HIGHEST)
    square = dot(e, dot(gram, e))
    # B x = u − λ w − e.
    rest = (jnp.sqrt(jnp.maximum(square, 0)), dot(u - damping * w - e, e))
    return x, rest


def _split(jacobian, damping, inverse, b) -> _Split:
    """u = 0, or Bᵀ u ≈ b where that can be had."""
    c = jacobian.push(b)
    u = inverse(c)
    square, epsilon = tree.inner(b, b), jnp.finfo(c.dtype).eps
    # |b − Bᵀ u|², as far as M numbers tell.
    rest = square - jnp.vdot(u, c + damping * u, precision=HIGHEST)
    inside = (damping == 0) | (rest < 1e-2 * square)
    nowhere = _Split(jnp.zeros_like(u), c, jnp.ones_like(square))

    def within():
        v = u
        for _ in range(_STEPS - 1):
            v = u + damping * inverse(v)
        left = jax.tree.map(lambda b, p: b - p, b, jacobian.pull(v))
        counts = tree.inner(left, left) > 100 * epsilon**2 * square
        outside = (counts & (damping > 0)).astype(c.dtype)
        found = _Split(v, outside * jacobian.push(left), outside)
        return tree.where(inside, found, nowhere)

    return jax.lax.cond(any_over_vmap(inside), within, lambda: nowhere)


def _plus(tree_, scale, other) -> Params:
    return jax.tree.map(lambda a, b: a + scale * b, tree_, other)
