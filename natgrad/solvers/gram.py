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

With x64 on, K is formed and factorised in float64. Over devices it is spread by block
rows (`natgrad.solvers.device_kernel`).

Source: Ren & Goldfarb (2019), Efficient subsampled Gauss-Newton and natural gradient
methods for training neural networks; Björck (1996), Numerical Methods for Least Squares
Problems.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float

from natgrad import tree
from natgrad.control_flow import any_over_vmap, symmetric_solve, traced_once
from natgrad.solvers.base import Remainder, Solution
from natgrad.solvers.device_kernel import factorized
from natgrad.solvers.device_rows import DeviceRows
from natgrad.solvers.score_jacobian import Jacobian
from natgrad.solvers.spectral import HIGHEST, spectral_root
from natgrad.typing import Array, ArrayLike, Params

# λ relative to |K| under which Cholesky's K is not trusted in float32.
_TINY = 1e-6
# Corrections through B, and steps of iterated Tikhonov regularisation, at most.
_REFINEMENTS, _STEPS = 3, 4


def sample_space_solution(
    jacobian: Jacobian, v: Params, damping: ArrayLike
) -> Solution:
    """(Bᵀ B + λI)⁻¹ v with implicit derivatives of any order.

    Args:
        jacobian: B, [M, P].
        v: a tree like the parameters.
        damping: λ >= 0, in the units of Bᵀ B.

    Returns:
        x, a tree in the working dtype; as `fallback`, whether Cholesky failed; and the
        remainder of the residual.
    """
    dtype = jacobian.layout.dtype
    damping = jnp.asarray(damping, dtype)
    given = jax.tree.map(lambda leaf: leaf.astype(dtype), v)
    system = _factorize(*jax.lax.stop_gradient((jacobian, damping)))
    # Over devices, all that a linear solve reads must vary where a part of it does.
    jacobian, damping, v = tree.varying_like((jacobian, damping, given), jacobian)
    constants = jax.lax.stop_gradient((jacobian, damping))
    system = system._replace(jacobian=constants[0], damping=constants[1])

    def damped(x):
        return _plus(system.pull(jacobian, system.push(jacobian, x)), damping, x)

    value, remainder = symmetric_solve(  # so the derivative is implicit
        damped, v, functools.partial(_solve, system), has_aux=True
    )
    value, remainder = tree.same_on_devices((value, remainder), (given, system.failed))
    return Solution(value, system.failed, Remainder(*remainder))


def gram_solution(
    jacobian: Jacobian, b: Float[Array, " M"], damping: ArrayLike
) -> tuple[Float[Array, " M"], Bool[Array, ""]]:
    """(B Bᵀ + λI)⁻¹ b, refined through B, and whether Cholesky failed.

    Args:
        jacobian: B, [M, P].
        b: one number a row of B.
        damping: λ > 0, in the units of B Bᵀ.
    """
    b = b.astype(jacobian.layout.dtype)
    damping = jnp.asarray(damping, b.dtype)
    system = _factorize(*jax.lax.stop_gradient((jacobian, damping)))
    value = symmetric_solve(
        lambda w: system.push(jacobian, system.pull(jacobian, w)) + damping * w,
        b,
        lambda b: _refine(system, b)[0],
    )
    return value, system.failed


class _System(NamedTuple):
    """K + λI, factorised.

    Attributes:
        jacobian: B.
        damping: λ.
        norm: the largest row sum of |K|, K = B Bᵀ.
        multiply: w [M] -> K w.
        inverse: u [M] -> (K + λI)⁻¹ u.
        failed: did Cholesky fail?
        push: (B, x) -> B x, with B of these shapes.
        pull: (B, u) -> Bᵀ u.
    """

    jacobian: Jacobian
    damping: Float[Array, ""]
    norm: Float[Array, ""]
    multiply: Callable[[Array], Array]
    inverse: Callable[[Array], Array]
    failed: Bool[Array, ""]
    push: Callable[[Jacobian, Params], Array]
    pull: Callable[[Jacobian, Array], Params]


def _factorize(jacobian: Jacobian, damping: Array) -> _System:
    dtype = jacobian.layout.dtype
    wide = jnp.promote_types(dtype, jax.dtypes.canonicalize_dtype(float))
    wide_jacobian = jacobian.astype(wide)
    products = (
        traced_once(lambda jacobian, x: jacobian.push(x)),
        traced_once(lambda jacobian, u: jacobian.pull(u)),
    )
    if isinstance(jacobian.pieces[0], DeviceRows):
        spread = factorized(wide_jacobian, damping)
        return _System(jacobian, damping, *spread, *products)
    gram, wide_damping = wide_jacobian.gram(), damping.astype(wide)
    lower, failed = _cholesky(wide_jacobian, gram, wide_damping)
    root = jax.lax.cond(
        any_over_vmap(failed),
        lambda: spectral_root(gram, wide_damping),
        lambda: jnp.zeros_like(gram),
    )

    def inverse(u):
        b = u.astype(wide)

        def by_cholesky():
            return jax.scipy.linalg.cho_solve((lower, True), b)

        def by_eigenvectors():
            x = jnp.matmul(root.T, b, precision=HIGHEST)
            x = jnp.matmul(root, x, precision=HIGHEST)
            return jnp.where(failed, x, by_cholesky())

        x = jax.lax.cond(any_over_vmap(failed), by_eigenvectors, by_cholesky)
        return x.astype(u.dtype)

    kernel = gram.astype(dtype)
    norm = jnp.max(jnp.sum(jnp.abs(kernel), axis=1))

    def multiply(w):
        return jnp.matmul(kernel, w, precision=HIGHEST)

    return _System(jacobian, damping, norm, multiply, inverse, failed, *products)


def _cholesky(jacobian: Jacobian, gram: Array, damping: Array) -> tuple[Array, Array]:
    """The Cholesky factor of K + λI, and whether it is not to be trusted."""
    size, dtype = gram.shape[0], gram.dtype
    diagonal = jnp.diagonal(gram) + damping
    small = jacobian.is_small
    tiny = (damping < _tiny(dtype, size) * jnp.max(diagonal)) & (damping > 0) & small

    def of_gram():  # of Kᵀ: LAPACK's order, so no copy
        damped = gram.T + damping * jnp.eye(size, dtype=dtype)
        return jax.lax.linalg.cholesky(damped, symmetrize_input=False)

    def of_rows():
        return _cholesky_of_rows(jacobian, damping, size)

    by_rows = any_over_vmap(tiny)
    lower = jax.lax.cond(by_rows, of_rows, of_gram) if small else of_gram()
    # Beside the row's own entry of K, so that rows of different sizes do not matter.
    pivots = jnp.diagonal(lower) ** 2 / jnp.where(diagonal > 0, diagonal, 1)
    rounding = size * jnp.finfo(dtype).eps
    regular = jnp.min(pivots) > jnp.where(tiny, rounding**2, rounding)
    return lower, ~(regular & (damping > 0) & tree.all_finite(lower))


def _tiny(dtype, size: int) -> float:
    """λ/|K| under which K's rounding, or that of the squares in it, drowns λ."""
    epsilon = float(jnp.finfo(dtype).eps)
    return max(_TINY, size * epsilon) if epsilon > 1e-10 else size * epsilon


def _cholesky_of_rows(jacobian: Jacobian, damping: Array, size: int) -> Array:
    """The Cholesky factor of K + λI from B rather than from K."""
    rows = jacobian.explicit().T.astype(damping.dtype)
    eye = jnp.eye(size, dtype=damping.dtype)
    upper = jnp.linalg.qr(jnp.concatenate([rows, jnp.sqrt(damping) * eye]), mode="r")
    return (upper * jnp.sign(jnp.diagonal(upper))[:, None]).T


def _refine(system: _System, h: Array) -> tuple[Array, Array]:
    """w = (K + λI)⁻¹ h and e = h − (K + λI) w, refined through B where it pays."""
    jacobian, damping, size, multiply, inverse, _, push, pull = system
    w = inverse(h)
    e = h - multiply(w) - damping * w
    epsilon = jnp.finfo(w.dtype).eps
    worthwhile = (epsilon**0.75 * size > damping) | jacobian.is_small
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
        residual = h - damping * closer - push(jacobian, pull(jacobian, closer))
        halved = jnp.linalg.norm(residual) < jnp.linalg.norm(e) / 2
        improved = (count == 0) | halved
        return *tree.where(improved, (closer, residual), (w, e)), count + 1, improved

    counters = tree.varying_like((jnp.zeros((), jnp.int32), jnp.array(True)), (w, e))
    w, e, _, _ = jax.lax.while_loop(unfinished, step, (w, e, *counters))
    return w, e


def _solve(system: _System, b: Params) -> tuple[Params, tuple[Array, Array]]:
    """x, and (|ρ|, ⟨x, ρ⟩) of its residual ρ = Bᵀ e."""
    jacobian, damping, _, multiply, _, _, _, pull = system
    u, pushed, outside = _split(system, b)
    share = outside / jnp.where(damping > 0, damping, 1)
    w, e = _refine(system, u - share * pushed)
    x = _plus(pull(jacobian, w - share * u), share, b)

    def dot(a, b):
        return jnp.matmul(a, b, precision=HIGHEST)

    square = dot(e, multiply(e))
    # B x = u − λ w − e.
    return x, (jnp.sqrt(jnp.maximum(square, 0)), dot(u - damping * w - e, e))


class _Split(NamedTuple):
    """v = Bᵀ u + r: how much of v is in the range of Bᵀ.

    Attributes:
        u: [M].
        pushed: B r, [M].
        outside: 1 if r counts, 0 if it is rounding.
    """

    u: Float[Array, " M"]
    pushed: Float[Array, " M"]
    outside: Float[Array, ""]


def _split(system: _System, b: Params) -> _Split:
    """u = 0, or Bᵀ u ≈ b where that can be had."""
    jacobian, damping, _, _, inverse, _, push, pull = system
    c = push(jacobian, b)
    u = inverse(c)
    square, epsilon = tree.inner(b, b), jnp.finfo(c.dtype).eps
    # |b − Bᵀ u|², as far as M numbers tell.
    rest = square - jnp.vdot(u, c + damping * u, precision=HIGHEST)
    inside = (damping == 0) | (rest < 1e-2 * square)
    plain = _Split(jnp.zeros_like(u), c, jnp.ones_like(square))

    def within():
        v = u
        for _ in range(_STEPS - 1):
            v = u + damping * inverse(v)
        left = jax.tree.map(lambda b, p: b - p, b, pull(jacobian, v))
        counts = tree.inner(left, left) > 100 * epsilon**2 * square
        outside = (counts & (damping > 0)).astype(c.dtype)
        split = _Split(v, outside * push(jacobian, left), outside)
        return tree.where(inside, split, plain)

    return jax.lax.cond(any_over_vmap(inside), within, lambda: plain)


def _plus(tree_: Params, scale: ArrayLike, other: Params) -> Params:
    return jax.tree.map(lambda a, b: a + scale * b, tree_, other)
