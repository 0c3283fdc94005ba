"""From uses to blocks: which uses share a matrix, and which bias joins a block."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence

from natgrad.layers.blocks import Block, LayerBlock, statistics_dtype
from natgrad.layers.declared import Declared, Leaf, declared_blocks, fallbacks
from natgrad.layers.examples import Path
from natgrad.layers.parts import Part
from natgrad.layers.uses import Findings, Use, require
from natgrad.layers.views import Atom, NotUnderstoodError, View, count, fused


def blocks_of(
    leaves: Sequence[Leaf], findings: Findings, declared: Declared, examples: int | None
) -> tuple[Block, ...]:
    """Sorts uses into blocks: one for each parameter or slice, its bias joined.

    Args:
        leaves: the floating parameters.
        findings: what the walk found.
        declared: path of a subtree -> how to treat it.
        examples: N, or None.

    Returns:
        The blocks in the order of the parameters, then the declared ones.

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
    others = fallbacks(left, examples)
    ordered: list[Block] = []
    for leaf in leaves:
        ordered += weights.get(leaf.index) or others.get(leaf.index, ())
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


def join_biases(
    weights: dict[int, list[LayerBlock]],
    leaves: Mapping[int, Leaf],
    joins: Mapping[Path, tuple[Path, View]],
) -> None:
    """Moves each bias whose every use adds it to one layer into that layer's block.

    Args:
        weights: parameter's index -> its blocks; changed in place.
        leaves: parameter's index -> the parameter.
        joins: shift use -> (the use whose result it is added to, that result's view).
    """
    owner = {use.path: b for bs in weights.values() for b in bs for use in b.uses}
    for index in list(weights):
        blocks = weights[index]
        if len(blocks) != 1 or any(use.path not in joins for use in blocks[0].uses):
            continue
        homes, parts = set(), set()
        for use in blocks[0].uses:
            site, view = joins[use.path]
            home = owner.get(site)
            part = home and _aligned(home, site, view, use.view, leaves[index])
            homes.add(home and home.name)
            parts.add(part)
        if len(parts) != 1 or None in parts or None in homes:
            continue
        shifted = [joins[use.path][0] for use in blocks[0].uses]
        if len(set(shifted)) != len(shifted):
            continue
        home = owner[shifted[0]]
        if home.shift is not None:
            continue
        joined = dataclasses.replace(
            home,
            leaves=(*home.leaves, index),
            shift=parts.pop(),
            shifted=frozenset(shifted),
        )
        group = weights[home.leaves[0]]
        group[group.index(home)] = joined
        owner |= {use.path: joined for use in joined.uses}
        del weights[index]


def _aligned(
    home: LayerBlock, site: Path, result: View, bias: View, leaf: Leaf
) -> Part | None:
    """How the bias's entries meet the layer's outputs; None if not one to one."""
    use = next(use for use in home.uses if use.path == site)
    same_scans = [p for p, _ in use.view.stack] == [p for p, _ in bias.stack]
    refuses = site in home.swapped or home.kind == "embedding" or not same_scans
    if refuses or use.result is None or result.start != use.result.start:
        return None
    if math.prod(result.shape) != math.prod(use.result.shape):
        return None
    try:
        pairs = [
            pair
            for one, two in zip(result.axes, bias.axes, strict=True)
            for pair in _refined(one, two)
        ]
        pairs = [pair for pair in pairs if not all(atom.repeated for atom in pair)]
        require(not any(a.repeated or b.repeated for a, b in pairs), "not one to one")
        pairs.sort(key=lambda pair: (pair[0].axis, -abs(pair[0].step)))
        batch = [b for a, b in pairs if _inside(a, home.weight.batch)]
        outputs = [b for a, b in pairs if _inside(a, home.weight.outputs)]
        require(len(batch) + len(outputs) == len(pairs), "not one to one")
        return Part.of(
            bias, leaf.shape, batch=fused(batch), inputs=(), outputs=fused(outputs)
        )
    except NotUnderstoodError:
        return None


def _inside(atom: Atom, groups: Sequence[Atom]) -> bool:
    return any(
        atom.axis == g.axis and g.step <= abs(atom.step) < g.step * g.size
        for g in groups
    )


def _refined(one: Sequence[Atom], two: Sequence[Atom]) -> list[tuple[Atom, Atom]]:
    """Two descriptions of one axis, cut into atoms of equal sizes."""
    left, right, pairs = list(one), list(two), []
    while left and right:
        a, b = left.pop(), right.pop()
        size = math.gcd(a.size, b.size)
        require(size == min(a.size, b.size), "cut across")
        if a.size > size:
            outer, a = a.split(size)
            left.append(outer)
        if b.size > size:
            outer, b = b.split(size)
            right.append(outer)
        pairs.append((a, b))
    require(not left and not right, "of different sizes")
    return pairs
