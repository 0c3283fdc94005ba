"""M⁻¹ of a positive definite matrix by block elimination in halves.

With M = [[A, Bᵀ], [B, C]], A⁻¹ = WᵀW and V = B Wᵀ, the rest is S = C − V Vᵀ and

    M⁻¹ = [[A⁻¹ + Tᵀ S⁻¹ T,  −(S⁻¹ T)ᵀ], [−S⁻¹ T,  S⁻¹]],     T = V W = B A⁻¹,

A⁻¹, W and S⁻¹ by the same rule until they are small; those come from a Cholesky
factorisation. V keeps S, and so M⁻¹, as precise as one factorisation of M would; B A⁻¹
in its place would not. That is about 1.7 d³ operations, nearly all in products of large
matrices.

Source: Golub & Van Loan, Matrix Computations (4th ed.), sections 1.3 and 3.2.11.
"""

from __future__ import annotations

import dataclasses
import math
from typing import NamedTuple, Protocol, final

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float

from natgrad.solvers.spectral import HIGHEST
from natgrad.typing import Array

# Up to this size LAPACK inverts: smaller blocks run faster, but take longer to compile.
SMALL = 320


class InverseRule(Protocol):
    """How M⁻¹ is computed, as `BlockElimination()` or `NewtonSchulz()` do."""

    def __call__(
        self, matrix: Float[Array, "d d"], floor: Float[Array, ""]
    ) -> tuple[Float[Array, "d d"], Bool[Array, ""]]:
        """M⁻¹, and whether the rule vouches for it.

        Args:
            matrix: M, symmetric.
            floor: δ >= 0, of which M − δI is positive semi-definite.
        """
        ...


@final
@dataclasses.dataclass(frozen=True)
class BlockElimination(InverseRule):
    """M⁻¹ by elimination in halves down to Cholesky: the fewest operations."""

    def __call__(
        self, matrix: Float[Array, "d d"], floor: Float[Array, ""]
    ) -> tuple[Float[Array, "d d"], Bool[Array, ""]]:
        """M⁻¹, not finite where M is not positive definite.

        Args:
            matrix: M, symmetric.
            floor: not needed.
        """
        del floor
        return spd_inverse(matrix), jnp.array(True)


ELIMINATION = BlockElimination()


def spd_inverse(matrix: Float[Array, "d d"]) -> Float[Array, "d d"]:
    """M⁻¹, not finite where M is not positive definite.

    Args:
        matrix: M, symmetric; its lower half is read.
    """
    if matrix.shape[0] <= SMALL:
        root = _inverse_root(matrix)
        return product(root.T, root)
    blocks = _eliminate(matrix)
    return _inverse_of(blocks, spd_inverse(blocks.rest))


def _inverse_and_root(matrix: Array) -> tuple[Array, Array]:
    """M⁻¹, and the inverse of M's Cholesky factor."""
    if matrix.shape[0] <= SMALL:
        root = _inverse_root(matrix)
        return product(root.T, root), root
    blocks = _eliminate(matrix)
    last, lower = _inverse_and_root(blocks.rest)
    root = _joined(blocks.root, None, product(lower, blocks.side), lower)
    return _inverse_of(blocks, last), root


class _Elimination(NamedTuple):
    """The first half of M eliminated, in the letters of the module.

    Attributes:
        first: A⁻¹.
        root: W.
        side: −T.
        rest: S.
    """

    first: Array
    root: Array
    side: Array
    rest: Array


def _eliminate(matrix: Array) -> _Elimination:
    half = -(-matrix.shape[0] // 2)
    first, root = _inverse_and_root(matrix[:half, :half])
    scaled = product(-matrix[half:, :half], root.T)  # −V
    rest = matrix[half:, half:] - product(scaled, scaled.T)
    return _Elimination(first, root, product(scaled, root), rest)


def _inverse_of(blocks: _Elimination, last: Array) -> Array:
    """M⁻¹ from S⁻¹."""
    corner = product(last, blocks.side)
    first = blocks.first + product(blocks.side.T, corner)
    return _joined(first, corner.T, corner, last)


def _joined(a: Array, b: Array | None, c: Array, d: Array) -> Array:
    """[[a, b], [c, d]], written block by block, which is faster than concatenated."""
    half, size = a.shape[0], a.shape[0] + d.shape[0]
    matrix = jnp.zeros((size, size), a.dtype)
    for block, row, column in ((a, 0, 0), (b, 0, half), (c, half, 0), (d, half, half)):
        if block is not None:
            matrix = jax.lax.dynamic_update_slice(matrix, block, (row, column))
    return matrix


def _inverse_root(matrix: Array) -> Array:
    # Of the transpose: LAPACK's order, so that nothing in front of it is turned round.
    lower = jax.lax.linalg.cholesky(matrix.T, symmetrize_input=False)
    eye = jnp.eye(matrix.shape[0], dtype=matrix.dtype)
    return jax.lax.linalg.triangular_solve(lower, eye, left_side=True, lower=True)


def product(a: Float[Array, "*l i j"], b: Float[Array, "*l j k"]) -> Array:
    """A B at full precision on every device.

    Args:
        a: A.
        b: B.
    """
    return jnp.matmul(a, b, precision=HIGHEST)


def halvable(size: int) -> int:
    """The size, or a little more, so that all blocks of a level are of equal sizes.

    What XLA compiles for one of them then serves the others too.

    Args:
        size: of a matrix, d.
    """
    halvings = max(0, math.ceil(math.log2(size / SMALL)))
    unit = 4 * 2**halvings if halvings else 1
    return -(-size // unit) * unit
