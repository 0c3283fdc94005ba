"""What a solver is: a function (metric, v, damping) -> x, with a cache or a state."""

from __future__ import annotations

import abc
import functools
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple, Protocol, final

import jax.numpy as jnp
from jaxtyping import Bool, Float, Integer

from natgrad import tree
from natgrad.control_flow import cond_in_place
from natgrad.solvers.damping import DampingLike
from natgrad.tree import Layout
from natgrad.typing import Array, Params


class Remainder(NamedTuple):
    """What a solver knows of its residual ρ = v − (F + λI) x.

    Attributes:
        norm: |ρ|, a scalar.
        inner: ⟨x, ρ⟩, a scalar.
    """

    norm: Float[Array, ""]
    inner: Float[Array, ""]


class Spectrum(NamedTuple):
    """What the eigenvalues s of F say of F + λI; scalars.

    Attributes:
        condition: (max s + λ)/(min s + λ) over all parameters.
        rank: how many s are above rounding, P ε max s.
        effective_rank: Σ s/(s + λ), the directions that F determines beside λ.
    """

    condition: Float[Array, ""]
    rank: Float[Array, ""]
    effective_rank: Float[Array, ""]


class Solution(NamedTuple):
    """What a solve gave.

    Attributes:
        value: x, a vector [P] or a tree like the parameters, as v was.
        fallback: boolean scalar: did the first choice of algorithm fail?
        remainder: of the residual, where the solver knows it, so that nobody needs to
            form F x for it; None where it does not.
        iterations: how many were made; 0 by a direct solver.
        spectrum: where eigenvalues were found for it; None where they were not.
    """

    value: Params
    fallback: Bool[Array, ""]
    remainder: Remainder | None = None
    iterations: Integer[Array, ""] | int = 0
    spectrum: Spectrum | None = None


class DampedOperator(Protocol):
    """What a solver needs of a metric F."""

    @property
    def layout(self) -> Layout:
        """How the parameters lie in a vector."""
        ...

    def mv(self, v: Params) -> Params:
        """F v.

        Args:
            v: a tree like the parameters.
        """

    def dense(self) -> Float[Array, "P P"]:
        """F as a matrix."""
        ...


Solver = Callable[[DampedOperator, Params, DampingLike], Params]


class CachedSolver(abc.ABC):
    """A solver whose factorisations can be kept, block by block, between refreshes."""

    @abc.abstractmethod
    def num_blocks(self, metric: Any) -> int:
        """How many parts of the metric are factorised independently.

        Args:
            metric: F.
        """

    @abc.abstractmethod
    def factorize(
        self, metric: Any, damping: DampingLike, which: Sequence[int]
    ) -> Sequence[Any]:
        """Factorise some blocks.

        Args:
            metric: F.
            damping: λ >= 0, in the units of F.
            which: numbers of the blocks, below `num_blocks`.

        Returns:
            One factorisation a block, each a tree of arrays.
        """

    @abc.abstractmethod
    def solve(
        self,
        metric: Any,
        factorizations: Sequence[Any],
        v: Params,
        damping: DampingLike,
    ) -> Solution:
        """The solution x of (F + λI) x = v from kept factorisations.

        Args:
            metric: F.
            factorizations: of all blocks; they may be those of an earlier F and λ.
            v: a tree like the parameters.
            damping: λ >= 0, in the units of F.
        """

    def renew(
        self,
        metric: Any,
        damping: DampingLike,
        due: Sequence[Array],
        old: Sequence[Any],
        first: Array,
    ) -> tuple[tuple[Any, ...], Array]:
        """The factorisations, anew where they are due, written over the old ones.

        Blocks whose `due` is the same array are factorised together, and keep the old
        factorisations together where the new ones are not finite.

        Args:
            metric: F.
            damping: λ >= 0, in the units of F.
            due: of each block, a boolean scalar.
            old: of each block, its factorisation.
            first: are there no old ones? Then new ones are taken as they are.

        Returns:
            The factorisations, and a number that grows with how many are new.
        """

        def factorize(group, carried):
            count, before = carried
            new = tuple(self.factorize(metric, damping, group))
            new = tree.where(first | tree.all_finite(new), new, before)
            return count + 1, new

        groups: dict[int, list[int]] = {}
        for i, one in enumerate(due):
            groups.setdefault(id(one), []).append(i)
        pieces, count = list(old), jnp.zeros((), jnp.int32)
        for group in groups.values():
            before = tuple(pieces[i] for i in group)
            one = functools.partial(factorize, group)
            count, new = cond_in_place(due[group[0]], one, (count, before))
            for i, piece in zip(group, new, strict=True):
                pieces[i] = piece
        return tuple(pieces), count

    def residuals(
        self, metric: Any, factorizations: Sequence[Any], damping: DampingLike
    ) -> Float[Array, " blocks"]:
        """How far old factorisations are from inverting F + λI, on a vector of signs.

        Args:
            metric: F.
            factorizations: of all blocks.
            damping: λ >= 0, in the units of F.

        Returns:
            |M⁻¹ M' v − v| / |v| of each block, for its factorisation M⁻¹ and M' of F.

        Raises:
            ValueError: it does not measure.
        """
        del metric, factorizations, damping
        raise ValueError(
            f"{self!r} does not measure how stale its inverses are: renew them by "
            "count, Refresh(inverses=10), or take "
            "solver=natgrad.kronecker.FactoredTikhonov() with KFAC."
        )

    def with_row_factors(self, rows: Any) -> CachedSolver:
        """This solver for gradients that are given as rows too.

        Args:
            rows: block's name -> the gradient as rows of that block.

        Raises:
            ValueError: it has no use for them.
        """
        del rows
        raise ValueError(
            f"{self!r} cannot use rows= of the gradient: leave them out, or take "
            "solver=natgrad.kronecker.FactoredTikhonov()."
        )

    @final
    def __call__(self, metric: Any, v: Params, damping: DampingLike) -> Params:
        """Factorise and solve: a plain solver.

        Args:
            metric: F.
            v: a tree like the parameters.
            damping: λ >= 0, in the units of F.
        """
        blocks = self.factorize(metric, damping, range(self.num_blocks(metric)))
        return self.solve(metric, blocks, v, damping).value


class StatefulSolver(abc.ABC):
    """A solver that remembers something from one step to the next."""

    @abc.abstractmethod
    def init(self, layout: Layout) -> Any:
        """What is remembered before the first step.

        Args:
            layout: of the parameters.

        Returns:
            A tree of arrays.
        """

    @abc.abstractmethod
    def solution(
        self, metric: Any, v: Params, damping: DampingLike, state: Any
    ) -> tuple[Solution, Any]:
        """The solution x of (F + λI) x = v, and what to remember of it.

        Args:
            metric: F.
            v: a tree like the parameters.
            damping: λ >= 0, in the units of F.
            state: what was remembered, a tree like that of `init`.
        """

    @final
    def __call__(self, metric: Any, v: Params, damping: DampingLike) -> Params:
        """A plain solver, with nothing to remember.

        Args:
            metric: F.
            v: a tree like the parameters.
            damping: λ >= 0, in the units of F.
        """
        return self.solution(metric, v, damping, self.init(metric.layout))[0].value
