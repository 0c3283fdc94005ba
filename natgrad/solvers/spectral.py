"""Inverses from eigenvalues: the one rule by which directions are kept or dropped.

    (F + λI)⁻¹ = Σ_i u_i u_iᵀ / (max(s_i, 0) + λ)                            λ > 0
    F⁺         = Σ_i u_i u_iᵀ / s_i   over  s_i > n ε max s                  λ = 0

λ > 0 makes F + λI invertible, so nothing is dropped then, however small λ is beside F:
an eigenvalue that is rounding counts as what it is, and a negative one as 0. Only the
pseudo-inverse of λ = 0 has to say which eigenvalues are 0: those at or below the
rounding of n numbers as large as the largest.

In floating point an eigenvalue is known to within about ε max s, and where λ is below
that, 1/(s + λ) is noise. So on CPUs eigenvalues of float32 matrices are found in
float64, in every precision that JAX is set to, and rounded then: the result is that of
the float32 matrix to a few digits less than float32 has, however ill conditioned F + λI
is. Accelerators, which do float64 slowly or not at all, find them in float32: there
λ should not be far below ε max s, or JAX be set to float64.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Protocol, final

import jax
import jax.numpy as jnp
from jax.custom_batching import custom_vmap
from jaxtyping import Bool, Float

from natgrad.solvers.base import Spectrum
from natgrad.typing import Array, ArrayLike

HIGHEST = jax.lax.Precision.HIGHEST


def damped_reciprocal(
    values: Float[Array, "..."],
    damping: ArrayLike,
    axes: Sequence[int] = (-1,),
    size: ArrayLike | None = None,
    largest: ArrayLike | None = None,
) -> tuple[Float[Array, "..."], Bool[Array, ""]]:
    """1/(max(s, 0) + λ), for λ = 0 the pseudo-inverse, and whether it drops anything.

    Args:
        values: s, eigenvalues.
        damping: λ >= 0.
        axes: over which s belong to one matrix.
        size: n; None for the sum of the sizes of these axes.
        largest: of the s of each matrix, where it is known.

    Returns:
        (an array like `values`, a boolean scalar).
    """
    axes, damping = tuple(axes), jnp.asarray(damping, values.dtype)
    size = sum(values.shape[axis] for axis in axes) if size is None else size
    positive = jnp.where(values < 0, 0, values)  # with the derivative 1 at 0
    if largest is None:
        largest = jnp.max(positive, axes, keepdims=True, initial=0)
    cutoff = size * jnp.finfo(values.dtype).eps * largest
    drop = (damping == 0) & (positive <= cutoff)
    total = jnp.where(drop, 1, positive + damping)
    return jnp.where(drop, 0, 1 / total), jnp.any(drop)


def spectrum(pairs: Sequence[tuple[Array, Array]]) -> Spectrum:
    """What is known of F + Λ.

    Args:
        pairs: eigenvalues of parts of F, of any shape, and the λ of each part; zeros
            stand for parameters that no part reads.
    """
    parts = [(jnp.maximum(values, 0), damping) for values, damping in pairs]
    size = sum(values.size for values, _ in parts)
    largest = jnp.max(jnp.stack([jnp.max(values) for values, _ in parts]))
    cutoff = size * jnp.finfo(largest.dtype).eps * largest

    def total(count):
        return jnp.sum(jnp.stack([jnp.sum(count(*each)) for each in parts]))

    def extreme(which):
        return which(jnp.stack([which(values + damping) for values, damping in parts]))

    def share(values, damping):
        counts = (values > cutoff) | (damping > 0)
        return jnp.where(counts, values / jnp.where(counts, values + damping, 1), 0)

    least, most = extreme(jnp.min), extreme(jnp.max)
    condition = jnp.where(least > 0, most / jnp.where(least > 0, least, 1), jnp.inf)
    rank = total(lambda values, _: values > cutoff)
    return Spectrum(condition, rank.astype(largest.dtype), total(share))


@custom_vmap
def eigh(
    matrix: Float[Array, "n n"],
) -> tuple[Float[Array, " n"], Float[Array, "n n"]]:
    """Eigenvalues, ascending, and eigenvectors of a symmetric matrix.

    On CPUs they are computed in float64 and given in the matrix's own dtype, at about
    twice the time of a decomposition in float32. They have no derivative.

    Args:
        matrix: symmetric.
    """

    def doubled(matrix):
        with jax.enable_x64(True):
            wide = jax.lax.convert_element_type(matrix, jnp.float64)
            return tuple(leaf.astype(matrix.dtype) for leaf in jnp.linalg.eigh(wide))

    return jax.lax.platform_dependent(matrix, cpu=doubled, default=_eigh)


@eigh.def_vmap
def _eigh_vmap(axis_size, in_batched, matrices):
    # On CPUs one by one: JAX's rules for batches see the precision set outside.
    del axis_size, in_batched

    def walk(matrices):
        return jax.lax.map(eigh, matrices)

    return jax.lax.platform_dependent(matrices, cpu=walk, default=_eigh), (True, True)


def _eigh(matrices: Array) -> tuple[Array, Array]:
    return tuple(jnp.linalg.eigh(matrices))


class Eigendecomposition(Protocol):
    """Eigenvalues, ascending, and eigenvectors: as `eigh` or `JacobiRotations()`."""

    def __call__(
        self, matrix: Float[Array, "n n"], /
    ) -> tuple[Float[Array, " n"], Float[Array, "n n"]]:
        """Eigenvalues and eigenvectors.

        Args:
            matrix: symmetric.
        """
        ...


@final
@dataclasses.dataclass(frozen=True)
class JacobiRotations(Eigendecomposition):
    """By Jacobi's rotations on GPUs and TPUs; on CPUs, which have none, by `eigh`.

    For many matrices of some ten or hundred rows. By itself JAX takes QR on GPUs, and
    on TPUs rotations up to 256 rows and QDWH beyond.
    """

    def __call__(
        self, matrix: Float[Array, "n n"], /
    ) -> tuple[Float[Array, " n"], Float[Array, "n n"]]:
        """Eigenvalues, ascending, and eigenvectors.

        Args:
            matrix: symmetric.
        """

        def rotated(matrix):
            by = jax.lax.linalg.EighImplementation.JACOBI
            vectors, values = jax.lax.linalg.eigh(matrix, implementation=by)
            return values, vectors

        return jax.lax.platform_dependent(matrix, cpu=eigh, default=rotated)


def equilibration(diagonal: Float[Array, " n"]) -> Float[Array, " n"]:
    """Powers of two d with d² D in [½, 2], exact factors; 1 where D is not positive.

    Args:
        diagonal: D, of a matrix.
    """
    positive = (diagonal > 0) & jnp.isfinite(diagonal)
    power = -jnp.round(jnp.log2(jnp.where(positive, diagonal, 1)) / 2)
    return jnp.exp2(power).astype(diagonal.dtype)


def spectral_root(
    matrix: Float[Array, "n n"], damping: Float[Array, "..."]
) -> Float[Array, "n n"]:
    """L with L Lᵀ = (F + λI)⁻¹, for λ = 0 F⁺.

    From the eigenvalues s of the equilibrated F̂ = d F d, whose diagonal with λ is about
    1, so that the units of the parameters decide nothing: what is rounding beside the
    large entries of F need not be beside the small ones. With F̂ = U s Uᵀ and s >= 0,

        L = d R⁻¹,  R from QR of [√s Uᵀ; √λ d]                       λ > 0
        L = P d U √(s⁺)                                              λ = 0

    where P projects on the range of F, the complement of d N for N the null vectors of
    F̂: then L Lᵀ is the pseudo-inverse in the coordinates of F, of least norm in them.

    Args:
        matrix: F, [n, n], symmetric positive semi-definite up to rounding.
        damping: λ >= 0; or the diagonal of Λ, [n], all of it > 0 or 0.
    """
    size = matrix.shape[0]
    d = equilibration(jnp.diagonal(matrix) + damping)
    scaled = d[:, None] * matrix * d[None]
    values, vectors = eigh(scaled)
    values = jnp.maximum(values, 0)

    def damped():
        rows = jnp.concatenate(
            [jnp.sqrt(values)[:, None] * vectors.T, jnp.diag(jnp.sqrt(damping) * d)]
        )
        upper = jnp.linalg.qr(rows, mode="r")
        eye = jnp.eye(size, dtype=matrix.dtype)
        inverse = jax.lax.linalg.triangular_solve(upper, eye, left_side=True)
        return d[:, None] * inverse

    def undamped():
        reciprocal, _ = damped_reciprocal(values, 0.0)
        null = reciprocal == 0  # these come first: eigenvalues ascend
        lost, _ = jnp.linalg.qr(jnp.where(null[None], d[:, None] * vectors, 0))
        lost = jnp.where(null[None], lost, 0)
        root = d[:, None] * vectors * jnp.sqrt(reciprocal)[None]
        inside = jnp.matmul(lost.T, root, precision=HIGHEST)
        return root - jnp.matmul(lost, inside, precision=HIGHEST)

    positive = damping[0] > 0 if damping.ndim else damping > 0
    return jax.lax.cond(positive, damped, undamped)
