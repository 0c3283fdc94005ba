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

from natgrad.curvature.base import Curvature, Delegate
from natgrad.curvature.labels import Labels
from natgrad.metrics.base import Metric
from natgrad.model import Model
from natgrad.typing import Array, Inputs, Key, Params, Statistics


@final
@dataclasses.dataclass(frozen=True, eq=False)
class Constant(Delegate):
    """F as a constant in derivatives.

    Attributes:
        curvature: what is kept constant.
    """

    model: Model = dataclasses.field(init=False)
    labels: Labels = dataclasses.field(init=False)
    curvature: Curvature

    def __post_init__(self):
        object.__setattr__(self, "model", self.curvature.model)
        object.__setattr__(self, "labels", self.curvature.labels)

    @property
    def requires_batch(self) -> bool:
        """As the curvature itself."""
        return self.curvature.requires_batch

    def specialize(self, params: Params) -> Curvature:
        """The choice made for these parameters, kept constant."""
        chosen = self.curvature.specialize(params)
        return self if chosen is self.curvature else Constant(chosen)

    def init(self, params: Params) -> Statistics:
        """Those of the curvature."""
        return self.curvature.init(params)

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

    def value_and_grad(
        self, params: Params, inputs: Inputs, targets: Array, key: Key | None = None
    ) -> tuple[Array, Params, Statistics]:
        """Loss and gradient as they are, constant statistics."""
        loss, gradient, statistics = self.curvature.value_and_grad(
            params, inputs, targets, key
        )
        return loss, gradient, jax.lax.stop_gradient(statistics)

    def divergence(self, params: Params, other: Params, inputs: Inputs) -> Array:
        """The curvature's."""
        return self.curvature.divergence(params, other, inputs)

    def loss_and_gradient(
        self, params: Params, inputs: Inputs, targets: Array
    ) -> tuple[Array, Params]:
        """Those of the curvature, of the whole batch."""
        return self.curvature.loss_and_gradient(params, inputs, targets)

    def with_previous(self, statistics: Statistics) -> Constant:
        """The curvature's, constant."""
        return Constant(self.curvature.with_previous(statistics))

    def accumulate(
        self, statistics: Statistics, estimate: Statistics, weight: Array
    ) -> Statistics:
        """As the curvature does."""
        return self.curvature.accumulate(statistics, estimate, weight)

    def with_frozen(self, model_params: Params) -> Constant:
        """The curvature's, constant."""
        return Constant(self.curvature.with_frozen(model_params))
