"""Curvatures whose statistics are sums over per-example pullbacks g_nk = J_nᵀ s_nk.

    F = Σ_n Σ_k w_nk g_nk g_nkᵀ / Σ_n ω_n

A subclass says what is kept of the outer products. Examples and score columns are taken
in chunks, so that about 2^24 numbers are alive at once (`natgrad.curvature.visits`).
Gradient and statistics share one forward pass and one `vjp` an example: the loss's own
cotangent is one more column.
"""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp

from natgrad.curvature.summed import SummedCurvature
from natgrad.curvature.visits import visits
from natgrad.solvers.spectral import HIGHEST
from natgrad.tree import Layout
from natgrad.typing import Array, Inputs, Key, Params, Statistics


@dataclasses.dataclass(frozen=True, eq=False)
class PullbackCurvature(SummedCurvature):
    """A curvature that is a function of J_nᵀ s_nk, one chunk of examples at a time."""

    @abc.abstractmethod
    def outer(self, layout: Layout, g: Array, weights: Array) -> Statistics:
        """What is kept of Σ_m w_m g_m g_mᵀ, for g [M, P] and w [M]."""

    def estimate(
        self,
        params: Params,
        inputs: Inputs,
        targets: Array | None = None,
        key: Key | None = None,
    ) -> Statistics:
        """The batch mean of `outer`; see `Curvature.estimate`."""
        self.labels.check(targets, key)
        params, key = self.to_device_local(params, inputs, targets, key)
        jax.eval_shape(self.init, params)  # may it be formed at all?
        used = targets if self.labels.needs_targets else None
        found = visits(self.model, self.labels, params, inputs, used, key)
        sums, _ = found.fold_columns(self._collect(Layout.of(params)))
        _, sums, total = self.psum_over_devices((), sums, found.total, params, inputs)
        return self._centred(Layout.of(params), _mean(sums, total))

    def value_and_grad(
        self, params: Params, inputs: Inputs, targets: Array, key: Key | None = None
    ) -> tuple[Array, Params, Statistics]:
        """(loss, gradient, statistics) from one forward pass and one vjp."""
        self.labels.check(targets, key)
        params, key = self.to_device_local(params, inputs, targets, key)
        jax.eval_shape(self.init, params)  # may it be formed at all?
        layout, model = Layout.of(params), self.model

        def loss(z, example):
            log_prob = model.factor_sum(model.family.log_prob)
            value = lambda z: -log_prob(example.weights, z, example.target)
            return jax.value_and_grad(value)(z)

        found = visits(model, self.labels, params, inputs, targets, key)
        sums = found.fold_columns(self._collect(layout), loss)
        _, sums, total = self.psum_over_devices((), sums, found.total, params, inputs)
        sums, (value, gradient) = _mean(sums, total)
        return value, layout.unravel(gradient), self._centred(layout, sums)

    def _collect(self, layout: Layout) -> Callable[[Array, Array], tuple]:
        """`outer` of a chunk and, for centred labels, Σ w g: g [M, P], w [M]."""

        def collect(g, weights):
            weights = weights.astype(layout.dtype)
            sums = self.outer(layout, g, weights)
            if not self.labels.centred:
                return sums, ()
            return sums, jnp.matmul(weights, g, precision=HIGHEST)

        return collect

    def _centred(self, layout: Layout, sums: tuple) -> Statistics:
        """The mean of outer products, less the outer product of the mean."""
        statistics, mean = sums
        if not self.labels.centred:
            return statistics
        one = jnp.ones(1, layout.dtype)
        return jax.tree.map(
            jnp.subtract, statistics, self.outer(layout, mean[None], one)
        )


def _mean(sums, total: Array):
    return jax.tree.map(lambda leaf: leaf / total.astype(leaf.dtype), sums)
