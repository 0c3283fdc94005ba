"""From uses to blocks: which uses share a matrix."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

from natgrad.layers.biases import join_biases
from natgrad.layers.blocks import Block, LayerBlock, statistics_dtype
from natgrad.layers.declared import Declared, Leaf, declared_blocks, fallbacks
from natgrad.layers.examples import Path
from natgrad.layers.parts import Part
from natgrad.layers.uses import Findings, Use, require
from natgrad.layers.views import NotUnderstoodError, count


def blocks_of(
    leaves: Sequence[Leaf], findings: Findings, declared: Declared, examples: int | None
) -> tuple[Block, ...]:
    """One block a parameter or slice, biases joined, and the declared ones.

    Args:
        leaves: the floating parameters.
        findings: of the walk.
        declared: path of a subtree -> how to treat it.
        examples: N, or None.

    Raises:
        ValueError: a parameter of two axes or more was used in a way that is not
            understood and not declared.
    """
    by_hand, taken = declared_blocks(leaves, declared, examples)
    groups: dict[int, list[Use]] = {leaf.index: [] for leaf in leaves}
    for use in findings.uses.values():
        if use.view.leaf in groups:  # a leaf without entries has no block
            groups[use.view.leaf].append(use)
    refused: dict[int, str] = {}
    weights: dict[int, list[LayerBlock]] = {}
    for leaf in leaves:
        uses, reasons = groups[leaf.index], findings.unmatched.get(leaf.index)
        if leaf.index in taken:
            continue
        if reasons:
            refused[leaf.index] = "; ".join(sorted(reasons))
            continue
        try:
            weights[leaf.index] = _layers(leaf, uses, findings.loops, examples)
        except NotUnderstoodError as error:
            refused[leaf.index] = str(error)
    names = {leaf.index: leaf for leaf in leaves}
    join_biases(weights, names, findings.joins)
    left = {names[index]: reason for index, reason in refused.items()}
    found: dict[int, list[Block]] = {**weights, **fallbacks(left, examples)}
    ordered = [block for leaf in leaves for block in found.get(leaf.index, ())]
    return (*ordered, *by_hand)


def _layers(
    leaf: Leaf, uses: Sequence[Use], loops: set[Path], examples: int | None
) -> list[LayerBlock]:
    """The blocks of one parameter: one for each slice of it that is used."""
    parts: dict[Part, list[Use]] = {}
    for use in uses:
        groups = {"batch": use.batch, "inputs": use.inputs, "outputs": use.outputs}
        part = Part.of(use.view, leaf.shape, **groups)
        parts.setdefault(part, []).append(use)
    merged: list[tuple[Part, list[Use], list[Use]]] = []
    for part, group in parts.items():
        flipped = dataclasses.replace(part, inputs=part.outputs, outputs=part.inputs)
        home = next((m for m in merged if m[0] == flipped), None)
        entrywise = any(use.entrywise for use in group)
        if home is not None and not entrywise:
            home[2].extend(group)
        else:
            merged.append((part, group, []))
    # Lookups first: a table's own orientation is the one it is looked up in.
    merged = [_lookup_first(*entry) for entry in merged]
    for i, (part, _, _) in enumerate(merged):
        apart = all(part.disjoint(other) for other, _, _ in merged[:i])
        require(apart, "its uses disagree about which axes are inputs and outputs")
    return [_layer(leaf, *entry, loops, examples) for entry in merged]


def _lookup_first(part: Part, straight: list[Use], swapped: list[Use]):
    if any(use.looks_up for use in swapped):
        flipped = dataclasses.replace(part, inputs=part.outputs, outputs=part.inputs)
        return flipped, swapped, straight
    return part, straight, swapped


def _layer(
    leaf: Leaf,
    part: Part,
    straight: list[Use],
    swapped: list[Use],
    loops: set[Path],
    examples: int | None,
) -> LayerBlock:
    uses = [*straight, *swapped]
    masked = any(use.masked for use in uses)
    require(not masked or len(uses) == 1, "it is used with and without a mask")
    lookups = [use.looks_up for use in straight]
    name = leaf.name
    if not part.is_whole:
        spans = (
            f"{a}:{a + s * (n - 1) + 1}" + f":{s}" * (s != 1) for a, n, s in part.region
        )
        name += f"[{', '.join(spans)}]"
    stacked = {path for use in uses for path, _ in use.view.stack}
    return LayerBlock(
        name=name,
        kind=straight[0].kind,
        parameter=leaf.name,
        leaves=(leaf.index,),
        stack=tuple(count(atoms) for atoms in part.stack),
        batch=tuple(atom.size for atom in part.batch),
        inputs=count(part.inputs),
        outputs=count(part.outputs),
        dtype=statistics_dtype(leaf.dtype),
        examples=examples,
        roles=2 if swapped else 1,
        diagonal_inputs=all(lookups),
        mixed=next((use.mixed for use in uses if use.mixed), None),
        once=len(uses) == 1 and not _repeats(uses[0], loops - stacked),
        weight=part,
        uses=tuple(uses),
        swapped=frozenset(use.path for use in swapped),
    )


def _repeats(use: Use, loops: set[Path]) -> bool:
    """Is the use inside one of these scans?"""
    return any(use.path[: len(loop)] == loop for loop in loops)
