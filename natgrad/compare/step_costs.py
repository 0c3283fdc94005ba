"""Which parameters K-FAC has as layers, and what steps cost: all from shapes.

Multiplications of one step on N examples, beside those of the gradient, with M = K·N
score columns and T positions at which an example uses a layer of I inputs and O
outputs:

    gradient       3 N Σ T I O
    exact          M P² + P³/3, or M² Σ (I + O) + M³/3 in sample space (M² P where rows
                   are written out), or 2 gradients an iteration of conjugate gradients
    K-FAC          N Σ T (I² + O²)/5 + Σ (I³ + O³)/10 + Σ I O (I + O)

for factors every 5 and inverses every 10 steps, as `natgrad.kfac` has them.
"""

from __future__ import annotations

import collections
import dataclasses
import math

import jax

from natgrad import layers
from natgrad.curvature import KFAC, Dense, Exact, Gram, Sampled
from natgrad.curvature.automatic import STOP, Automatic, OfTheBatch
from natgrad.layers import Block, LayerBlock, NotCapturedError
from natgrad.model import Model
from natgrad.tree import Layout
from natgrad.typing import Inputs, Params


@dataclasses.dataclass(frozen=True)
class LayersSeen:
    """Which parameters K-FAC has as layers.

    Attributes:
        parameters: P.
        kinds: (kind, layers, parameters) of what was read as layers.
        outside: parameters in no layer: in exact or diagonal blocks, or nowhere.
        largest: the side of the largest Kronecker factor.
        factor_bytes: of all Kronecker factors.
        obstacle: why K-FAC cannot be used; empty if it can.
    """

    parameters: int
    kinds: tuple[tuple[str, int, int], ...]
    outside: int
    largest: int
    factor_bytes: int
    obstacle: str

    @property
    def covered(self) -> float:
        """The share of the parameters that are in layers, 0 to 1."""
        return 1 - self.outside / self.parameters


@dataclasses.dataclass(frozen=True)
class Costs:
    """Multiplications of one step on the batch, and what it keeps.

    Attributes:
        columns: K, score columns an example of exact labels.
        gradient: multiplications of the loss's gradient.
        space: where an exact step is solved: "Dense", "Gram" or "MatrixFree".
        exact: multiplications of an exact step.
        exact_bytes: that it keeps.
        kfac: multiplications of a K-FAC step; 0 where K-FAC cannot be used.
    """

    columns: int
    gradient: float
    space: str
    exact: float
    exact_bytes: float
    kfac: float


def captured_blocks(
    model: Model, params: Params, inputs: Inputs
) -> tuple[tuple[Block, ...], str]:
    """The blocks of K-FAC on a batch, and why it cannot be used, empty if it can."""

    def estimate(params, inputs):
        key = jax.random.PRNGKey(0)
        return KFAC(model, Sampled(1)).estimate(params, inputs, key=key)

    try:
        apply, axes = model.apply_real, model.in_axes
        captured = layers.capture(apply, params, inputs, in_axes=axes)
    except NotCapturedError as error:
        return (), str(error)
    try:
        jax.eval_shape(estimate, params, inputs)
    except ValueError as error:  # such as examples that depend on each other
        return captured.blocks, str(error)
    return captured.blocks, ""


def layers_seen(params: Params, blocks: tuple[Block, ...], obstacle: str) -> LayersSeen:
    """What `captured_blocks` found, in figures."""
    size = Layout.of(params).size
    sizes, counts = collections.Counter(), collections.Counter()
    for block in blocks:
        if isinstance(block, LayerBlock):
            sizes[block.kind] += block.size
            counts[block.kind] += 1
    return LayersSeen(
        parameters=size,
        kinds=tuple((kind, counts[kind], total) for kind, total in sizes.most_common()),
        outside=max(0, size - sizes.total()),
        largest=max((side for block in blocks for side in _sides(block)), default=0),
        factor_bytes=sum(block.factor_bytes for block in blocks),
        obstacle=obstacle,
    )


def step_costs(
    model: Model,
    params: Params,
    inputs: Inputs,
    blocks: tuple[Block, ...],
    obstacle: str,
) -> Costs:
    """What steps cost at θ on a batch, with what `captured_blocks` found."""
    automatic = Automatic(model, Exact()).specialize(params)
    layout = Layout.of(params)
    columns, count = automatic.columns(params, inputs)
    size, samples = layout.size, columns * count
    read = [block for block in blocks if isinstance(block, LayerBlock)]
    rest = max(0, size - sum(block.size for block in read))
    visited = sum(_positions(b) * math.prod(b.lead) * _entries(b) for b in read)
    gradient = 3.0 * count * (visited + rest)
    by_batch = isinstance(automatic, OfTheBatch)
    chosen = automatic.choice(params, inputs) if by_batch else automatic
    if isinstance(chosen, Gram):
        written = chosen.writes_out(params, inputs)
        width = size if written else min(size, rest + sum(map(_width, read)))
        exact = samples**2 * width + samples**3 / 3
        kept = samples**2 + (samples * size if written else 0)
    elif isinstance(chosen, Dense):
        exact, kept = samples * size**2 + size**3 / 3, size**2
    else:
        exact, kept = 2 * gradient * (STOP.max_iterations or size), 6 * size
    return Costs(
        columns=columns,
        gradient=gradient,
        space=type(chosen).__name__,
        exact=float(exact),
        exact_bytes=float(kept * layout.dtype.itemsize),
        kfac=0.0 if obstacle else sum(_of_kfac(block, count) for block in blocks),
    )


def _of_kfac(block: Block, count: int) -> float:
    """Multiplications of a step, for one block."""
    sides = _sides(block)
    statistics = count * _positions(block) * sum(side**2 for side in sides) / 5
    inverses = sum(side**3 for side in sides) / 10
    applied = block.rows * block.outputs * sum(sides)
    return math.prod(block.lead) * (statistics + inverses + applied)


def _width(block: Block) -> int:
    """Multiplications for one entry of a Gram matrix."""
    positions = _positions(block)
    return math.prod(block.lead) * positions**2 * (block.rows + block.outputs)


def _entries(block: Block) -> int:
    """Of one matrix, as far as one position reads them."""
    return block.outputs * (1 if block.looks_up else block.rows)


def _positions(block: Block) -> int:
    return sum(use.positions for use in block.uses) or 1


def _sides(block: Block) -> list[int]:
    """Of the Kronecker factors that are matrices."""
    return [block.outputs] + ([] if block.diagonal_inputs else [block.rows])
