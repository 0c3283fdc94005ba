"""What a solver is: a function (metric, v, damping) -> x, with a cache or a state."""

from __future__ import annotations

import abc
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol, final

from natgrad.tree import Layout
from natgrad.typing import Array, ArrayLike, Params


class Remainder(NamedTuple):
    """What a solver knows of its residual ρ = v − (F + λI) x.

    Attributes:
        norm: |ρ|.
        inner: ⟨x, ρ⟩.
    """

    norm: Array
    inner: Array


class Solution(NamedTuple):
    """What a solve gave.

    Attributes:
        value: x.
        fallback: boolean scalar: did the first choice of algorithm fail?
        remainder: of the residual, where the solver knows it, so that nobody needs to
            form F x for it; None where it does not.
        iterations: how many were made; 0 by a direct solver.
    """

    value: Array | Params
    fallback: Array
    remainder: Remainder | None = None
    iterations: Array | int = 0


class DampedOperator(Protocol):
    """What a solver needs of a metric."""

    layout: Layout

    def mv(self, v: Params) -> Params:
        """F v."""

    def dense(self) -> Array:
        """F, [P, P]."""


Solver = Callable[[DampedOperator, Params, ArrayLike], Params]


class CachedSolver(abc.ABC):
    """A solver whose factorisations can be kept, piece by piece, between refreshes."""

    @abc.abstractmethod
    def num_blocks(self, metric: Any) -> int:
        """How many parts of the metric are factorised independently."""

    @abc.abstractmethod
    def factorize(
        self, metric: Any, damping: ArrayLike, which: Sequence[int]
    ) -> Sequence[Any]:
        """The factorisations of some pieces, each a tree of arrays."""

    @abc.abstractmethod
    def solve(
        self, metric: Any, prepared: Sequence[Any], v: Params, damping: ArrayLike
    ) -> Solution:
        """The solution from the factorisations of all pieces, be they old."""

    def with_row_factors(self, rows: Any) -> CachedSolver:
        """This solver for gradients that are given as rows too.

        Raises:
            ValueError: it has no use for them.
        """
        del rows
        raise ValueError(
            f"{self!r} cannot use rows= of the gradient: leave them out, or take "
            "solver=natgrad.kronecker.FactoredTikhonov()."
        )

    @final
    def __call__(self, metric: Any, v: Params, damping: ArrayLike) -> Params:
        """Both at once: a plain solver."""
        prepared = self.factorize(metric, damping, range(self.num_blocks(metric)))
        return self.solve(metric, prepared, v, damping).value


class StatefulSolver(abc.ABC):
    """A solver that remembers something from one step to the next."""

    @abc.abstractmethod
    def init(self, layout: Layout) -> Any:
        """What is remembered before the first step: a tree of arrays."""

    @abc.abstractmethod
    def solution(
        self, metric: Any, v: Params, damping: ArrayLike, state: Any
    ) -> tuple[Solution, Any]:
        """The solution, and what to remember of it."""

    @final
    def __call__(self, metric: Any, v: Params, damping: ArrayLike) -> Params:
        """A plain solver, with nothing to remember."""
        return self.solution(metric, v, damping, self.init(metric.layout))[0].value


def stagger(
    pieces: int, period: int, staggered: bool = False
) -> list[tuple[int, Sequence[int]]]:
    """(step within the period, pieces that are refreshed then), spread evenly."""
    groups = min(period, pieces) if staggered else 1
    return [(g * period // groups, range(g, pieces, groups)) for g in range(groups)]
