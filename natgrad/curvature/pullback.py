"""Curvatures whose statistics are sums over per-example pullbacks g_nk = J_nᵀ s_nk.

    F = Σ_n Σ_k w_nk g_nk g_nkᵀ / Σ_n ω_n

A subclass says what is kept of the outer products. Examples are taken in chunks, so
that K·P numbers an example are alive for one chunk only. Gradient and statistics share
one forward pass and one `vjp` an example: the loss's own cotangent is one more column.
"""

from __future__ import annotations

import abc
import dataclasses

import jax
import jax.numpy as jnp

from natgrad.curvature.summed import SummedCurvature
from natgrad.solvers import HIGHEST
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
        params, key = self.local(params, inputs, targets, key)
        layout = Layout.of(params)

        def visit(z, pull, example):
            scores, weights = self.labels.columns(self.model, z, example)
            return jax.vmap(lambda s: layout.ravel(pull(s)))(scores), weights

        sums, total = self.model.fold(
            params,
            inputs,
            visit,
            lambda visited: self._sum(layout, *visited),
            targets=targets if self.labels.needs_targets else None,
            key=key,
        )
        _, sums, total = self.everywhere((), sums, total, params, inputs)
        return self._centred(layout, _mean(sums, total))

    def value_and_grad(
        self, params: Params, inputs: Inputs, targets: Array, key: Key | None = None
    ) -> tuple[Array, Params, Statistics]:
        """(loss, gradient, statistics) from one forward pass and one vjp."""
        self.labels.check(targets, key)
        params, key = self.local(params, inputs, targets, key)
        layout = Layout.of(params)

        def visit(z, pull, example):
            log_prob = lambda z: self.model.factor_sum(self.model.family.log_prob)(
                example.weights, z, example.target
            )
            value, cotangent = jax.value_and_grad(log_prob)(z)
            scores, weights = self.labels.columns(self.model, z, example)
            cotangents = jnp.concatenate([scores, cotangent[None]])
            g = jax.vmap(lambda s: layout.ravel(pull(s)))(cotangents)
            return value, g[-1], g[:-1], weights

        def collect(visited):
            values, gradients, g, weights = visited
            sums = self._sum(layout, g, weights)
            return -jnp.sum(values), -jnp.sum(gradients, axis=0), sums

        sums, total = self.model.fold(
            params, inputs, visit, collect, targets=targets, key=key
        )
        _, sums, total = self.everywhere((), sums, total, params, inputs)
        loss, gradient, sums = _mean(sums, total)
        return loss, layout.unravel(gradient), self._centred(layout, sums)

    def _sum(self, layout: Layout, g: Array, weights: Array) -> tuple:
        """`outer` of a chunk and, for centred labels, Σ w g: g [n, K, P], w [n, K]."""
        g = g.reshape(-1, layout.size)
        weights = weights.reshape(-1).astype(layout.dtype)
        sums = self.outer(layout, g, weights)
        if not self.labels.centred:
            return sums, ()
        return sums, jnp.matmul(weights, g, precision=HIGHEST)

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
