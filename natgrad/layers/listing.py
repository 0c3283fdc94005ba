"""What was captured, as a table to read."""

from __future__ import annotations

from typing import Any

from natgrad import tree
from natgrad.layers.blocks import Block, DeclaredBlock, memory
from natgrad.layers.captured import Captured
from natgrad.layers.capturing import capture, verify
from natgrad.layers.declared import Declared
from natgrad.typing import Inputs, Params

COLUMNS = ("parameters", "block", "uses", "factors", "sharing", "memory")


def report(
    model: Any,
    params: Params,
    inputs: Inputs = None,
    *,
    declared: Declared | None = None,
) -> str:
    """Says how each parameter of a model is captured, as a printable table.

    The capture is checked by numbers too: see `verify`.

    Args:
        model: anything with `apply`, and perhaps `example_inputs` and `in_axes`; or a
            function apply(params, inputs).
        params: the parameters, arrays or shapes.
        inputs: inputs; the model's example inputs where None.
        declared: as for `capture`.

    Returns:
        The table, with notes below it.

    Raises:
        ValueError: the model cannot be captured.
    """
    with verify():
        return table(captured_of(model, params, inputs, declared), params)


def captured_of(
    model: Any, params: Params, inputs: Inputs, declared: Declared | None
) -> Captured:
    """The capture of a model or of a function.

    Args:
        model: as for `report`.
        params: the parameters, arrays or shapes.
        inputs: as for `report`.
        declared: as for `capture`.
    """
    apply = getattr(model, "apply", model)
    if inputs is None:
        inputs = getattr(model, "example_inputs", None)
    in_axes = getattr(model, "in_axes", 0)
    return capture(apply, params, inputs, in_axes=in_axes, declared=declared)


def table(captured: Captured, params: Params) -> str:
    """The table of a capture.

    Args:
        captured: what was captured.
        params: the parameters, for their names.

    Returns:
        The table, with notes below it.
    """
    names = tree.paths(params)
    rows = [COLUMNS, *(_row(block, names) for block in captured.blocks)]
    widths = [max(len(row[i]) for row in rows) for i in range(len(COLUMNS))]
    lines = [
        "  ".join(cell.ljust(width) for cell, width in zip(row, widths, strict=True))
        for row in rows
    ]
    lines = [line.rstrip() for line in lines]
    lines.insert(1, "-" * max(len(line) for line in lines))
    notes = [_note(block) for block in captured.blocks]
    if captured.uncovered:
        notes.append(f"not wholly read by blocks: {', '.join(captured.uncovered)}")
    checked = "checked" if captured.proof.computed else captured.proven
    checked = f"gradient from uses: {checked}"
    return "\n".join([*lines, *filter(None, notes), checked])


def _row(block: Block, names: list[str]) -> tuple[str, ...]:
    title = block.name
    if block.bias:
        title += f" + {_beside(names[block.leaves[1]], names[block.leaves[0]])}"
    lead = "".join(f"{n} x " for n in block.lead)
    side = "diagonal" if block.diagonal_inputs else f"{block.rows}"
    factors = f"{lead}({side}, {block.outputs})"
    if isinstance(block, DeclaredBlock):
        return (
            title,
            block.kind,
            "-",
            factors,
            "per example",
            memory(block.factor_bytes),
        )
    positions = sorted({use.positions for use in block.uses})
    spots = "/".join(str(n) for n in positions)
    if not block.separate:
        sharing = "expand only"
    elif block.once and positions == [1]:
        sharing = "none"
    else:
        sharing = f"{spots} positions" if positions != [1] else ""
        again = "" if block.once else "summed over uses"
        sharing = ", ".join(filter(None, [sharing, again]))
    return (
        title,
        block.kind,
        str(len(block.uses)),
        factors,
        sharing,
        memory(block.factor_bytes),
    )


def _beside(name: str, other: str) -> str:
    """The part of a path that differs from a neighbour's."""
    parts, others = name.split("/"), other.split("/")
    same = 0
    while same < min(len(parts), len(others)) - 1 and parts[same] == others[same]:
        same += 1
    return "/".join(parts[same:])


def _note(block: Block) -> str:
    if isinstance(block, DeclaredBlock):
        return f"{block.name}: {block.kind} block, {block.reason}"
    if block.roles == 2:
        count = len(block.swapped)
        return (
            f"{block.name}: {count} of {len(block.uses)} uses read it transposed; "
            "its Fisher has two Kronecker terms"
        )
    return "" if block.mixed is None else f"{block.name}: {block.mixed.value}"
