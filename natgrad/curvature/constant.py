"""A curvature that derivatives do not see: first-order meta-gradients by name.

Derivatives through a step (F + λI)⁻¹ g see F change with θ, which is right, and needs
third derivatives of the model. `Constant(curvature)` gives the same steps and treats F
as a constant in their derivatives: what is left is that of g and of λ. It is an
approximation of the derivative, and only of that.
"""

from __future__ import annotations

import dataclasses
from typing import final

import jax

from natgrad.curvature.delegate import Wrapper
from natgrad.layers.compiled import compiled_method
from natgrad.metrics.base import Metric
from natgrad.typing import Array, Inputs, Key, Params, Statistics


@final
@dataclasses.dataclass(frozen=True, eq=False)
class Constant(Wrapper):
    """F as a constant in derivatives.

    Attributes:
        curvature: what is kept constant.
    """

    def estimate(
        self,
        params: Params,
        inputs: Inputs,
        targets: Array | None = None,
        key: Key | None = None,
    ) -> Statistics:
        """Those of the curvature, constant."""
        stopped = jax.lax.stop_gradient((params, inputs, targets))
        return jax.lax.stop_gradient(self.curvature.estimate(*stopped, key))

    def metric(
        self,
        statistics: Statistics,
        params: Params,
        inputs: Inputs = None,
        targets: Array | None = None,
    ) -> Metric:
        """That of the curvature, constant."""
        stopped = jax.lax.stop_gradient((statistics, params, inputs, targets))
        return self.curvature.metric(*stopped)

    @compiled_method
    def value_and_grad(
        self, params: Params, inputs: Inputs, targets: Array, key: Key | None = None
    ) -> tuple[Array, Params, Statistics]:
        """Loss and gradient as they are, constant statistics."""
        loss, gradient, statistics = self.curvature.value_and_grad(
            params, inputs, targets, key
        )
        return loss, gradient, jax.lax.stop_gradient(statistics)
