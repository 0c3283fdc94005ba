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

import jax
import jax.numpy as jnp

from natgrad import batch, tree
from natgrad.curvature.base import Curvature, Delegate
from natgrad.curvature.labels import Labels
from natgrad.metric import Metric
from natgrad.model import Model
from natgrad.typing import Array, Inputs, Key, Params, Statistics


@final
@dataclasses.dataclass(frozen=True, eq=False)
class SubBatch(Delegate):
    """Statistics of every `every`-th example.

    Attributes:
        curvature: of which the statistics are; one that keeps a matrix.
        every: a whole number k >= 1; N // k examples are used, and at least one.
    """

    model: Model = dataclasses.field(init=False)
    labels: Labels = dataclasses.field(init=False)
    curvature: Curvature
    every: int

    def __post_init__(self):
        object.__setattr__(self, "model", self.curvature.model)
        object.__setattr__(self, "labels", self.curvature.labels)
        if not isinstance(self.every, int) or self.every < 1:
            raise ValueError(
                "SubBatch(curvature, every) uses one example in `every`, an integer "
                f">= 1, got {self.every!r}."
            )
        if self.curvature.instantaneous:
            raise ValueError(
                f"{type(self.curvature).__name__} is solved with the whole batch and "
                "keeps no statistics: give it fewer examples instead, or name a "
                "curvature that keeps a matrix, such as natgrad.curvature.KFAC."
            )

    def resolved(self, params: Params) -> Curvature:
        """The choice made for these parameters, of a part of the batch."""
        chosen = self.curvature.resolved(params)
        return self if chosen is self.curvature else SubBatch(chosen, self.every)

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
        """Those of a part of the batch."""
        first = 0
        if key is not None:  # its bits: a random program takes long to compile
            bits = tree.raw_key(key).reshape(-1)[-1]
            first = (bits % self._count(inputs, targets)).astype(jnp.int32)
        inputs, targets = self._part(inputs, targets, first)
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
            inputs, targets = self._part(inputs, targets, 0)
        return self.curvature.metric(statistics, params, inputs, targets)

    def value_and_grad(
        self, params: Params, inputs: Inputs, targets: Array, key: Key | None = None
    ) -> tuple[Array, Params, Statistics]:
        """Loss and gradient of the whole batch, statistics of a part."""
        loss, gradient = jax.value_and_grad(self.model.loss)(params, inputs, targets)
        return loss, gradient, self.estimate(params, inputs, targets, key)

    def following(self, statistics: Statistics) -> SubBatch:
        """The curvature's, of a part of the batch."""
        return SubBatch(self.curvature.following(statistics), self.every)

    def accumulate(
        self, statistics: Statistics, estimate: Statistics, weight: Array
    ) -> Statistics:
        """As the curvature does."""
        return self.curvature.accumulate(statistics, estimate, weight)

    def fixing(self, model_params: Params) -> SubBatch:
        """The curvature's, of a part of the batch."""
        return SubBatch(self.curvature.fixing(model_params), self.every)

    def _count(self, inputs: Inputs, targets: Array | None) -> int:
        """N."""
        count = batch.input_count(inputs, self.model.in_axes)
        if count is None:
            raise ValueError(
                "SubBatch takes a part of the examples, but no leaf of the inputs has "
                "an axis of them: use the curvature itself."
            )
        if targets is not None and jnp.shape(targets)[:1] != (count,):
            raise ValueError(
                f"targets must have a leading axis of {count} examples, as the inputs "
                f"do, got shape {jnp.shape(targets)}."
            )
        return count

    def _part(self, inputs: Inputs, targets: Any, first: Any) -> tuple[Inputs, Any]:
        """One example in `every`, from `first` on, of inputs and targets."""
        count = self._count(inputs, targets)
        number = max(1, count // self.every)

        def part(leaf):
            if number * self.every != count:
                rows = (first + self.every * jnp.arange(number)) % count
                return jnp.take(leaf, rows, axis=0)
            # Examples of a device stay on it.
            apart = leaf.reshape((number, self.every, *leaf.shape[1:]))
            start = first % self.every
            return jax.lax.dynamic_index_in_dim(apart, start, 1, keepdims=False)

        batched, _ = batch.split_inputs(inputs, self.model.in_axes)
        mine = {id(leaf) for leaf in batched}
        cut = lambda leaf: part(jnp.asarray(leaf)) if id(leaf) in mine else leaf
        targets = None if targets is None else part(jnp.asarray(targets))
        return jax.tree.map(cut, inputs), targets
