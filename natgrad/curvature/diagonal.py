"""The diagonal of the Fisher information.

    d = (1/N) Σ_n Σ_k w_nk g_nk²                                  [P]

Exact on the diagonal, and blind to everything off it. Not Adam: Adam's second moment is
the square of the mean gradient, which vanishes at a stationary point where d does not.
Memory P and one chunk of N·K·P; time N·K·P.
"""

from __future__ import annotations

import dataclasses
from typing import final

import jax.numpy as jnp

from natgrad.curvature.summed import PullbackCurvature
from natgrad.metrics.matrices import DiagonalMetric
from natgrad.solvers.spectral import HIGHEST
from natgrad.tree import Layout
from natgrad.typing import Array, Inputs, Params, Statistics


@final
@dataclasses.dataclass(frozen=True, eq=False)
class Diagonal(PullbackCurvature):
    """The diagonal of F, [P]."""

    def init(self, params: Params) -> Statistics:
        """Zeros [P]."""
        layout = Layout.of(params)
        return jnp.zeros(layout.size, layout.dtype)

    def outer(self, layout: Layout, g: Array, weights: Array) -> Statistics:
        """Σ_m w_m g_m², [P]."""
        del layout
        return jnp.matmul(weights, g**2, precision=HIGHEST)

    def metric(
        self,
        statistics: Statistics,
        params: Params,
        inputs: Inputs = None,
        targets: Array | None = None,
    ) -> DiagonalMetric:
        """The diagonal as a metric."""
        del inputs, targets
        return DiagonalMetric(Layout.of(params), statistics)
