"""A look at a batch before anything is measured: what it holds, and what to mend."""

from __future__ import annotations

import dataclasses
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from natgrad import layers
from natgrad.compare.tables import figure
from natgrad.families import Categorical, NormalMean
from natgrad.layers import Dependence
from natgrad.model import Model, batch
from natgrad.tree import Layout
from natgrad.typing import Array, Inputs, Params

# Root mean squares of the inputs beyond which they are called badly scaled, the ratio
# of two columns' beyond which these are; and the root mean square distance of labels
# from outputs, in standard deviations of a normal law, beyond which they are far.
LOW, HIGH, APART, FAR = 0.03, 30.0, 100.0, 10.0


@dataclasses.dataclass(frozen=True)
class BatchFigures:
    """What is in a batch.

    Attributes:
        examples: N.
        labels: of one example: positions of a sequence, pixels; 1 for one class or
            one vector of numbers.
        outputs: coordinates of one example's output z.
        loss: L(θ), nats an example.
        input_scale: root mean square of the floating inputs; 1 where there are none.
        least_squares: is the law a normal one of known scale?
        counted: the share of the labels whose weight is not 0.
        depends_on: of what an example's output is a function.
        to_mend: what is likely to do harm, a sentence each without its full stop.
    """

    examples: int
    labels: int
    outputs: int
    loss: float
    input_scale: float
    least_squares: bool
    counted: float
    depends_on: Dependence
    to_mend: tuple[str, ...]


def check_batch(
    model: Model, params: Params, inputs: Inputs, targets: Array
) -> BatchFigures:
    """Look at a batch, and refuse one that nothing can be measured on.

    Args:
        model: the statistical model.
        params: θ.
        inputs: a batch of inputs.
        targets: its labels, [N, ...].

    Raises:
        ValueError: for shapes that do not fit, impossible labels, negative weights, and
            parameters, inputs, outputs or a loss that are not finite.
    """
    Layout.of(params)
    batched, _ = batch.split_inputs(inputs, model.in_axes)
    arrays = map(jnp.asarray, batched)
    floating = [leaf for leaf in arrays if jnp.issubdtype(leaf.dtype, jnp.floating)]
    for what, leaves in {"params": jax.tree.leaves(params), "inputs": floating}.items():
        bad = sum(int(np.sum(~np.isfinite(np.asarray(leaf)))) for leaf in leaves)
        if bad:
            raise ValueError(
                f"{what} must be finite, got {bad} NaN or infinite numbers of "
                f"{sum(leaf.size for leaf in leaves)}: look where they come from, or "
                "leave out the examples that have them."
            )
    loss = float(model.loss(params, inputs, targets))
    z = model.outputs(params, inputs)
    if not np.isfinite(loss):
        raise ValueError(
            f"The loss of this batch is {loss}: "
            f"{int(np.sum(~np.isfinite(np.asarray(z))))} of {z.size} outputs are not "
            "finite. Scale the inputs or the initial parameters down."
        )
    examples, _ = model.examples(params, inputs, targets)
    weights = np.asarray(examples.weights)
    dependence = layers.dependence(model.apply_real, params, inputs, model.in_axes)
    scale, notes = _scales(floating)
    return BatchFigures(
        examples=len(weights),
        labels=weights[0].size,
        outputs=z[0].size,
        loss=loss,
        input_scale=scale,
        least_squares=isinstance(model.family, NormalMean),
        counted=float(np.mean(weights != 0)),
        depends_on=dependence,
        to_mend=(*notes, *_harmful(model, z, targets, dependence)),
    )


def _scales(inputs: list[Array]) -> tuple[float, list[str]]:
    """The root mean square of all inputs, and what is wrong with their scales."""
    if not inputs:
        return 1.0, []
    leaves = [np.asarray(leaf, float).reshape(len(leaf), -1) for leaf in inputs]
    entries = sum(leaf.size for leaf in leaves)
    scale = float(np.sqrt(sum(np.sum(leaf**2) for leaf in leaves) / max(entries, 1)))
    columns = np.sqrt(np.concatenate([np.mean(leaf**2, axis=0) for leaf in leaves]))
    columns = columns[columns > 0]
    if not len(columns):
        return scale, ["all inputs are 0"]
    if columns.max() > APART * np.median(columns):
        times = figure(columns.max() / np.median(columns))
        return scale, [
            f"one input column is {times} times as large as most: standardise columns"
        ]
    if not LOW <= scale <= HIGH:
        size = figure(scale)
        return scale, [f"inputs have the root mean square {size}: standardise them"]
    return scale, []


def _harmful(
    model: Model, z: Array, targets: Array, dependence: Dependence
) -> Iterator[str]:
    """What is likely to do harm in outputs and labels."""
    values: Any = np.asarray(z, float)
    if isinstance(model.family, Categorical) and values.shape[-1] > 1:
        if np.all(values >= 0) and np.allclose(values.sum(axis=-1), 1, atol=1e-3):
            yield (
                "outputs are not negative and sum to 1: Categorical takes logits, so "
                "leave the softmax out of apply"
            )
    elif isinstance(model.family, NormalMean):
        residual = (np.asarray(targets, float) - values) / model.family.scale
        distance = float(np.sqrt(np.mean(residual**2)))
        if distance > FAR:  # a bounded step takes ages
            yield (
                f"labels are {figure(distance)} standard deviations of the law from "
                "the outputs: standardise them, or NormalMean(scale=...) with their own"
            )
    if dependence is Dependence.OTHERS:
        yield (
            "an example's output depends on the other examples (batch normalisation?): "
            "use stored statistics if you can"
        )
