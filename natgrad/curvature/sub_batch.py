"""A curvature whose statistics come from a part of each batch.

Statistics of layers cost more than a gradient, and a moving average needs far fewer
examples a step than a gradient does: `SubBatch(curvature, every=4)` estimates from
every fourth example of the batch, with a forward and backward pass of these alone.

The first example is drawn at random, so that each has the same chance and the estimate
is unbiased for the whole batch's in whatever order the examples come; without a key it
is the batch's first. Where `every` does not divide N the examples wrap around.

Source: Martens & Grosse (2015), Optimizing neural networks with Kronecker-factored
approximate curvature, section 8 (τ₁, τ₂: fractions of the batch for the statistics).
"""

from __future__ import annotations

import dataclasses
from typing import Any, final

import jax.numpy as jnp

from natgrad import layers, tree
from natgrad.curvature.delegate import Wrapper
from natgrad.metrics.base import Metric
from natgrad.model import batch
from natgrad.typing import Array, ArrayLike, Inputs, Key, Params, Statistics


@final
@dataclasses.dataclass(frozen=True, eq=False)
class SubBatch(Wrapper):
    """Statistics of every `every`-th example.

    Attributes:
        curvature: of which the statistics are; one that keeps a matrix.
        every: a whole number k >= 1; N // k examples are used, and at least one.
        min_examples: a smaller k is taken for batches of which fewer would be left.
    """

    every: int
    min_examples: int = 1

    def __post_init__(self):
        super().__post_init__()
        batch.check_stride("SubBatch(curvature, every)", self.every)
        if not isinstance(self.min_examples, int) or self.min_examples < 1:
            raise ValueError(
                "SubBatch(min_examples=...) is a number of examples, an integer >= 1, "
                f"got {self.min_examples!r}."
            )
        if self.curvature.requires_batch:
            raise ValueError(
                f"{type(self.curvature).__name__} is solved with the whole batch and "
                "keeps no statistics: give it fewer examples instead, or name a "
                "curvature that keeps a matrix, such as natgrad.curvature.KFAC."
            )

    def estimate(
        self,
        params: Params,
        inputs: Inputs,
        targets: Array | None = None,
        key: Key | None = None,
    ) -> Statistics:
        """Those of a part of the batch."""
        apply, axes = self.model.apply, self.model.in_axes
        found = layers.dependence(apply, params, inputs, axes)
        if self.every > 1 and found is layers.Dependence.OTHERS:
            raise ValueError(
                "SubBatch(curvature, every) takes a part of the examples, and here "
                "their outputs depend on the inputs of the others, which would change "
                "with the part. Use the curvature itself, of the whole batch."
            )
        first = 0
        if key is not None:  # its bits: a random program takes long to compile
            count = batch.input_count(inputs, self.model.in_axes) or 1
            bits = tree.raw_key(key).reshape(-1)[-1]
            first = (bits % count).astype(jnp.int32)
        inputs, targets = self.subsample(inputs, targets, first)
        return self.curvature.estimate(params, inputs, targets, key)

    def metric(
        self,
        statistics: Statistics,
        params: Params,
        inputs: Inputs = None,
        targets: Array | None = None,
    ) -> Metric:
        """That of the curvature."""
        if inputs is not None:
            inputs, targets = self.subsample(inputs, targets, 0)
        return self.curvature.metric(statistics, params, inputs, targets)

    def value_and_grad(
        self, params: Params, inputs: Inputs, targets: Array, key: Key | None = None
    ) -> tuple[Array, Params, Statistics]:
        """Loss and gradient of the whole batch, statistics of a part."""
        loss, gradient = self.loss_and_gradient(params, inputs, targets)
        return loss, gradient, self.estimate(params, inputs, targets, key)

    def subsample(
        self, inputs: Inputs, targets: Array | None, first: ArrayLike
    ) -> tuple[Inputs, Any]:
        """The part of inputs and targets, from example `first` on."""
        every = self._every(inputs)
        return batch.subsample(inputs, targets, self.model.in_axes, every, first)

    def _every(self, inputs: Inputs) -> int:
        """k, or less, so that `min_examples` examples remain."""
        count = batch.input_count(inputs, self.model.in_axes) or 1
        return max(1, min(self.every, count // self.min_examples))
