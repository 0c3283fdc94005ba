"""What every kind of use of a parameter has in common, and the marks that lead to it.

A use is one equation that is linear in a parameter's view. A kind of use is one file:
a frozen dataclass with `match`, which reads the equation, and `rows`, which reads its
operands and the gradient of its result. A walk over a program carries marks on the
values that come from parameters, and collects its findings.
"""

from __future__ import annotations

import abc
import dataclasses
import enum
import itertools
from collections.abc import Callable, Sequence
from typing import Any, ClassVar

import jax.numpy as jnp

from natgrad.layers.examples import UNKNOWN, ExampleAxis, Path
from natgrad.layers.jaxprs import Equation
from natgrad.layers.rows import Rows
from natgrad.layers.views import NotUnderstoodError, View, natural
from natgrad.typing import Array


class Mixed(enum.Enum):
    """Why the rows of a use cannot be told apart by example."""

    NO_EXAMPLES = "the inputs have no example axis"
    LOST = (
        "the example axis could not be followed to it (apply may name the batch size, "
        "or loop over it)"
    )
    BEFORE = "it is computed once for all examples"
    SUMMED = "the examples are summed over by it"


@dataclasses.dataclass(frozen=True)
class Site:
    """An equation that reads a parameter, and all that is known around it.

    Attributes:
        path: where the equation is.
        equation: the equation.
        operand: which of its operands is the parameter.
        view: how the parameter is seen there.
        scaled: "" if the view is the parameter, "scalar" or "array" if multiplied.
        examples: the example axis of each operand, and, last, of the result.
        size: N, or None if no input has an example axis.
    """

    path: Path
    equation: Equation
    operand: int
    view: View
    scaled: str
    examples: tuple[ExampleAxis | None, ...]
    size: int | None

    @property
    def params(self) -> dict:
        """The parameters of the equation."""
        return self.equation.params

    def shape(self, operand: int) -> tuple[int, ...]:
        """The shape of one operand."""
        return getattr(self.equation.invars[operand].aval, "shape", ())

    def example(self, operand: int) -> ExampleAxis | None:
        """The example axis of one operand, None where it has none or is unknown."""
        found = self.examples[operand]
        return None if found == UNKNOWN else found


@dataclasses.dataclass(frozen=True)
class Use(abc.ABC):
    """One linear use of a parameter.

    Attributes:
        path: where its equation is; the key by which the evaluation finds it.
        primitive: the name of the op.
        operand: which operand of the equation is the parameter.
        view: how the parameter is seen there.
        batch, inputs, outputs: the atoms of the view that index separate matrices, the
            rows and the columns of its matrix, in the parameter's own order.
        result: the op's result, described as a view of the same parameter whose
            repeated atoms are positions; None where that cannot be said.
        mixed: why its rows cannot be told apart by example; None if they can.
        positions: T, the positions of one example.
    """

    path: Path
    primitive: str
    operand: int
    view: View
    batch: tuple
    inputs: tuple
    outputs: tuple
    result: View | None
    mixed: Mixed | None
    positions: int

    kind: ClassVar[str] = ""

    @property
    def separate(self) -> bool:
        """Can its rows be told apart by example?"""
        return self.mixed is None

    @property
    def looks_up(self) -> bool:
        """Are its inputs rows of the identity?"""
        return False

    @property
    def routed(self) -> bool:
        """Does each row belong to one matrix of the batch?"""
        return False

    @property
    def masked(self) -> bool:
        """Is the parameter multiplied entry by entry before?"""
        return False

    @property
    def entrywise(self) -> bool:
        """Does each entry of the parameter work for itself?"""
        return False

    @abc.abstractmethod
    def rows(self, operands: Sequence[Array], scale: Array | None, g: Array) -> Rows:
        """The rows of the use.

        Args:
            operands: all operands of the equation.
            scale: what the parameter was multiplied by on the way, or None.
            g: gradient of the result.
        """

    def summed(self, statistic: Callable, operands: Sequence[Array], g: Array) -> Any:
        """statistic(use, operands, g), a sum over examples, in a way that saves memory.

        Here at once: rows are the operands themselves, with their axes moved.

        Args:
            statistic: a function of a use like this one and the same two arguments.
            operands: all operands of the equation.
            g: gradient of the result.
        """
        return statistic(self, operands, g)


def mixture(site: Site, along: ExampleAxis | None) -> Mixed | None:
    """Why the rows of a use, which run over `along`, cannot be told apart."""
    if along is not None or site.size == 1:
        return None
    if site.size is None:
        return Mixed.NO_EXAMPLES
    if UNKNOWN in site.examples:
        return Mixed.LOST
    return Mixed.BEFORE if site.examples[-1] is None else Mixed.SUMMED


def ordered(batch: Sequence, inputs: Sequence, outputs: Sequence) -> dict[str, tuple]:
    """The atoms of a use in the parameter's own order, as fields of `Use`."""
    groups = {"batch": natural(batch), "inputs": natural(inputs)}
    return groups | {"outputs": natural(outputs)}


def require(condition: bool, reason: str) -> None:
    """Refuses a use.

    Raises:
        NotUnderstoodError: the condition does not hold.
    """
    if not condition:
        raise NotUnderstoodError(reason)


@dataclasses.dataclass(frozen=True)
class Mark:
    """A value is scale ∘ view, plus a constant; or the result of the use `source`.

    With `early`, (a use, its operands, its scale), the view is of the result of that
    use, which was computed once for all examples; with `looked_up`, (a lookup, its
    operands, its scale), it is of what was looked up for each example.
    """

    view: View
    scaled: str = ""
    scale: Array | None = None
    source: Path | None = None
    early: tuple | None = None
    looked_up: tuple | None = None

    def times(self, factor: Array, shape: Sequence[int]) -> Mark:
        """The mark of a multiple: by a scalar, or entry by entry."""
        one_number = jnp.ndim(factor) == 0
        scale = factor if self.scale is None else self.scale * factor
        if not one_number or self.scaled == "array":
            return dataclasses.replace(
                self, scaled="array", scale=jnp.broadcast_to(scale, shape)
            )
        return dataclasses.replace(self, scaled="scalar", scale=scale)


# Of one value: a sum comes from several parameters, or from one in several ways.
Marks = tuple[Mark, ...]


@dataclasses.dataclass
class Findings:
    """What a walk found.

    Attributes:
        uses: every use, by path.
        joins: shift use -> (the use whose result it is added to, that result's view).
        unmatched: leaf -> reasons why a use of it was not understood.
        loops: paths of the scans of more than one step.
        rules: custom derivative -> whether it is that of the function it replaces.
    """

    uses: dict[Path, Use] = dataclasses.field(default_factory=dict)
    joins: dict[Path, tuple[Path, View]] = dataclasses.field(default_factory=dict)
    unmatched: dict[int, set[str]] = dataclasses.field(default_factory=dict)
    loops: set[Path] = dataclasses.field(default_factory=set)
    rules: dict[Path, bool] = dataclasses.field(default_factory=dict)

    def refuse(self, marks: Sequence[Marks], reason: str) -> None:
        """Notes that a use of these parameters was not understood."""
        for mark in itertools.chain(*marks):
            if mark.source is None:
                self.unmatched.setdefault(mark.view.leaf, set()).add(reason)
