"""The score columns of a whole batch, one at a time."""

from __future__ import annotations

import dataclasses

import jax

from natgrad.curvature.columns import Columns, root, score
from natgrad.curvature.labels import Labels
from natgrad.model import Model
from natgrad.model.batch import Example
from natgrad.model.weights import trailing
from natgrad.tree import working_dtype
from natgrad.typing import Array, ArrayLike, Inputs, Key, Params


@dataclasses.dataclass(frozen=True)
class BatchColumns:
    """The columns √w_nk s_nk of a whole batch, one k at a time.

    Attributes:
        model: the model.
        z: its outputs, [N, ...].
        columns: of every example; each array has a leading axis N.
    """

    model: Model
    z: Array
    columns: Columns

    @property
    def count(self) -> int:
        """K."""
        return self.columns.weights.shape[1]

    def roots(self, k: ArrayLike) -> Array:
        """√w_nk of all n, [N]."""
        return root(self.columns.weights[:, k])

    def column(self, k: ArrayLike) -> Array:
        """√w_nk s_nk of all n, [N, ...]."""
        one = lambda columns, z: score(self.model, columns, k, z)
        scores = jax.vmap(one)(self.columns, self.z)
        return trailing(self.roots(k), scores) * scores


def whole_columns(
    model: Model,
    labels: Labels,
    z: Array,
    params: Params,
    inputs: Inputs,
    targets: Array | None,
    key: Key | None,
) -> tuple[BatchColumns, Array]:
    """The score columns of a whole batch, and Σ_n ω_n.

    Args:
        model: the model.
        labels: over which labels.
        z: the model's outputs, [N, ...].
        params: θ.
        inputs: the batch.
        targets: its labels, where `labels` needs them.
        key: a random key, where `labels` needs one.
    """
    used = targets if labels.needs_targets else None
    _, examples, total = model.whole(params, inputs, used, key)
    wide = z.astype(working_dtype(z))
    columns = jax.vmap(lambda z, e: labels.each(model, z, e))(wide, examples)
    return BatchColumns(model, wide, columns), total


def column_count(model: Model, labels: Labels, z: Array, examples: Example) -> int:
    """K, from the shapes of a batch's outputs and examples."""
    first = lambda leaf: leaf[0]
    each = lambda z, examples: labels.each(
        model, z[0].astype(working_dtype(z)), jax.tree.map(first, examples)
    )
    return jax.eval_shape(each, z, examples).weights.shape[0]
