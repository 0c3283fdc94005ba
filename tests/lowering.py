"""What a program is made of once it is lowered, for platforms that need not be here."""

from __future__ import annotations

from collections.abc import Iterator
from typing import Any, NamedTuple

# Parts of the names of calls and operations that factorise a matrix.
FACTORISATIONS = ("potrf", "getrf", "geqrf", "syev", "gesv", "holesky", "Eigh", "Qr")


class Found(NamedTuple):
    """An operation of a program.

    Attributes:
        name: of the operation, or of what a custom call calls.
        operation: of StableHLO.
        loops: the names of the loops around it, the outermost first.
    """

    name: str
    operation: Any
    loops: tuple[str, ...]

    @property
    def factorises(self):
        return any(part in self.name for part in FACTORISATIONS)

    @property
    def types(self):
        """Of its operands and results, as text."""
        values = [*self.operation.operands, *self.operation.results]
        return [str(value.type) for value in values]


def operations(lowered) -> Iterator[Found]:
    """All operations of a lowered program, those of its functions at every call.

    Args:
        lowered: of `jax.jit(f).trace(...).lower(lowering_platforms=("cuda",))`.
    """
    module = lowered.compiler_ir("stablehlo")
    functions = {
        _text(function, "sym_name"): function.operation
        for function in module.body.operations
    }
    yield from _inside(functions["main"], functions, ())


def walks(lowered) -> list[str]:
    """The factorisations in loops that are more than a conditional."""
    return [
        found.name
        for found in operations(lowered)
        if found.factorises and "walk" in found.loops
    ]


def _inside(operation, functions, loops) -> Iterator[Found]:
    if operation.name == "stablehlo.while":
        loops = (*loops, "conditional" if _is_conditional(operation) else "walk")
    for region in operation.regions:
        for inner in (each.operation for block in region for each in block):
            name = inner.name
            if name == "stablehlo.custom_call":
                name = _text(inner, "call_target_name")
            yield Found(name, inner, loops)
            if name in ("func.call", "call"):
                called = functions[_text(inner, "callee").lstrip("@")]
                yield from _inside(called, functions, loops)
            yield from _inside(inner, functions, loops)


def _is_conditional(loop) -> bool:
    """Does it go on as long as a boolean that it carries says, as `cond_in_place`?"""
    condition = [each for block in loop.regions[0] for each in block]
    return len(condition) == 1


def _text(operation, attribute) -> str:
    return str(operation.attributes[attribute]).strip('"')
