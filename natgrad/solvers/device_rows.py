"""Rows of B that are spread over devices, inside `jax.shard_map`.

Each of D devices holds the rows of its examples. Vectors of M numbers and of parameters
are on all devices; K = B Bᵀ is not: device d has the rows of K that belong to its rows
of B, M²/D numbers. Communicated are

    B v                 one all-gather, M numbers
    Bᵀ u                one all-reduce, P numbers
    K                   D steps of a ring, in which what the rows are made of (the
                        layers' factors; for chunks the examples) goes once round

The matrix is factorised in `natgrad.solvers.device_kernel`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Hashable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Float

from natgrad import tree
from natgrad.solvers.jacobian_blocks import JacobianBlock, Parts
from natgrad.solvers.score_jacobian import Jacobian
from natgrad.tree import metric_pytree
from natgrad.typing import Array


def spread_rows(local: Jacobian, axis_name: Hashable, by_block: bool) -> Jacobian:
    """B of the examples of all devices.

    Args:
        local: of this device's examples, scaled by Σ_n ω_n of all.
        axis_name: of the mapped axis, or axes.
        by_block: whether each piece stays one, or all become one.
    """
    centre = local.centre
    if centre is not None:
        centre = gathered(centre, axis_name, 0)
    bare = dataclasses.replace(local, centre=None)
    blocks, parts = (local.blocks, bare.apart()) if by_block else (None, [bare])
    pieces = tuple(DeviceRows(part, axis_name) for part in parts)
    return Jacobian(local.layout, blocks, pieces, centre)


@metric_pytree("axis_name")
class DeviceRows(JacobianBlock):
    """The rows of this device; the parts are the leaves of its rows' layout.

    Attributes:
        local: its rows, not centred.
        axis_name: of the mapped axis, or axes.
    """

    local: Jacobian
    axis_name: Any

    @property
    def columns(self) -> tuple[int, int]:
        """(K, N), N on all devices."""
        k, n = self.local.columns
        return k, n * jax.lax.axis_size(self.axis_name)

    def push(self, v: Parts) -> Float[Array, "K N"]:
        """B v, on all devices."""
        params = jax.tree.unflatten(self.local.layout.treedef, list(v))
        found = self.local.push(tree.varying_like(params, self.local))
        found = gathered(found.reshape(self.local.columns), self.axis_name, 1)
        return tree.varying_like(found, v)

    def pull(self, u: Float[Array, "K N"]) -> Parts:
        """Bᵀ u, on all devices."""
        own = self.own(tree.varying_like(u, self.local))
        found = self.local.pull(own.reshape(-1))
        found = jax.lax.psum(found, self.axis_name)
        return jax.tree.leaves(tree.varying_like(found, u))

    @property
    def most_written_out(self) -> int:
        """The limit of the device's own rows."""
        return min(piece.most_written_out for piece in self.local.pieces)

    def own(self, u: Float[Array, "K N"]) -> Float[Array, "K n"]:
        """What belongs to this device's rows.

        Args:
            u: one number a row of B.
        """
        count = self.local.columns[1]
        first = count * jax.lax.axis_index(self.axis_name)
        return jax.lax.dynamic_slice_in_dim(u, first, count, 1)

    def block_row(self) -> Float[Array, "m M"]:
        """This device's rows of B Bᵀ; rows and columns by device, then (k, n)."""
        axis, devices = self.axis_name, jax.lax.axis_size(self.axis_name)
        shift = [(d, (d - 1) % devices) for d in range(devices)]

        def step(other, _):
            block = self.local.gram(other)
            return jax.tree.map(
                lambda a: jax.lax.ppermute(a, axis, shift), other
            ), block

        _, blocks = jax.lax.scan(step, self.local, length=devices)
        order = (jnp.arange(devices) - jax.lax.axis_index(axis)) % devices
        return jnp.moveaxis(blocks[order], 0, 1).reshape((self.local.size, -1))

    def gram(self, other: Any = None) -> Float[Array, "K N K N"]:
        """B Bᵀ, the whole of it on all devices."""
        assert other is None  # all examples are here
        k, n = self.local.columns
        rows = gathered(self.block_row(), self.axis_name, 0)
        rows = rows.reshape((-1, k, n, rows.shape[0] // (k * n), k, n))
        return rows.transpose((1, 0, 2, 4, 3, 5)).reshape(
            (*self.columns, *self.columns)
        )

    def explicit(self) -> Sequence[Float[Array, "K N ..."]]:
        """B written out, on all devices."""
        layout = self.local.layout
        rows = self.local.explicit().reshape((*self.local.columns, -1))
        rows = gathered(rows, self.axis_name, 1)
        return jax.tree.leaves(jax.vmap(jax.vmap(layout.split))(rows))

    def squares(self) -> Parts:
        """The diagonal of Bᵀ B, on all devices."""
        return jax.tree.leaves(jax.lax.psum(self.local.diagonal(), self.axis_name))

    def part_shapes(self) -> list[jax.ShapeDtypeStruct]:
        """The leaves."""
        layout = self.local.layout
        return [jax.ShapeDtypeStruct(shape, layout.dtype) for shape in layout.shapes]

    def astype(self, dtype: Any) -> DeviceRows:
        """In another dtype."""
        return dataclasses.replace(self, local=self.local.astype(dtype))

    def scaled(self, v: Parts) -> DeviceRows:
        """B diag(v); v are leaves that are constant."""
        params = jax.tree.unflatten(self.local.layout.treedef, list(v))
        scaled = self.local.scaled(tree.varying_like(params, self.local))
        return dataclasses.replace(self, local=scaled)


def gathered(own: Array, axis_name: Any, axis: int) -> Array:
    """Every device's part, one after the other along an axis, on all devices.

    Args:
        own: this device's part.
        axis_name: of the mapped axis, or axes.
        axis: of the array.
    """
    device = jax.lax.axis_index(axis_name)
    to = "invarying" if tree.varying(device) else "varying"
    own = tree.varying_like(own, device)
    return jax.lax.all_gather(own, axis_name, axis=axis, tiled=True, to=to)
