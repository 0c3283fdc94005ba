"""The data set as statistics, where the metric needs the examples themselves.

No mean over batches has the rows of `Gram` or the products of `MatrixFree`: what these
keep of a data set is the data, put together, and their metric evaluates the model on
all of it. So memory grows with the number of examples.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from natgrad.model import Model
from natgrad.model.batch import Batch, split_batch
from natgrad.typing import Array, Inputs, Key, Statistics


class DataSet(NamedTuple):
    """A data set as one batch, in the place of a curvature's statistics.

    Attributes:
        inputs: of all examples.
        targets: their labels, where the curvature's labels need them; or None.
        statistics: of this batch, as the curvature's `estimate` gives them.
    """

    inputs: Inputs
    targets: Array | None
    statistics: Statistics


def as_batch(
    statistics: Statistics, inputs: Inputs, targets: Array | None
) -> tuple[Statistics, Inputs, Array | None]:
    """(statistics, inputs, targets), those of the data set where that was kept."""
    if isinstance(statistics, DataSet):
        return statistics.statistics, statistics.inputs, statistics.targets
    return statistics, inputs, targets


def evaluated(curvature: Any, given: Batch) -> Array:
    """F_z 1 of each example, finite where its part of F is.

    Args:
        curvature: with `model` and `labels`.
        given: a batch.
    """
    outputs, examples, total = curvature.model.whole(*given)
    z = outputs(given.params)
    ones = jnp.ones_like(z)
    return curvature.labels.products(curvature.model, z, examples, total, ones)


def join(
    model: Model, batches: Sequence[tuple[Inputs, Any]], key: Key | None
) -> tuple[Inputs, Any, Key | None]:
    """One batch of many: (inputs, targets, key).

    Args:
        model: whose `in_axes` say which leaves have an axis of examples.
        batches: pairs of inputs and targets.
        key: as it is.

    Raises:
        ValueError: there are several, and no axis of examples to join them on, or
            what the examples share is not the same in all.
    """
    inputs, targets = zip(*batches, strict=True)
    if len(batches) == 1:
        return inputs[0], targets[0], key
    rows, rebuilds = zip(*(split_batch(x, model.in_axes) for x in inputs), strict=True)
    shared = [jax.tree.leaves(rebuild([None] * len(rows[0]))) for rebuild in rebuilds]
    same = all(all(map(np.array_equal, shared[0], other)) for other in shared)
    if not (rows[0] and same):
        raise ValueError(
            "Batches are put together along the axis of examples, 0 in Model(in_axes="
            "...), and leaves of the inputs without one must be equal in all batches; "
            f"got inputs of shapes {jax.tree.map(jnp.shape, inputs[0])}. Give all of "
            "the data as one batch."
        )
    columns = [jnp.concatenate(each) for each in zip(*rows, strict=True)]
    labels = None if targets[0] is None else jnp.concatenate(targets)
    return rebuilds[0](columns), labels, key
