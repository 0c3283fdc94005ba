"""Curvatures that are another curvature, chosen or changed."""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Callable

from natgrad.curvature.base import Curvature
from natgrad.curvature.labels import Labels
from natgrad.layers.compiled import compiled_method
from natgrad.metrics.base import Metric
from natgrad.model import Model
from natgrad.model.batch import Batch
from natgrad.typing import Array, ArrayLike, Inputs, Key, Params, Statistics


class Delegate(Curvature):
    """A curvature that is another one, chosen or changed: no approximation of its own.

    What `specialize` gives must not choose again.
    """

    @abc.abstractmethod
    def specialize(self, params: Params) -> Curvature:
        """The curvature for parameters of these shapes."""

    def init(self, params: Params) -> Statistics:
        """That of what is chosen."""
        return self.specialize(params).init(params)

    def estimate(
        self,
        params: Params,
        inputs: Inputs,
        targets: Array | None = None,
        key: Key | None = None,
    ) -> Statistics:
        """That of what is chosen."""
        return self.specialize(params).estimate(params, inputs, targets, key)

    def metric(
        self,
        statistics: Statistics,
        params: Params,
        inputs: Inputs = None,
        targets: Array | None = None,
    ) -> Metric:
        """That of what is chosen."""
        return self.specialize(params).metric(statistics, params, inputs, targets)

    @compiled_method
    def value_and_grad(
        self, params: Params, inputs: Inputs, targets: Array, key: Key | None = None
    ) -> tuple[Array, Params, Statistics]:
        """That of what is chosen."""
        return self.specialize(params).value_and_grad(params, inputs, targets, key)


@dataclasses.dataclass(frozen=True, eq=False)
class Wrapper(Delegate):
    """A curvature that does what another one does, but for what a subclass changes.

    Attributes:
        model: that of the curvature.
        labels: those of the curvature.
        curvature: the other one.
    """

    model: Model = dataclasses.field(init=False)
    labels: Labels = dataclasses.field(init=False)
    curvature: Curvature

    def __post_init__(self):
        object.__setattr__(self, "model", self.curvature.model)
        object.__setattr__(self, "labels", self.curvature.labels)

    @property
    def requires_batch(self) -> bool:  # pyright: ignore[reportIncompatibleVariableOverride]
        """As the curvature itself."""
        return self.curvature.requires_batch

    def wrap(self, curvature: Curvature) -> Wrapper:
        """The same change to another curvature, itself where that is no other."""
        if curvature is self.curvature:
            return self
        return dataclasses.replace(self, curvature=curvature)

    def specialize(self, params: Params) -> Curvature:
        """The same change to the choice that is made for these parameters."""
        return self.wrap(self.curvature.specialize(params))

    def init(self, params: Params) -> Statistics:
        """As the curvature does."""
        return self.curvature.init(params)

    @abc.abstractmethod
    def estimate(
        self,
        params: Params,
        inputs: Inputs,
        targets: Array | None = None,
        key: Key | None = None,
    ) -> Statistics:
        """The changed statistics of one batch; see `Curvature.estimate`."""

    @property
    def passes(self) -> int:  # pyright: ignore[reportIncompatibleVariableOverride]
        """As the curvature itself."""
        return self.curvature.passes

    def moments(self, given: Batch, found: Statistics | None = None) -> Statistics:
        """As the curvature does."""
        return self.curvature.moments(given, found)

    def from_moments(
        self, params: Params, moments: Statistics, found: Statistics | None = None
    ) -> Statistics:
        """As the curvature does."""
        return self.curvature.from_moments(params, moments, found)

    def divergence_from(
        self, params: Params, inputs: Inputs
    ) -> tuple[Callable[[Params], Array], ArrayLike]:
        """As the curvature does, of the whole batch."""
        return self.curvature.divergence_from(params, inputs)

    def loss_and_gradient(
        self, params: Params, inputs: Inputs, targets: Array
    ) -> tuple[Array, Params]:
        """As the curvature does, of the whole batch."""
        return self.curvature.loss_and_gradient(params, inputs, targets)

    def with_previous(self, statistics: Statistics) -> Wrapper:
        """The same change to the curvature that continues from these statistics."""
        return self.wrap(self.curvature.with_previous(statistics))

    def accumulate(
        self, statistics: Statistics, estimate: Statistics, weight: Array
    ) -> Statistics:
        """As the curvature does."""
        return self.curvature.accumulate(statistics, estimate, weight)

    def with_frozen(self, model_params: Params) -> Wrapper:
        """The same change to the curvature of a part of the parameters."""
        return self.wrap(self.curvature.with_frozen(model_params))
