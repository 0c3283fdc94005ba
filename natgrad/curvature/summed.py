"""Curvatures that are functions of sums over examples, and these over devices.

    F = Σ_d Σ_{n on d} f_n / Σ_d Σ_{n on d} ω_n

Under `jax.jit` with a sharded batch there is nothing to do: the sums are written over
the whole batch, and XLA splits them. Inside `jax.shard_map` (or `jax.vmap` with an
axis name) a function sees one device's examples; with `axis_name` the sums run over
that axis too, in one `psum` after all derivatives have been taken on the device. Labels
are drawn with the example's index in the whole batch, so they do not depend on the
number of devices.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Hashable
from typing import Any

import jax
import jax.numpy as jnp

from natgrad import tree
from natgrad.curvature.base import Curvature
from natgrad.layers.dependence import exchanges
from natgrad.model import batch
from natgrad.model.weights import total_weight
from natgrad.typing import Array, Inputs, Key, Params


@dataclasses.dataclass(frozen=True, eq=False)
class SummedCurvature(Curvature):
    """A curvature whose estimate is a function of sums over examples.

    Attributes:
        axis_name: of the mapped axis, or axes, over which the examples are spread;
            equally many on each device. None where a call sees the whole batch.
    """

    axis_name: Hashable | tuple[Hashable, ...] | None = dataclasses.field(
        default=None, kw_only=True
    )

    def to_device_local(
        self, params: Params, inputs: Inputs, targets: Array | None, key: Key | None
    ) -> tuple[Params, Key | None]:
        """Parameters and keys for derivatives on this device alone.

        Raises:
            ValueError: the batch is spread over devices and `axis_name` does not say
                so, it says so of a batch without an axis of examples, or the
                outputs depend on the examples of other devices.
        """
        count = batch.input_count(inputs, self.model.in_axes)
        rows, _ = batch.split_inputs(inputs, self.model.in_axes)
        rows = rows if targets is None else [*rows, targets]
        if self.axis_name is None:
            spread = tree.varying(rows) - tree.varying(params)
            if spread:
                raise ValueError(
                    f"The batch is spread over the axes {sorted(spread)} of shard_map, "
                    f"and {type(self).__name__} would see one device's part of it: "
                    f"build it with axis_name={min(spread)!r}."
                )
            return params, key
        if count is None:
            raise ValueError(
                f"axis_name={self.axis_name!r} spreads the examples over devices, and "
                "these inputs have no axis of examples: "
                f"{jax.tree.map(jnp.shape, inputs)}."
            )
        apply, axes = self.model.apply, self.model.in_axes
        if exchanges(apply, params, inputs, axes, self.axis_name):
            raise ValueError(
                f"{type(self).__name__} takes derivatives on each device alone, and "
                "here apply sends values of the examples along "
                f"axis_name={self.axis_name!r} (statistics of the whole batch do). Use "
                "Gram, MatrixFree or Dense under jit with sharded arrays, without "
                "shard_map, which take the batch as one; or stored statistics."
            )
        z = None
        if key is None:
            z = jax.eval_shape(self.model.outputs, params, inputs)
        first = count * jax.lax.axis_index(self.axis_name)
        key = batch.keys(self.model.family, key, z, count, first)
        return tree.varying_like(params, rows), key

    def loss_and_gradient(
        self, params: Params, inputs: Inputs, targets: Array
    ) -> tuple[Array, Params]:
        """(loss, gradient): the means over the examples of all devices."""
        params, _ = self.to_device_local(params, inputs, targets, None)
        means = super().loss_and_gradient(params, inputs, targets)
        return self.psum_over_devices(means, (), jnp.ones(()), params, inputs)[0]

    def psum_over_devices(
        self, means: Any, sums: Any, total: Array, params: Params, inputs: Inputs
    ) -> tuple[Any, Any, Array]:
        """Means and sums over this device's examples, and Σ_n ω_n, of all devices'."""
        axis = self.axis_name
        if axis is None:
            return means, sums, total
        if self.model.weights is None:
            size = jax.lax.axis_size(axis)
            means = jax.tree.map(lambda mean: mean / size, means)
            return *jax.lax.psum((means, sums), axis), total * size
        _, examples, _ = self.model.whole(params, inputs)
        weight = total_weight(examples.weights)
        weighted = jax.tree.map(lambda mean: weight * mean, means)
        weighted, sums, weight = jax.lax.psum((weighted, sums, weight), axis)
        weight = jnp.where(weight == 0, 1, weight)
        means = jax.tree.map(
            lambda mean, whole: (whole / weight).astype(mean.dtype), means, weighted
        )
        return means, sums, weight

    def divergence(self, params: Params, other: Params, inputs: Inputs) -> Array:
        """The mean over the examples of all devices."""
        mean = self.model.kl(params, other, inputs)
        return self.psum_over_devices(mean, (), jnp.ones_like(mean), params, inputs)[0]
