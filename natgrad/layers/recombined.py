"""The same model with the inputs of its layers recombined.

Where a layer computes x W from a parameter W [I, O], the recombined model computes
(x L) Φ with Φ = L⁻¹ W: the same outputs in other coordinates. A parameterisation of the
network is as arbitrary as its units, so what is said to be geometry should not notice.
With a bias, V = [W; b] becomes diag(L, 1)⁻¹ V, which is a Kronecker factor: K-FAC is
covariant under it (Martens & Grosse 2015, section 10.2), a diagonal is not.

A block takes part if all its uses are plain matrix products whose inputs lie along one
axis; the others stay as they are. Slices of a scan and heads share one L.
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping, Sequence

import jax
import jax.numpy as jnp

from natgrad.layers.blocks import Block, LayerBlock
from natgrad.layers.captured import Captured
from natgrad.layers.capturing import capture
from natgrad.layers.dense import DenseUse
from natgrad.layers.rows import INPUT, SUMMED
from natgrad.typing import Apply, Array, Inputs, Params


@dataclasses.dataclass(frozen=True, eq=False)
class Recombined:
    """A model's coordinates Φ with W = L Φ, layer by layer.

    Attributes:
        apply: of the original model.
        matrices: block's name -> L, [I, I], regular.
        blocks: all blocks, in which Φ is read.
        in_axes: of the inputs; see `Model`.
    """

    apply: Apply
    matrices: Mapping[str, Array]
    blocks: tuple[Block, ...]
    in_axes: object = 0

    def __call__(self, params: Params, inputs: Inputs) -> Array:
        """apply at W = L Φ, computed as (x L) Φ."""
        captured = capture(self.apply, params, inputs, in_axes=self.in_axes)
        change = {name: _changed(matrix) for name, matrix in self.matrices.items()}
        return captured.changed(params, inputs, change)

    def to_original(self, params: Params) -> Params:
        """Maps to the original coordinates: W = L Φ, a linear map, of vectors too.

        Args:
            params: a tree like the parameters, in the coordinates Φ.

        Returns:
            The tree in the coordinates W.
        """
        return self._mapped(params, lambda L, v: jnp.matmul(L, v, precision="highest"))

    def from_original(self, params: Params) -> Params:
        """Maps from the original coordinates: Φ = L⁻¹ W.

        Args:
            params: a tree like the parameters, in the coordinates W.

        Returns:
            The tree in the coordinates Φ.
        """
        return self._mapped(params, _solved)

    def transposed(self, params: Params) -> Params:
        """Maps covectors, such as gradients, by the transpose of `to_original`.

        Args:
            params: a gradient in the coordinates W.

        Returns:
            The gradient in the coordinates Φ.
        """
        return self._mapped(
            params, lambda L, v: jnp.matmul(L.T, v, precision="highest")
        )

    def _mapped(self, params: Params, function: Callable) -> Params:
        leaves, structure = jax.tree.flatten(params)
        for block in self.blocks:
            L = self.matrices.get(block.name)
            if L is not None:
                matrix = block.to_matrix(leaves)
                mixed = function(L.astype(matrix.dtype), matrix[..., : block.inputs, :])
                matrix = matrix.at[..., : block.inputs, :].set(mixed)
                leaves = block.from_matrix(matrix, leaves)
        return jax.tree.unflatten(structure, leaves)


def recombinable(captured: Captured) -> tuple[Block, ...]:
    """The blocks whose inputs can be recombined.

    Args:
        captured: a captured model.

    Returns:
        Those whose uses are all plain matrix products with the inputs along one axis.
    """
    return tuple(block for block in captured.blocks if _plain(block))


def _plain(block: Block) -> bool:
    if not isinstance(block, LayerBlock) or block.roles != 1 or block.inputs < 2:
        return False
    return all(isinstance(use, DenseUse) and _one_axis(use) for use in block.uses)


def _one_axis(use: DenseUse) -> bool:
    """Do the inputs fill one axis of x, in the parameter's order, for it alone?"""
    if use.masked or use.path[-1] < 0:
        return False
    found = [piece for piece in use.x_pieces if piece.holds in (INPUT, SUMMED)]
    return len(found) == 1 and found[0].holds == INPUT and not found[0].flipped


def _axis(use: DenseUse, shape: Sequence[int]) -> int:
    """Which axis of x that is."""
    sizes = [piece.size for piece in use.x_pieces]
    index = next(i for i, piece in enumerate(use.x_pieces) if piece.holds == INPUT)
    before, size = math.prod(sizes[:index]), sizes[index]
    return next(
        axis
        for axis in range(len(shape))
        if shape[axis] == size and math.prod(shape[:axis]) == before
    )


def _changed(matrix: Array) -> Callable:
    def change(op, use: DenseUse) -> Callable:
        other = 1 - use.operand

        def recombined(*operands):
            x = operands[other]
            axis = _axis(use, x.shape)
            L = matrix.astype(x.dtype)
            mixed = jnp.tensordot(x, L, (axis, 0), precision="highest")
            given = [*operands]
            given[other] = jnp.moveaxis(mixed, -1, axis)
            return op(*given)

        return recombined

    return change


def _solved(matrix: Array, v: Array) -> Array:
    rows = jnp.moveaxis(v, -2, 0)
    solved = jnp.linalg.solve(matrix, rows.reshape(rows.shape[0], -1))
    return jnp.moveaxis(solved.reshape(rows.shape), 0, -2)
