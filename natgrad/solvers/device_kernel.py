"""Solving with K = B Bᵀ, spread over D devices by block rows.

    K + λI = L Lᵀ       for each block column an all-reduce of M²/D² numbers, and an
                        all-gather of as many from each device
    L Lᵀ w = u          2 D all-reduces of M/D numbers

The factorisation is the right-looking one by block rows: device d is busy until block
column d is done, which costs three times what a perfect split would. Its program grows
with D.

Source: Golub & Van Loan (2013), Matrix Computations, 4th edition, section 4.2.6.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
from jax.scipy.linalg import solve_triangular
from jaxtyping import Float

from natgrad import tree
from natgrad.solvers.conjugate_gradients import (
    RelativeResidual,
    conjugate_gradients,
)
from natgrad.solvers.device_rows import DeviceRows, gathered
from natgrad.solvers.score_jacobian import Jacobian
from natgrad.solvers.spectral import HIGHEST
from natgrad.typing import Array


class SpreadKernel:
    """K = B Bᵀ by block rows, and what is solved with it.

    Attributes:
        piece: B, not centred.
        rows: this device's rows of K, [m, M], rows and columns by device.
        norm: max_i Σ_j |K_ij|, shape ().
    """

    def __init__(self, jacobian: Jacobian):
        (piece,) = jacobian.pieces
        assert isinstance(piece, DeviceRows)
        self.piece = piece
        rows, axis = self.piece.block_row(), self.piece.axis_name
        if jacobian.centre is not None:  # (I − Q Qᵀ) K (I − Q Qᵀ)
            q = self._centres(jacobian.centre.astype(rows.dtype))
            kq_own = jnp.matmul(rows, q, precision=HIGHEST)
            kq, q_own = gathered(kq_own, axis, 0), self._mine(q)
            qkq = jnp.matmul(q.T, kq, precision=HIGHEST)
            rest = kq - jnp.matmul(q, qkq, precision=HIGHEST)
            taken = jnp.matmul(q_own, rest.T, precision=HIGHEST)
            rows = rows - taken - jnp.matmul(kq_own, q.T, precision=HIGHEST)
        self.rows = rows
        self.norm = jax.lax.pmax(jnp.max(jnp.sum(jnp.abs(rows), axis=1)), axis)

    def multiply(self, w: Float[Array, " M"]) -> Float[Array, " M"]:
        """K w, on all devices.

        Args:
            w: one number a row of B.
        """
        given = self._by_device(w.astype(self.rows.dtype)).reshape(-1)
        found = jnp.matmul(self.rows, given, precision=HIGHEST)
        found = gathered(found, self.piece.axis_name, 0)
        return tree.varying_like(self._by_column(found).astype(w.dtype), w)

    def factorize(
        self, damping: Array
    ) -> tuple[Callable[[Array], Array], Float[Array, ""]]:
        """(u -> (K + λI)⁻¹ u, the smallest pivot over its own diagonal entry).

        Args:
            damping: λ.
        """
        axis, rows = self.piece.axis_name, self.rows
        devices, size = jax.lax.axis_size(axis), rows.shape[0]
        here = jax.lax.axis_index(axis)
        eye, left = jnp.eye(size, dtype=rows.dtype), rows
        panels, corners, smallest = [], [], []
        for j in range(devices):
            own, left = left[:, :size], left[:, size:]
            whole = rows[:, j * size : (j + 1) * size].diagonal()
            corner, entries = jax.lax.psum(
                jax.tree.map(lambda a, j=j: jnp.where(here == j, a, 0), (own, whole)),
                axis,
            )
            corner = jax.lax.linalg.cholesky(
                corner + damping * eye, symmetrize_input=False
            )
            pivots = corner.diagonal() ** 2 / jnp.where(entries > 0, entries, 1)
            below = solve_triangular(corner, own.T, lower=True).T
            panel = jnp.where(here > j, below, 0)
            if j + 1 < devices:
                others = jax.lax.all_gather(panel, axis)[j + 1 :].reshape(-1, size)
                left = left - jnp.matmul(panel, others.T, precision=HIGHEST)
            panels.append(panel)
            corners.append(tree.varying_like(corner, rows))
            smallest.append(-tree.largest(-pivots))

        def forward(u):
            total, found = jnp.zeros_like(panels[0][:, 0]), []
            for j in range(devices):
                before = jax.lax.psum(jnp.where(here == j, total, 0), axis)
                y = solve_triangular(corners[j], u[j] - before, lower=True)
                total = total + jnp.matmul(panels[j], y, precision=HIGHEST)
                found.append(y)
            return found

        def backward(y):
            own, found = jnp.zeros_like(panels[0][:, 0]), []
            for j in reversed(range(devices)):
                after = jnp.matmul(panels[j].T, own, precision=HIGHEST)
                after = jax.lax.psum(after, axis)
                x = solve_triangular(corners[j], y[j] - after, lower=True, trans=1)
                own = jnp.where(here == j, x, own)
                found.append(x)
            return jnp.concatenate(found[::-1])

        def inverse(u):
            given = self._by_device(u.astype(rows.dtype))
            found = self._by_column(backward(forward(given))).astype(u.dtype)
            return tree.varying_like(found, u)

        return inverse, jnp.min(jnp.stack(smallest))

    def _centres(self, centre: Float[Array, " N"]) -> Float[Array, "M K"]:
        """Q: the weights' unit vector in the rows of each score column, by device."""
        k = self.piece.local.columns[0]
        columns = jnp.eye(k, dtype=centre.dtype)[:, :, None] * centre[None, None]
        return jax.vmap(self._by_device)(columns).reshape(k, -1).T

    def _by_device(self, u: Array) -> Float[Array, "D m"]:
        """One number a row of B, [K N], by device."""
        k, n = self.piece.local.columns
        return jnp.swapaxes(u.reshape((k, -1, n)), 0, 1).reshape((-1, k * n))

    def _by_column(self, u: Array) -> Float[Array, " M"]:
        """Back from `_by_device`."""
        k, n = self.piece.local.columns
        return jnp.swapaxes(u.reshape((-1, k, n)), 0, 1).reshape(-1)

    def _mine(self, a: Array) -> Array:
        """This device's part of the first axis, which is by device."""
        size = self.piece.local.size
        first = size * jax.lax.axis_index(self.piece.axis_name)
        return jax.lax.dynamic_slice_in_dim(a, first, size, 0)


def factorized(
    jacobian: Jacobian, damping: Array
) -> tuple[Array, Callable[[Array], Array], Callable[[Array], Array], Array]:
    """K + λI for K by block rows; conjugate gradients where Cholesky fails.

    From 0 these stay in the range of K, so that λ = 0 gives the least norm.

    Args:
        jacobian: B, whose one piece is `DeviceRows`.
        damping: λ >= 0, shape ().

    Returns:
        (the largest row sum of |K|, w -> K w, u -> (K + λI)⁻¹ u, did Cholesky fail?)
    """
    kernel = SpreadKernel(jacobian)
    by_cholesky, pivot = kernel.factorize(damping.astype(kernel.rows.dtype))
    rounding = jacobian.size * float(jnp.finfo(kernel.rows.dtype).eps)
    failed = ~((pivot > rounding) & (damping > 0))  # NaN fails too
    stop = RelativeResidual(10 * rounding, 2 * jacobian.size)

    norm = kernel.norm.astype(damping.dtype)
    norm, fails, damping = tree.varying_like((norm, failed, damping), kernel.rows)

    def by_iterations(u):
        return conjugate_gradients(
            lambda w: kernel.multiply(w) + damping * w, u, lambda w: w, stop
        )[0]

    def inverse(u):
        return jax.lax.cond(fails, by_iterations, by_cholesky, u)

    return norm, kernel.multiply, inverse, failed
