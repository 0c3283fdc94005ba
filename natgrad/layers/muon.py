"""Which axes of each weight Muon takes for the rows and columns of its matrix."""

from __future__ import annotations

import itertools
from collections.abc import Sequence
from typing import Any

import jax
from optax import contrib

from natgrad import tree
from natgrad.layers.blocks import Block, LayerBlock
from natgrad.layers.captured import Captured
from natgrad.layers.declared import Declared
from natgrad.layers.listing import captured_of
from natgrad.layers.views import Atom
from natgrad.typing import Inputs, Params


def muon_dimension_numbers(
    model: Any,
    params: Params,
    inputs: Inputs = None,
    *,
    exclude: Sequence[str] = (),
    declared: Declared | None = None,
) -> Any:
    """The tree that `optax.contrib.muon(muon_weight_dimension_numbers=...)` takes.

    What is contracted with a layer's input is the reduction axes of its weight, what is
    left the output axes, read off the program: for kernels of convolutions and of heads
    in any layout. Axes of scans, groups and members are neither, and optax treats each
    of their matrices by itself. Weights of dense layers and convolutions have numbers;
    all else has None, and so Adam: vectors, weights that are looked up by index, and
    those whose axis is read as part rows, part columns.

    Args:
        model: as for `report`.
        params: the parameters, arrays or shapes.
        inputs: inputs; the model's example inputs where None.
        exclude: paths of parameters or subtrees that are to have Adam, such as the last
            layer, for which Muon's authors take it.
        declared: as for `capture`.

    Returns:
        A tree like the parameters: `optax.contrib.MuonDimensionNumbers`, or None. Where
        that is callable, as equinox's modules are, hand optax `lambda _: numbers`.

    Raises:
        ValueError: the model cannot be captured, `exclude` names no parameter, or optax
            is too old to have dimension numbers.

    Source: Jordan et al. (2024), Muon: an optimizer for hidden layers in neural
    networks.
    """
    if not hasattr(contrib, "MuonDimensionNumbers"):
        raise ValueError(
            "optax.contrib has no MuonDimensionNumbers in the version installed here: "
            "install optax 0.2.6 or newer."
        )
    names, structure = tree.paths(params), jax.tree.structure(params)
    out = [any(_within(name, path) for path in exclude) for name in names]
    for path in exclude:
        if not any(_within(name, path) for name in names):
            raise ValueError(
                f"exclude={list(exclude)} names no parameter by {path!r}; there are "
                f"{', '.join(names)}."
            )
    captured = captured_of(model, params, inputs, declared)
    found = [
        None if excluded else _numbers(captured, leaf)
        for leaf, excluded in enumerate(out)
    ]
    return jax.tree.unflatten(structure, found)


def _within(name: str, path: str) -> bool:
    """Is the parameter that, or in that subtree?"""
    return name == path or name.startswith(f"{path}/")


def _numbers(captured: Captured, leaf: int) -> Any:
    """The numbers of a parameter, if all blocks that read it agree; else None."""
    readers = [block for block in captured.blocks if leaf in block.leaves]
    found = {_axes(block, leaf) for block in readers}
    axes = found.pop() if len(found) == 1 else None
    return axes and contrib.MuonDimensionNumbers(*axes)


def _axes(block: Block, leaf: int) -> tuple[tuple[int, ...], tuple[int, ...]] | None:
    """The axes of a weight that are rows and columns of its matrix."""
    if not isinstance(block, LayerBlock) or block.weight.leaf != leaf:
        return None
    if block.kind not in ("dense", "conv") or any(use.looks_up for use in block.uses):
        return None
    weight = block.weight
    lead = (*weight.batch, *itertools.chain(*weight.stack))
    groups = [_of(atoms) for atoms in (weight.inputs, weight.outputs, lead)]
    apart = sum(map(len, groups)) == len(set(itertools.chain(*groups)))
    rows, columns, _ = groups
    return (rows, columns) if apart and rows and columns else None


def _of(atoms: Sequence[Atom]) -> tuple[int, ...]:
    return tuple(sorted({atom.axis for atom in atoms}))
