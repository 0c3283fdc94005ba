"""Curvatures that are functions of sums over examples, and these over devices.

    F = Σ_d Σ_{n on d} f_n / Σ_d Σ_{n on d} ω_n

Under `jax.jit` with a sharded batch there is nothing to do: the sums are written over
the whole batch, and XLA splits them. Inside `jax.shard_map` (or `jax.vmap` with an
axis name) a function sees one device's examples; with `axis_name` the sums run over
that axis too, in one `psum` after all derivatives have been taken on the device. Labels
are drawn with the example's index in the whole batch, so they do not depend on the
number of devices.

Most are sums over per-example pullbacks g_nk = J_nᵀ s_nk, as

    F = Σ_n Σ_k w_nk g_nk g_nkᵀ / Σ_n ω_n,

of whose outer products a subclass of `PullbackCurvature` says what is kept. Examples
and score columns are taken in chunks, so that about 2^24 numbers are alive at once
(`natgrad.curvature.visits`). Gradient and statistics share one forward pass and one
`vjp` an example: the loss's own cotangent is one more column.
"""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Callable, Hashable
from typing import Any

import jax
import jax.numpy as jnp

from natgrad import tree
from natgrad.curvature.base import Curvature
from natgrad.curvature.visits import Beside, visits
from natgrad.layers.compiled import compiled_method
from natgrad.layers.interactions import exchanges
from natgrad.model import LeastSquares, batch
from natgrad.model.batch import Batch
from natgrad.model.weights import total_weight
from natgrad.solvers.spectral import HIGHEST
from natgrad.tree import Layout
from natgrad.typing import Array, ArrayLike, Inputs, Key, Params, Statistics


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

    def to_device_local(self, given: Batch) -> Batch:
        """The batch for derivatives on this device alone: parameters and key change.

        Args:
            given: this device's part of the batch; the whole one without `axis_name`.

        Raises:
            ValueError: the batch is spread over devices and `axis_name` does not say
                so, it says so of a batch without an axis of examples, or the
                outputs depend on the examples of other devices.
        """
        params, inputs, targets, key = given
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
            return given
        if count is None:
            raise ValueError(
                f"axis_name={self.axis_name!r} spreads the examples over devices, and "
                "these inputs have no axis of examples: "
                f"{jax.tree.map(jnp.shape, inputs)}."
            )
        apply, axes = self.model.apply_real, self.model.in_axes
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
        return given._replace(params=tree.varying_like(params, rows), key=key)

    def loss_and_gradient(
        self, params: Params, inputs: Inputs, targets: Array
    ) -> tuple[Array, Params]:
        """(loss, gradient): the means over the examples of all devices."""
        local = self.to_device_local(Batch(params, inputs, targets))
        means = super().loss_and_gradient(local.params, inputs, targets)
        return self.psum_over_devices(means, (), jnp.ones(()), local)[0]

    def psum_over_devices(
        self, means: Any, sums: Any, total: Array, local: Batch
    ) -> tuple[Any, Any, Array]:
        """Means and sums over the examples of all devices, and their Σ_n ω_n.

        Args:
            means: a tree of means over this device's examples.
            sums: a tree of sums over them.
            total: Σ_n ω_n over them, shape ().
            local: this device's part of the batch.
        """
        axis = self.axis_name
        if axis is None:
            return means, sums, total
        if self.model.weights is None:
            size = jax.lax.axis_size(axis)
            means = jax.tree.map(lambda mean: mean / size, means)
            return *jax.lax.psum((means, sums), axis), total * size
        examples, _ = self.model.examples(local.params, local.inputs)
        weight = total_weight(examples.weights)
        weighted = jax.tree.map(lambda mean: weight * mean, means)
        weighted, sums, weight = jax.lax.psum((weighted, sums, weight), axis)
        weight = jnp.where(weight == 0, 1, weight)
        means = jax.tree.map(
            lambda mean, total: (total / weight).astype(mean.dtype), means, weighted
        )
        return means, sums, weight

    def divergence_from(
        self, params: Params, inputs: Inputs
    ) -> tuple[Callable[[Params], Array], ArrayLike]:
        """Means over the examples of all devices."""
        kl, labels = self.model.kl_from(params, inputs)

        def over_devices(mean):
            one, local = jnp.ones_like(mean), Batch(params, inputs)
            return self.psum_over_devices(mean, (), one, local)[0]

        if self.model.weights is not None:
            labels = over_devices(labels)
        return lambda other: over_devices(kl(other)), labels


@dataclasses.dataclass(frozen=True, eq=False)
class PullbackCurvature(SummedCurvature):
    """A curvature that is a function of J_nᵀ s_nk, one chunk of examples at a time."""

    @abc.abstractmethod
    def outer(self, layout: Layout, g: Array, weights: Array) -> Statistics:
        """What is kept of Σ_m w_m g_m g_mᵀ, for g [M, P] and w [M]."""

    @compiled_method
    def estimate(
        self,
        params: Params,
        inputs: Inputs,
        targets: Array | None = None,
        key: Key | None = None,
    ) -> Statistics:
        """The batch mean of `outer`; see `Curvature.estimate`."""
        moments = self.moments(Batch(params, inputs, targets, key))
        return self.from_moments(params, moments)

    def moments(self, given: Batch, found: Statistics | None = None) -> Statistics:
        """The batch means of `outer` and, for centred labels, of the scores."""
        del found
        used = given.targets if self.labels.needs_targets else None
        self.labels.check(given.targets, given.key)
        return self._means(given._replace(targets=used), None)[0]

    @compiled_method
    def value_and_grad(
        self, params: Params, inputs: Inputs, targets: Array, key: Key | None = None
    ) -> tuple[Array, Params, Statistics]:
        """(loss, gradient, statistics) from one forward pass and one vjp."""
        layout, model = Layout.of(params), self.model

        def loss(z, example):
            log_prob = model.factor_sum(model.family.log_prob)
            return jax.value_and_grad(
                lambda z: -log_prob(example.weights, z, example.target)
            )(z)

        self.labels.check(targets, key)
        sums, (value, gradient) = self._means(Batch(params, inputs, targets, key), loss)
        return value, layout.unravel(gradient), self.from_moments(params, sums)

    def _means(self, given: Batch, beside: Beside | None) -> tuple[Any, Any]:
        """Batch means of `_collect` and of what stands beside the score columns."""
        local = self.to_device_local(given)
        jax.eval_shape(self.init, local.params)  # may it be formed at all?
        examples = visits(self.model, self.labels, local)
        collect = self._collect(Layout.of(local.params), examples.columns)
        sums = examples.fold_columns(collect, beside)
        _, sums, total = self.psum_over_devices((), sums, examples.total, local)
        return jax.tree.map(lambda leaf: leaf / total.astype(leaf.dtype), sums)

    def _collect(self, layout: Layout, count: int) -> Callable[[Array, Array], tuple]:
        """`outer` of a chunk, and for centred labels Σ_n w_nk g_nk, [K, P]."""

        def collect(g, weights):
            weights = weights.astype(layout.dtype)
            sums = self.outer(layout, g, weights)
            if not self.labels.centred:
                return sums, ()
            each = g.reshape(-1, count, layout.size)
            shares = weights.reshape(-1, count)
            return sums, jnp.einsum("nk,nkp->kp", shares, each, precision=HIGHEST)

        return collect

    def from_moments(
        self, params: Params, moments: Statistics, found: Statistics | None = None
    ) -> Statistics:
        """The mean of outer products, less the outer products of the means."""
        del found
        statistics, means = moments
        if not self.labels.centred:
            return statistics
        layout = Layout.of(params)
        ones = jnp.ones(means.shape[0], layout.dtype)
        return jax.tree.map(jnp.subtract, statistics, self.outer(layout, means, ones))


def refuse_groups(curvature: Curvature) -> None:
    """Raise a ValueError for a curvature by layers of a model of groups of residuals.

    Args:
        curvature: it.
    """
    model = curvature.model
    if isinstance(model, LeastSquares):
        raise ValueError(
            f"{type(curvature).__name__} has one product of inputs and gradients a "
            f"layer, and of the groups {list(model.residuals.functions)} of "
            "least_squares each has another. Use Dense, Gram or MatrixFree, which are "
            "exact; or one group alone as Model(residual, families.NormalMean(), "
            "example_inputs=points), whose labels are 0."
        )
