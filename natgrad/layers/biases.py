"""Biases: which are added to one layer only, and so join its block."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence

from natgrad.layers.blocks import LayerBlock
from natgrad.layers.declared import Leaf
from natgrad.layers.examples import Path
from natgrad.layers.parts import Part
from natgrad.layers.uses import require
from natgrad.layers.views import Atom, NotUnderstoodError, View, fused


def join_biases(
    weights: dict[int, list[LayerBlock]],
    leaves: Mapping[int, Leaf],
    joins: Mapping[Path, tuple[Path, View]],
) -> None:
    """Moves each bias whose every use adds it to one layer into that layer's block."""
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
    whole = math.prod(result.shape) == math.prod(use.result.shape)
    if refuses or not whole or result.start != use.result.start:
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
