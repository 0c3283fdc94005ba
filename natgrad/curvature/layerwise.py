"""Curvatures whose statistics come from taps on the layers: see `natgrad.layers`.

A subclass says what it asks of every block, what it keeps of the answers, and which
metric that is. The model is traced once for a batch. One forward pass, and one backward
pass for each score column; the loss's gradient is one more pull of the same `vjp`, and
for empirical labels no pull more.
"""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Callable, Mapping
from typing import Any, Protocol

import jax
import jax.numpy as jnp

from natgrad import layers, tree
from natgrad.curvature.columns import BatchColumns, law_of_outputs, summed_over
from natgrad.curvature.summed import SummedCurvature, refuse_groups
from natgrad.layers import Block, Captured
from natgrad.layers.captured import StatisticRequest
from natgrad.layers.compiled import compiled_method
from natgrad.metrics.base import Metric
from natgrad.model import Model, batch
from natgrad.model.batch import Batch
from natgrad.tree import Layout
from natgrad.typing import Array, Inputs, Key, Params, Statistics

Blocks = tuple[Block, ...]


class LayerStatistics(Protocol):
    """What a curvature asks of the layers, and what it keeps of their answers."""

    def requested_statistics(self) -> StatisticRequest:
        """Name -> what to ask of every block, or block -> such a mapping."""
        ...

    def finalize(self, sums: Mapping[str, Mapping], total: Array) -> Statistics:
        """The curvature's statistics.

        Args:
            sums: block's name -> name -> answer, summed over examples and columns.
                What is quadratic in the gradients must be divided by `total`.
            total: Σ_n ω_n, shape ().
        """
        ...


@dataclasses.dataclass(frozen=True)
class CapturedBatch:
    """A batch and the layers of the model on it, from one trace.

    Attributes:
        law: the model as a function of its outputs, `law_of_outputs`.
        batch: on this device.
        captured: the layers.
        shape: of the outputs, a `jax.ShapeDtypeStruct` [N, ...].
    """

    law: Model
    batch: Batch
    captured: Captured
    shape: Any

    def pull(self, statistics: LayerStatistics) -> tuple[Array, Callable]:
        """z [N, ...], and its pullback: see `natgrad.layers.Captured.pull`."""
        requested = statistics.requested_statistics()
        return self.captured.pull(requested, self.batch.params, self.batch.inputs)

    def example_weights(self) -> Array | None:
        """ω_n = max_t w_nt, [N]; None for a model without weights."""
        if self.law.weights is None:
            return None
        examples, _ = self.law.examples(self.shape, self.batch.inputs)
        weights = examples.weights
        return jnp.max(weights.reshape(weights.shape[0], -1), axis=1)


@dataclasses.dataclass(frozen=True, eq=False)
class LayerCurvature(SummedCurvature):
    """A curvature from statistics of layers.

    Attributes:
        model: whose Fisher information.
        labels: over which labels.
        declared: path of a parameter or subtree -> `natgrad.layers.DenseBlock()` or
            `natgrad.layers.DiagonalBlock()`, for what is to be treated by hand.
        axis_name: of the mapped axis, or axes, over which the examples are spread.
    """

    declared: Mapping[str, Any] | None = None

    @abc.abstractmethod
    def layer_statistics(self, captured: CapturedBatch) -> LayerStatistics:
        """What to ask of the layers of a batch, and what to keep of the answers."""

    @abc.abstractmethod
    def metric_from_statistics(
        self, statistics: Statistics, layout: Layout, blocks: Callable[[], Blocks]
    ) -> Metric:
        """The metric of statistics, in the dtype of the layout.

        Args:
            statistics: as `LayerStatistics.finalize` gives them, or their average.
            layout: of the parameters.
            blocks: captures the layers, for which the model needs a batch.
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
        layout = Layout.of(params)

        def blocks():
            return self.captured(params, inputs).blocks

        def cast(leaf):
            floating = jnp.issubdtype(leaf.dtype, jnp.floating)
            return leaf.astype(layout.dtype) if floating else leaf

        return self.metric_from_statistics(
            jax.tree.map(cast, statistics), layout, blocks
        )

    @compiled_method
    def estimate(
        self,
        params: Params,
        inputs: Inputs,
        targets: Array | None = None,
        key: Key | None = None,
    ) -> Statistics:
        """Of one batch; see `Curvature.estimate`."""
        captured = self.capture_batch(Batch(params, inputs, targets, key))
        statistics = self.layer_statistics(captured)
        return statistics.finalize(*self.sums(statistics, captured))

    @compiled_method
    def value_and_grad(
        self, params: Params, inputs: Inputs, targets: Array, key: Key | None = None
    ) -> tuple[Array, Params, Statistics]:
        """(loss, gradient, statistics) from one forward pass and pulls of one vjp."""
        captured = self.capture_batch(Batch(params, inputs, targets, key))
        statistics, law = self.layer_statistics(captured), captured.law
        z, pullback = captured.pull(statistics)
        loss, cotangent = jax.value_and_grad(law.loss)(z, inputs, targets)
        gradient, sums = pullback(cotangent)
        columns, total = self.labels.of_batch(law, z, captured.batch._replace(params=z))
        if self.labels.needs_targets and self.model.weights is None:
            scale = total**2  # the one column is −N times this cotangent
            sums = self.over_columns(lambda _, answers=sums: answers, 1)
        else:
            scale, sums = 1, self.over_columns(*_answers(pullback, z, columns))
        (loss, gradient), sums, total = self.psum_over_devices(
            (loss, gradient), sums, total, captured.batch
        )
        sums = _ordered(sums, captured.captured)
        return loss, gradient, statistics.finalize(sums, total / scale)

    def sums(
        self, statistics: LayerStatistics, captured: CapturedBatch
    ) -> tuple[Mapping, Array]:
        """The answers, summed over examples and score columns, and Σ_n ω_n.

        Args:
            statistics: what is asked.
            captured: the layers of a batch.
        """
        z, pullback = captured.pull(statistics)
        local = captured.batch._replace(params=z)
        columns, total = self.labels.of_batch(captured.law, z, local)
        sums = self.over_columns(*_answers(pullback, z, columns))
        _, sums, total = self.psum_over_devices((), sums, total, captured.batch)
        return _ordered(sums, captured.captured), total

    def over_columns(self, pull: Callable[[Any], Mapping], count: int) -> Mapping:
        """Σ_k of the answers; one pull is traced, whatever K is.

        Args:
            pull: k -> the answers to score column k.
            count: K.
        """
        return summed_over(pull, count)

    def means(self, statistics: LayerStatistics, captured: CapturedBatch) -> tuple:
        """`sums` over Σ_n ω_n, block by block; of the same arguments."""
        sums, total = self.sums(statistics, captured)
        answers = tuple(sums.values())
        return jax.tree.map(lambda leaf: leaf / total.astype(leaf.dtype), answers)

    def capture_batch(self, given: Batch) -> CapturedBatch:
        """The layers of the model on a batch, which is traced once.

        Args:
            given: this device's part of the batch; the whole one without `axis_name`.

        Raises:
            ValueError: the labels are centred, something that they need is missing, the
                outputs have a wrong shape, examples cannot be told apart or depend on
                each other, or a use of a parameter is not understood.
        """
        if self.labels.centred:
            raise ValueError(
                f"{type(self).__name__} reads one example at a time, and {self.labels} "
                "scores are taken less their mean over the batch. Use Gram, Dense, "
                "Diagonal or MatrixFree with them."
            )
        self.labels.check(given.targets, given.key)
        local, model = self.to_device_local(given), self.model
        program = layers.trace(model.raw_outputs, local.params, local.inputs)
        captured = self.captured(local.params, local.inputs, program)
        self._check_examples(local, program)
        return CapturedBatch(law_of_outputs(model), local, captured, program.shape)

    def _check_examples(self, local: Batch, program: Any) -> None:
        """Raise unless each row of a layer belongs to one example."""
        apply, axes = self.model.apply_real, self.model.in_axes
        shape = program.shape.shape
        if batch.input_count(local.inputs, axes) is None and shape[0] > 1:
            raise ValueError(
                f"{type(self).__name__} must know which rows of a layer belong to "
                "which example, and no leaf of the inputs has an axis of examples, "
                f"for outputs of shape {shape}. Pass the data in inputs with such an "
                "axis, 0 in Model(in_axes=...), or use Gram, MatrixFree or Dense."
            )
        found = layers.dependence(apply, local.params, local.inputs, axes, program)
        if found is layers.Dependence.OTHERS:
            raise ValueError(
                f"{type(self).__name__} reads the layers' rows as if each belonged to "
                "one example, and here an example's outputs depend on the inputs of "
                "the others (batch statistics, contrastive scores, a graph). Use "
                "curvature=Gram, MatrixFree or Dense, which take the batch as one; or "
                "normalise by stored statistics, passed with the inputs: "
                "Model(..., in_axes={'x': 0, 'batch_stats': None})."
            )

    def captured(
        self, params: Params, inputs: Inputs = None, program: Any = None
    ) -> Captured:
        """The layers; from the model's example inputs where no batch is given.

        Args:
            params: θ, arrays or shapes.
            inputs: a batch of inputs, or None.
            program: the trace of the model on these, where the caller has it.

        Raises:
            ValueError: there are no inputs, or groups of residuals, a part of the
                parameters is masked, or a use of a parameter is not understood.
        """
        refuse_groups(self)
        inputs = self.model.example_inputs if inputs is None else inputs
        if inputs is None:
            raise ValueError(
                f"{type(self).__name__} has to know the layers before the first batch: "
                "give the model example inputs, Model(apply, family, "
                "example_inputs=x[:1]). A model that closes over its data must take "
                "them as inputs, or use Gram, MatrixFree or Dense."
            )
        if tree.has_placeholders(params):
            self._check_part(params, inputs)
        return layers.capture(
            self.model.apply_real,
            params,
            inputs,
            in_axes=self.model.in_axes,
            declared=self.declared,
            program=program,
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


def _ordered(sums: Mapping, captured: Captured) -> Mapping:
    """The answers in the order of the blocks: transformations sort dictionaries."""
    return {block.name: sums[block.name] for block in captured.blocks}


def _answers(pullback: Callable, z: Array, columns: BatchColumns) -> tuple:
    """k -> the answers to score column k, and K."""
    return lambda k: pullback(columns.column(k).astype(z.dtype))[1], columns.count
