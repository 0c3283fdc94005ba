"""The blocks of a model's parameters that figures are given for.

A block is a layer as `natgrad.layers` reads it, weight and bias together. Blocks that
share a parameter are one. Where a model cannot be read, each parameter is a block.
"""

from __future__ import annotations

import dataclasses

import numpy as np

from natgrad import layers, tree
from natgrad.layers import Captured, NotCapturedError
from natgrad.model import Model
from natgrad.tree import Layout
from natgrad.typing import Inputs, Params


@dataclasses.dataclass(frozen=True, eq=False)
class Part:
    """Some of the parameters.

    Attributes:
        name: of the block; "" for all parameters.
        positions: of its entries in the vector [P], ascending.
    """

    name: str
    positions: np.ndarray

    @property
    def size(self) -> int:
        """How many parameters."""
        return len(self.positions)


def captured(model: Model, params: Params, inputs: Inputs) -> Captured | None:
    """The layers of the model, None where it cannot be read."""
    try:
        return layers.capture(model.apply_real, params, inputs, in_axes=model.in_axes)
    except NotCapturedError:
        return None


def parts(model: Model, params: Params, inputs: Inputs) -> list[Part]:
    """All parameters as one part, then the blocks."""
    layout, names = Layout.of(params), tree.paths(params)
    model_layers = captured(model, params, inputs)
    leaves = (
        [] if model_layers is None else [set(b.leaves) for b in model_layers.blocks]
    )
    groups = _merged([*leaves, *({leaf} for leaf in range(len(names)))])
    blocks = [
        Part(
            _title([names[leaf] for leaf in group]),
            np.concatenate([layout.positions(leaf) for leaf in group]),
        )
        for group in groups
    ]
    return [Part("", np.arange(layout.size)), *blocks]


def _merged(sets: list[set[int]]) -> list[list[int]]:
    """The connected components, in the order of the leaves."""
    components: list[set[int]] = []
    for members in sets:
        touching = [c for c in components if c & members]
        components = [c for c in components if not c & members]
        components.append(members.union(*touching))
    return sorted(sorted(component) for component in components)


def _title(names: list[str]) -> str:
    """'dense/bias + kernel' for 'dense/bias' and 'dense/kernel'."""
    first, *others = names
    prefix = first.rpartition("/")[0] + "/"
    return " + ".join([first, *(name.removeprefix(prefix) for name in others)])
