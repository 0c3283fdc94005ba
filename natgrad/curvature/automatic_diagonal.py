"""The diagonal of F from taps on the layers where they can be read, else one by one.

`LayerDiagonal` and `Diagonal` give the same numbers, [P]; the first needs no gradient
of any example, and cannot read every model. Which it is changes time and memory alone.
"""

from __future__ import annotations

import dataclasses
from typing import Any, final

from natgrad.curvature.base import Curvature
from natgrad.curvature.delegate import Delegate
from natgrad.curvature.diagonal import Diagonal
from natgrad.curvature.layer_diagonal import LayerDiagonal
from natgrad.layers.compiled import compiled_method
from natgrad.metrics.matrices import DiagonalMetric
from natgrad.model.batch import Batch
from natgrad.typing import Array, Inputs, Key, Params, Statistics


@final
@dataclasses.dataclass(frozen=True, eq=False)
class AutomaticDiagonal(Delegate):
    """The diagonal of F, [P], by the cheaper way that this batch allows."""

    def specialize(self, params: Params) -> Curvature:
        """Itself: the batch decides."""
        del params
        return self

    def init(self, params: Params) -> Statistics:
        """Zeros [P]."""
        return self._one_by_one.init(params)

    def estimate(
        self,
        params: Params,
        inputs: Inputs,
        targets: Array | None = None,
        key: Key | None = None,
    ) -> Statistics:
        """Of one batch; see `Curvature.estimate`."""
        form = self._choice(Batch(params, inputs, targets, key))
        return form.estimate(params, inputs, targets, key)

    @compiled_method
    def value_and_grad(
        self, params: Params, inputs: Inputs, targets: Array, key: Key | None = None
    ) -> tuple[Array, Params, Statistics]:
        """(loss, gradient, statistics) of one batch."""
        form = self._choice(Batch(params, inputs, targets, key))
        return form.value_and_grad(params, inputs, targets, key)

    def metric(
        self,
        statistics: Statistics,
        params: Params,
        inputs: Inputs = None,
        targets: Array | None = None,
    ) -> DiagonalMetric:
        """The diagonal as a metric."""
        return self._one_by_one.metric(statistics, params, inputs, targets)

    @property
    def _one_by_one(self) -> Any:
        return Diagonal(self.model, self.labels)

    def _choice(self, given: Batch) -> Curvature:
        """What reads this batch."""
        from_layers = LayerDiagonal(self.model, self.labels)
        try:
            from_layers.capture_batch(given)
        except ValueError:  # the other one raises too, if the batch is at fault
            return self._one_by_one
        return from_layers
