"""What the walk over a program knows of a parameter: marks, sites, uses, findings.

A *mark* says how a value comes from a parameter. A *site* is an equation that reads a
marked value, and a *use* is a site whose equation is linear in it. A kind of use is one
file: a frozen dataclass with `match`, which reads the equation, and `rows`, which reads
its operands and the gradient of its result. *Findings* are what one walk collects.
"""

from __future__ import annotations

import abc
import dataclasses
import enum
import itertools
from collections.abc import Callable, Sequence
from typing import Any

import jax.numpy as jnp

from natgrad.layers.examples import UNKNOWN, ExampleAxis, Path
from natgrad.layers.jaxprs import Equation
from natgrad.layers.rows import Rows
from natgrad.layers.views import Atom, NotUnderstoodError, View, natural
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
    def params(self) -> dict[str, Any]:
        """The parameters of the equation."""
        return self.equation.params

    def shape(self, operand: int) -> tuple[int, ...]:
        """The shape of one operand, given by its place."""
        return getattr(self.equation.invars[operand].aval, "shape", ())

    def example(self, operand: int) -> ExampleAxis | None:
        """The example axis of one operand; None where it has none or is unknown."""
        axis = self.examples[operand]
        return None if axis == UNKNOWN else axis

    def example_along(self, operand: int, axis: int) -> ExampleAxis | None:
        """The example axis of one operand if it is `axis`, else None."""
        example = self.example(operand)
        return example if example is not None and example.axis == axis else None

    def fields(
        self, batch: Sequence[Atom], inputs: Sequence[Atom], outputs: Sequence[Atom]
    ) -> dict[str, Any]:
        """The fields of a `Use` that follow from the place and the atoms.

        Args:
            batch: atoms that index separate matrices, in any order.
            inputs: atoms of the rows of the matrix.
            outputs: atoms of its columns.

        Returns:
            The first fields of a `Use`, with the atoms in the parameter's order.
        """
        return {
            "path": self.path,
            "primitive": self.equation.primitive.name,
            "operand": self.operand,
            "view": self.view,
            "batch": natural(batch),
            "inputs": natural(inputs),
            "outputs": natural(outputs),
        }

    def mixture(self, along: bool) -> Mixed | None:
        """Why the rows of a use cannot be told apart by example.

        Args:
            along: whether the rows run over an axis of examples.

        Returns:
            The reason, or None where they can be told apart.
        """
        if along or self.size == 1:
            return None
        if self.size is None:
            return Mixed.NO_EXAMPLES
        if UNKNOWN in self.examples:
            return Mixed.LOST
        return Mixed.BEFORE if self.examples[-1] is None else Mixed.SUMMED


# What a parameter was multiplied by on its way to a use: an array, or None. Of a use
# that is met later (`late`, `routed`) it is a tuple (what the value that is met was
# multiplied by, the operands of the first use, what its parameter was multiplied by).
Scale = Any


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
        kind: what kind of layer it is: dense, conv, embedding, scale or shift.
    """

    path: Path
    primitive: str
    operand: int
    view: View
    batch: tuple[Atom, ...]
    inputs: tuple[Atom, ...]
    outputs: tuple[Atom, ...]
    result: View | None
    mixed: Mixed | None
    positions: int
    kind: str

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
    def rows(self, operands: Sequence[Array], scale: Scale, g: Array) -> Rows:
        """The inputs X and output gradients G of the use.

        Args:
            operands: all operands of the equation.
            scale: what the parameter was multiplied by on the way, or None.
            g: the gradient of the result, shaped like it.

        Returns:
            X [batch..., N, T, I] and G [batch..., N, T, O].
        """

    def summed(self, statistic: Callable, operands: Sequence[Array], g: Array) -> Any:
        """Takes a statistic that is a sum over examples in a way that saves memory.

        Here it is taken at once, since rows are the operands with their axes moved.

        Args:
            statistic: a function of a use like this one and the same two arguments.
            operands: all operands of the equation.
            g: the gradient of the result, shaped like it.

        Returns:
            What `statistic` returns, summed over all examples.
        """
        return statistic(self, operands, g)


def require(condition: bool, reason: str) -> None:
    """Refuses a use unless a condition holds.

    Args:
        condition: what must hold.
        reason: why the use is not understood where it does not.

    Raises:
        NotUnderstoodError: the condition does not hold.
    """
    if not condition:
        raise NotUnderstoodError(reason)


@dataclasses.dataclass(frozen=True)
class Mark:
    """How a value comes from a parameter: it is scale ∘ view, plus a constant.

    Attributes:
        view: how the parameter is seen in the value.
        scaled: "" if the view is the parameter, "scalar" or "array" if multiplied.
        scale: what it is multiplied by, or None.
        source: the path of a use whose result the value is; None where it is no result.
        early: (a use, its operands, its scale) where the view is of the result of that
            use, which was computed once for all examples.
        looked_up: (a lookup, its operands, its scale) where the view is of what was
            looked up for each example.
    """

    view: View
    scaled: str = ""
    scale: Array | None = None
    source: Path | None = None
    early: tuple | None = None
    looked_up: tuple | None = None

    def times(self, factor: Array, shape: Sequence[int]) -> Mark:
        """The mark of a multiple of the value.

        Args:
            factor: one number, or an array that broadcasts to the value.
            shape: the shape of the value.

        Returns:
            The mark.
        """
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
        marked: leaves some use of which needs what comes before it in the program.
        loops: paths of the scans of more than one step.
        rules: custom derivative -> whether it is that of the function it replaces.
    """

    uses: dict[Path, Use] = dataclasses.field(default_factory=dict)
    joins: dict[Path, tuple[Path, View]] = dataclasses.field(default_factory=dict)
    unmatched: dict[int, set[str]] = dataclasses.field(default_factory=dict)
    marked: set[int] = dataclasses.field(default_factory=set)
    loops: set[Path] = dataclasses.field(default_factory=set)
    rules: dict[Path, bool] = dataclasses.field(default_factory=dict)

    def refuse(self, marks: Sequence[Marks], reason: str) -> None:
        """Notes that a use of some parameters was not understood.

        Args:
            marks: of the operands of the use.
            reason: why it was not.
        """
        for mark in itertools.chain(*marks):
            if mark.source is None:
                self.unmatched.setdefault(mark.view.leaf, set()).add(reason)
