"""Rows of B that taps on the layers give: factors where they are cheaper."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any

import jax
import jax.numpy as jnp

from natgrad import layers
from natgrad.layers import Block, PerExample, RowFactors
from natgrad.model.batch import Batch
from natgrad.solvers.jacobian_blocks import (
    DenseRows,
    EmbeddingBlock,
    JacobianBlock,
    LinearBlock,
)
from natgrad.typing import Array


def captured_layers(of: Any, batch: Batch) -> layers.Captured | None:
    """The layers of a batch; None where they cannot give every example's gradient.

    Args:
        of: a curvature with `model` and `declared`.
        batch: of which the parameters and inputs count.
    """
    model = of.model
    params, inputs, axes = batch.params, batch.inputs, model.in_axes
    program = layers.trace(model.raw_outputs, params, inputs)
    found = layers.dependence(model.apply_real, params, inputs, axes, program)
    if found is layers.Dependence.OTHERS:
        return None
    try:
        captured = layers.capture(
            model.apply_real,
            params,
            inputs,
            in_axes=axes,
            declared=of.declared,
            program=program,
        )
    except layers.NotCapturedError:
        return None
    separate = all(block.separate and block.examples for block in captured.blocks)
    return captured if separate else None


def row_statistics(block: Block) -> dict[str, layers.Statistic]:
    """What to ask of a block for its columns of B: factors where they are cheaper."""
    cheap = RowFactors.are_cheaper(block)
    return {"rows": RowFactors() if cheap else PerExample()}


def rows_of(
    pull: Callable[[Any], Mapping], count: int
) -> Mapping[str, tuple[Any, Array]]:
    """Block's name -> its answer to one pull, and what depends on the column for all.

    Args:
        pull: k -> block's name -> the answers to `row_statistics` for score column k.
        count: K.
    """

    def answers_to(k):
        return {name: answer["rows"] for name, answer in pull(k).items()}

    def outputs_in(answers):
        """What depends on the column: G or whole rows, block by block."""
        return {
            name: rows["g"] if isinstance(rows, dict) else rows
            for name, rows in answers.items()
        }

    one = answers_to(0)
    if count == 1:
        each = jax.tree.map(lambda a: a[None], outputs_in(one))
    else:
        each = jax.lax.map(lambda k: outputs_in(answers_to(k)), jnp.arange(count))
    return {name: (rows, each[name]) for name, rows in one.items()}


def jacobian_block(block: Block, one: Any, each: Array) -> JacobianBlock:
    """B's columns of a block, from what one pull gave and from what each gave.

    The last two, three or four axes of each array are a row's own; before them come
    K (of `each`) and the block's lead axes, which are flattened.
    """
    if not isinstance(one, dict):  # [K, N, lead..., I, O]
        rows = each.reshape((*each.shape[:2], -1, block.rows, block.outputs))
        matrix, bias = rows[..., : block.inputs, :], rows[..., block.inputs :, :]
        return DenseRows((matrix, bias) if block.bias else (matrix,))

    def flat(a, axes, own):
        return a.reshape((*axes, -1, *a.shape[a.ndim - own :]))

    g = flat(each, each.shape[:1], 3)
    if "index" in one:
        return EmbeddingBlock(flat(one["index"], (), 2), g, block.inputs)
    return LinearBlock(flat(one["x"], (), 3), g, block.bias)
