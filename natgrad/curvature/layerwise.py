"""Curvatures whose statistics come from taps on the layers: see `natgrad.layers`.

A subclass says what it asks of every block, what it keeps of the answers, and which
metric that is. One forward pass, and one backward pass for each score column; the
loss's gradient is one more pull of the same `vjp`, and for empirical labels no pull
more.
"""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from natgrad import layers, tree
from natgrad.curvature.summed import SummedCurvature
from natgrad.curvature.whole import BatchColumns, whole_columns
from natgrad.layers import Block, Captured
from natgrad.metrics.base import Metric
from natgrad.model import batch, placeholders
from natgrad.tree import Layout
from natgrad.typing import Array, Inputs, Key, Params, Statistics

Blocks = tuple[Block, ...]

# (name -> what to ask of every block, the answers [block][name] and Σ_n ω_n -> what is
# kept). Answers quadratic in the gradients must be divided by Σ_n ω_n.
Plan = tuple[Mapping[str, layers.Statistic], Callable[[Mapping, Array], Statistics]]


@dataclasses.dataclass(frozen=True, eq=False)
class LayerCurvature(SummedCurvature):
    """A curvature from statistics of layers.

    Attributes:
        declared: path of a parameter or subtree -> `natgrad.layers.DenseBlock()` or
            `natgrad.layers.DiagonalBlock()`, for what is to be treated by hand.
    """

    declared: Mapping[str, Any] | None = None

    @abc.abstractmethod
    def plan(
        self,
        params: Params,
        inputs: Inputs,
        targets: Array | None = None,
        key: Key | None = None,
    ) -> Plan:
        """What to ask of the layers, and what to keep of the answers."""

    @abc.abstractmethod
    def metric_from_statistics(
        self, statistics: Statistics, layout: Layout, blocks: Callable[[], Blocks]
    ) -> Metric:
        """The metric of what `plan` keeps, in the dtype of the layout.

        `blocks()` captures the layers, for which the model needs a batch.
        """

    def metric(
        self,
        statistics: Statistics,
        params: Params,
        inputs: Inputs = None,
        targets: Array | None = None,
    ) -> Metric:
        """The metric that statistics describe; see `Curvature.metric`."""
        del targets
        layout, blocks = Layout.of(params), lambda: self.captured(params, inputs).blocks
        cast = lambda leaf: (
            leaf.astype(layout.dtype)
            if jnp.issubdtype(leaf.dtype, jnp.floating)
            else leaf
        )
        return self.metric_from_statistics(
            jax.tree.map(cast, statistics), layout, blocks
        )

    def estimate(
        self,
        params: Params,
        inputs: Inputs,
        targets: Array | None = None,
        key: Key | None = None,
    ) -> Statistics:
        """Of one batch; see `Curvature.estimate`."""
        self._check(params, inputs, targets, key)
        params, key = self.to_device_local(params, inputs, targets, key)
        wanted, keep = self.plan(params, inputs, targets, key)
        return keep(*self.sums(wanted, params, inputs, targets, key))

    def value_and_grad(
        self, params: Params, inputs: Inputs, targets: Array, key: Key | None = None
    ) -> tuple[Array, Params, Statistics]:
        """(loss, gradient, statistics) from one forward pass and pulls of one vjp."""
        self._check(params, inputs, targets, key)
        params, key = self.to_device_local(params, inputs, targets, key)
        wanted, keep = self.plan(params, inputs, targets, key)
        captured = self.captured(params, inputs)
        z, pullback = captured.pull(wanted, params, inputs)
        head = dataclasses.replace(self.model, apply=lambda z, _: z)
        loss, cotangent = jax.value_and_grad(lambda z: head.loss(z, inputs, targets))(z)
        gradient, sums = pullback(cotangent)
        columns, total = whole_columns(
            self.model, self.labels, z, params, inputs, targets, key
        )
        if self.labels.needs_targets and self.model.weights is None:
            scale = total**2  # the one column is −N times this cotangent
        else:
            scale, sums = 1, _over_columns(pullback, z, columns)
        (loss, gradient), sums, total = self.psum_over_devices(
            (loss, gradient), sums, total, params, inputs
        )
        return loss, gradient, keep(_ordered(sums, captured), total / scale)

    def _check(self, params: Params, inputs: Inputs, targets, key) -> None:
        if self.labels.centred:
            raise ValueError(
                f"{type(self).__name__} reads one example at a time, and {self.labels} "
                "scores are taken less their mean over the batch. Use Gram, Dense, "
                "Diagonal or MatrixFree with them."
            )
        self.labels.check(targets, key)
        model = self.model
        z = jax.eval_shape(model.outputs, params, inputs)  # its errors come first
        if batch.input_count(inputs, model.in_axes) is None and z.shape[0] > 1:
            raise ValueError(
                f"{type(self).__name__} must know which rows of a layer belong to "
                "which example, and no leaf of the inputs has an axis of examples, "
                f"for outputs of shape {z.shape}. Pass the data in inputs with such an "
                "axis, 0 in Model(in_axes=...), or use Gram, MatrixFree or Dense."
            )
        found = layers.dependence(model.apply, params, inputs, model.in_axes)
        if found is layers.Dependence.OTHERS:
            raise ValueError(
                f"{type(self).__name__} reads the layers' rows as if each belonged to "
                "one example, and here an example's outputs depend on the inputs of "
                "the others (batch statistics, contrastive scores, a graph). Use "
                "curvature=Gram, MatrixFree or Dense, which take the batch as one; or "
                "normalise by stored statistics, passed with the inputs: "
                "Model(..., in_axes={'x': 0, 'batch_stats': None})."
            )

    def sums(
        self, wanted: Mapping, params: Params, inputs: Inputs, targets, key
    ) -> tuple[Mapping, Array]:
        """The answers, summed over examples and score columns, and Σ_n ω_n."""
        captured = self.captured(params, inputs)
        z, pullback = captured.pull(wanted, params, inputs)
        columns, total = whole_columns(
            self.model, self.labels, z, params, inputs, targets, key
        )
        sums = _over_columns(pullback, z, columns)
        _, sums, total = self.psum_over_devices((), sums, total, params, inputs)
        return _ordered(sums, captured), total

    def captured(self, params: Params, inputs: Inputs = None) -> Captured:
        """The layers; from the model's example inputs where no batch is given."""
        inputs = self.model.example_inputs if inputs is None else inputs
        if inputs is None:
            raise ValueError(
                f"{type(self).__name__} has to know the layers before the first batch: "
                "give the model example inputs, Model(apply, family, "
                "example_inputs=x[:1]). A model that closes over its data must take "
                "them as inputs, or use Gram, MatrixFree or Dense."
            )
        if placeholders.has_placeholders(params):
            self._check_part(params, inputs)
        return layers.capture(
            self.model.apply,
            params,
            inputs,
            in_axes=self.model.in_axes,
            declared=self.declared,
        )

    def _check_part(self, params: Params, inputs: Inputs) -> None:
        """Raise unless the model takes a part of its parameters (optax.masked)."""
        try:
            jax.eval_shape(self.model.outputs, params, inputs)
        except (TypeError, ValueError, AttributeError) as error:  # of placeholders
            raise ValueError(
                f"{type(self).__name__} traces the model at init, where optax.masked "
                "and optax.multi_transform show it a part of the parameters only: "
                "build it from model.with_frozen(params), with the whole tree, and "
                f"pass model_params=params to update. The model itself says: {error}"
            ) from error

    def example_weights(self, params: Params, inputs: Inputs) -> Array | None:
        """ω_n = max_t w_nt, [N]; None for a model without weights."""
        if self.model.weights is None:
            return None
        _, examples, _ = self.model.whole(params, inputs)
        weights = examples.weights
        return jnp.max(weights.reshape(weights.shape[0], -1), axis=1)


def _ordered(sums: Mapping, captured: Captured) -> Mapping:
    """The answers in the order of the blocks: transformations sort dictionaries."""
    return {block.name: sums[block.name] for block in captured.blocks}


def _over_columns(pullback: Callable, z: Array, columns: BatchColumns) -> Mapping:
    """Σ_k of the answers to column k; one pull is traced, whatever K is."""
    pull = lambda k: pullback(columns.column(k).astype(z.dtype))[1]
    if columns.count == 1:
        return pull(0)
    zeros = tree.zeros_of(jax.eval_shape(pull, 0))
    add = lambda total, k: (jax.tree.map(jnp.add, total, pull(k)), None)
    return jax.lax.scan(add, zeros, jnp.arange(columns.count))[0]
