"""Kronecker factors of a tensor, one an axis, and bases of them that are kept warm.

    S = S_1 ⊗ S_2 ⊗ …,     S_i of axis i,  [d_i, d_i],     Q_i  orthonormal, [d_i, d_i]

A factor or a basis that is None is the identity. A basis is found once by an
eigendecomposition, with the largest eigenvalue first, and then follows its factor by
one step of orthogonal iteration a refresh, which costs a product and a QR:

    Q ← qr(S Q).

Source: Golub & Van Loan, Matrix Computations (4th ed.), section 8.2.4, for the
iteration; Vyas et al. (2024), SOAP, algorithm 4, for one step of it.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float

from natgrad.control_flow import any_over_vmap
from natgrad.metrics.eigenbasis import eigh
from natgrad.solvers.spd_inverse import together
from natgrad.solvers.spectral import HIGHEST
from natgrad.typing import Array

# One matrix, or one vector, an axis.
Axes = Sequence[Array | None]


def factored_axes(shape: Sequence[int], max_dimension: int) -> list[bool]:
    """Which axes of a parameter have a factor.

    Those with 2 to `max_dimension` entries, where at least two axes have two or more: a
    vector has none.

    Args:
        shape: of the parameter.
        max_dimension: of an axis with a factor.
    """
    matrix = sum(size > 1 for size in shape) > 1
    return [matrix and 1 < size <= max_dimension for size in shape]


def to_bases(tensor: Float[Array, "..."], bases: Axes) -> Float[Array, "..."]:
    """(Q_1 ⊗ Q_2 ⊗ …)ᵀ G: for a matrix Q_1ᵀ G Q_2.

    Args:
        tensor: G.
        bases: Q_i of each axis, [d_i, e_i].
    """
    return _along_all(tensor, bases, 0)


def from_bases(tensor: Float[Array, "..."], bases: Axes) -> Float[Array, "..."]:
    """(Q_1 ⊗ Q_2 ⊗ …) G: for a matrix Q_1 G Q_2ᵀ.

    Args:
        tensor: G, in the bases.
        bases: Q_i of each axis, [d_i, e_i].
    """
    return _along_all(tensor, bases, 1)


def _along_all(tensor: Array, matrices: Axes, side: int) -> Array:
    for matrix in matrices:  # each turn moves the first axis to the end
        if matrix is None:
            tensor = jnp.moveaxis(tensor, 0, -1)
        else:
            tensor = jnp.tensordot(tensor, matrix, ((0,), (side,)), precision=HIGHEST)
    return tensor


def times(tensor: Float[Array, "..."], vectors: Axes) -> Float[Array, "..."]:
    """The tensor times vectors, each along its axis.

    Args:
        tensor: to be multiplied.
        vectors: one an axis, [d_i].
    """
    for axis, vector in enumerate(vectors):
        if vector is not None:
            others = [i for i in range(tensor.ndim) if i != axis]
            tensor = tensor * jnp.expand_dims(vector, others)
    return tensor


def moment(tensor: Float[Array, "..."], axis: int) -> Float[Array, "d d"]:
    """mat(G) mat(G)ᵀ, with the axis as rows and all others as columns.

    Args:
        tensor: G.
        axis: whose moment.
    """
    others = [i for i in range(tensor.ndim) if i != axis]
    return jnp.tensordot(tensor, tensor, (others, others), precision=HIGHEST)


def without(entries: Axes, axis: int) -> list[Array | None]:
    """The entries, None in place of one.

    Args:
        entries: one an axis.
        axis: whose entry is left out.
    """
    return [None if i == axis else entry for i, entry in enumerate(entries)]


def above_rounding(squares: Float[Array, "..."], size: int) -> Bool[Array, "..."]:
    """Which mean squares of coordinates in a basis are more than its rounding.

    A coordinate is known to about √d ε of the largest one.

    Args:
        squares: mean squares, >= 0.
        size: d, of the largest axis that was rotated.
    """
    rounding = size * (4 * jnp.finfo(squares.dtype).eps) ** 2
    return squares > rounding * jnp.max(squares, initial=0)


def renewed_bases(
    factors: Sequence[Float[Array, "d d"]],
    bases: Sequence[Float[Array, "d d"]],
    due: Sequence[Bool[Array, ""]],
    first: Sequence[Bool[Array, ""]],
) -> list[Float[Array, "d d"]]:
    """Eigenvectors of each factor that is seen first, qr(S Q) of the others.

    Args:
        factors: S of each.
        bases: Q of each.
        due: which of them are renewed.
        first: which of these have no basis yet.

    Returns:
        Q of each; those of equal sizes are computed together.
    """

    def renewed(factor, basis, due, first):
        followed, _ = jnp.linalg.qr(jnp.matmul(factor, basis, precision=HIGHEST))
        found = jax.lax.cond(
            any_over_vmap(first), lambda: eigh(factor)[1][:, ::-1], lambda: followed
        )
        return jnp.where(due, jnp.where(first, found, followed), basis)

    return together(renewed, factors, bases, due, first)


def mean_square(tensor: Float[Array, "..."], axis: int) -> Float[Array, " d"]:
    """The mean of the squares over all axes but one.

    Args:
        tensor: whose entries are squared.
        axis: that is left.
    """
    return jnp.mean(tensor**2, [i for i in range(tensor.ndim) if i != axis])
