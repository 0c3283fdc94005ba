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
import numpy as np

from natgrad import layers, tree
from natgrad.curvature.delegate import Wrapper
from natgrad.layers.compiled import compiled_method
from natgrad.metrics.base import Metric
from natgrad.model import batch
from natgrad.model.batch import Batch
from natgrad.typing import Array, ArrayLike, Inputs, Key, Params, Statistics

# Odd numbers: products with them, and shifts, mix the bits of a word (Steele, Lea &
# Flood 2014, Fast splittable pseudorandom number generators).
_ODD = np.uint32(2654435769), np.uint32(2246822519)


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
        check_stride("SubBatch(curvature, every)", self.every)
        check_fewest("SubBatch(min_examples=...)", self.min_examples)
        if self.curvature.requires_batch:
            raise ValueError(
                f"{type(self.curvature).__name__} is solved with the whole batch and "
                "keeps no statistics: give it fewer examples instead, or name a "
                "curvature that keeps a matrix, such as natgrad.curvature.KFAC."
            )

    @compiled_method
    def estimate(
        self,
        params: Params,
        inputs: Inputs,
        targets: Array | None = None,
        key: Key | None = None,
    ) -> Statistics:
        """Those of a part of the batch."""
        return self.curvature.estimate(*self._part(Batch(params, inputs, targets, key)))

    def moments(self, given: Batch, found: Statistics | None = None) -> Statistics:
        """Those of a part of the batch, which counts as much as the whole."""
        return self.curvature.moments(self._part(given), found)

    def _part(self, given: Batch) -> Batch:
        """Some examples of the batch, the first drawn where there is a key."""
        params, inputs, targets, key = given
        if self._every(inputs) == 1:
            return given
        apply, axes = self.model.apply_real, self.model.in_axes
        found = layers.dependence(apply, params, inputs, axes)
        if found is layers.Dependence.OTHERS:
            raise ValueError(
                "Statistics are to be those of a part of the examples, and here their "
                "outputs depend on the inputs of the others, which would change with "
                "the part. Use the curvature itself, of the whole batch, without "
                "SubBatch and Refresh(sub_batch=...). Layers, as of kfac and ekfac, "
                "need examples that are apart: use natural_gradient."
            )
        first = 0
        if key is not None:  # its bits: a random program takes long to compile
            words = tree.raw_key(key).reshape(-1)
            bits = words[0] * _ODD[0] + words[-1] * _ODD[1]  # keys in a row share one
            bits = (bits ^ (bits >> 15)) * _ODD[1]
            count = batch.input_count(inputs, axes) or 1
            share = np.uint32(min(-(-(2**32) // count), 2**32 - 1))
            first = (bits // share).astype(jnp.int32)
        inputs, targets = self.subsample(inputs, targets, first)
        return Batch(params, inputs, targets, key)

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

    @compiled_method
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
        if every == 1:
            return inputs, targets
        if not self.labels.needs_targets:  # they may be of any kind
            targets = None
        return subsample(inputs, targets, self.model.in_axes, every, first)

    def _every(self, inputs: Inputs) -> int:
        """k, or less, so that `min_examples` examples remain."""
        count = batch.input_count(inputs, self.model.in_axes)
        if count is None:  # which `subsample` refuses
            return self.every
        return max(1, min(self.every, count // self.min_examples))


def check_stride(name: str, every: int) -> None:
    """Raise unless an argument says of how many examples one is used.

    Args:
        name: of the argument, for the message.
        every: its value, the k of `subsample`.

    Raises:
        ValueError: it is not an integer >= 1.
    """
    if not isinstance(every, int) or every < 1:
        raise ValueError(
            f"{name} uses one example in so many, an integer >= 1, got {every!r}. "
            "Under optax.inject_hyperparams name it in static_args."
        )


def check_fewest(name: str, examples: int) -> None:
    """Raise unless an argument is a number of examples.

    Args:
        name: of the argument, for the message.
        examples: its value, how many are left at least.

    Raises:
        ValueError: it is not an integer >= 1.
    """
    if not isinstance(examples, int) or examples < 1:
        raise ValueError(
            f"{name} is a number of examples, an integer >= 1, got {examples!r}."
        )


def subsample(
    inputs: Inputs,
    targets: ArrayLike | None,
    in_axes: Any,
    every: int,
    first: ArrayLike = 0,
) -> tuple[Inputs, Any]:
    """Every k-th example of a batch.

    Args:
        inputs: a tree of arrays.
        targets: labels [N, ...], or None.
        in_axes: as `Model.in_axes`.
        every: k.
        first: the index of the first example that is taken.

    Returns:
        (inputs, targets) of N // k examples, and at least one; where k does not divide
        N they wrap around.

    Raises:
        ValueError: no input has an axis of examples, or the targets have another N.
    """
    count = batch.input_count(inputs, in_axes)
    if count is None:
        raise ValueError(
            "No leaf of the inputs has an axis of examples, of which a part could be "
            "taken: use the whole batch (sub_batch=1), or pass the data in inputs with "
            "an axis of examples, 0 in Model(in_axes=...)."
        )
    if targets is not None and jnp.shape(targets)[:1] != (count,):
        raise ValueError(
            f"targets must have a leading axis of {count} examples, as the inputs do, "
            f"got shape {jnp.shape(targets)}."
        )
    if every == 1:
        return inputs, targets
    number, first = max(1, count // every), jnp.asarray(first) % count

    def part(leaf):
        leaf = jnp.asarray(leaf)
        if number * every != count:
            rows = (first + every * jnp.arange(number)) % count
            return jnp.take(leaf, rows, axis=0)
        # Examples of a device stay on it.
        apart = leaf.reshape((number, every, *leaf.shape[1:]))
        return jax.lax.dynamic_index_in_dim(apart, first % every, 1, keepdims=False)

    batched, _ = batch.split_inputs(inputs, in_axes)
    with_examples = {id(leaf) for leaf in batched}
    inputs = jax.tree.map(
        lambda leaf: part(leaf) if id(leaf) in with_examples else leaf, inputs
    )
    return inputs, None if targets is None else part(targets)
