"""Inverses that are kept in the state for several steps, and when they are refreshed.

With `Refresh(statistics=k1, inverses=k2)` the statistics are estimated every k1 steps.
A step applies inverses that were made of the statistics of earlier steps, never of its
own; where they are due, they are renewed from these statistics when the step begins.
The pieces of an inverse, one a layer, can take turns over the k2 steps, so that the
step time stays flat. Only the first step makes all of them, of its own statistics.

Every choice is a conditional, and stays one under `vmap`: there a refresh is due when
it is due for any member of the batch, and all members refresh together.
"""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple, final

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Integer

from natgrad.curvature.base import Curvature
from natgrad.curvature.sub_batch import SubBatch, check_fewest, check_stride
from natgrad.solvers.base import CachedSolver, Solver, StatefulSolver
from natgrad.solvers.damping import DampingLike
from natgrad.tree import Layout
from natgrad.typing import Array, Params

# Steps between two measurements of how good solutions are: each costs as much as one.
MEASURED = 100


class Renewal(abc.ABC):
    """When pieces are renewed."""

    @property
    @abc.abstractmethod
    def period(self) -> int:
        """No piece gets older than so many steps, but for its turn; 1 keeps none."""

    @property
    def together(self) -> bool:
        """Are all pieces renewed in the same steps?"""
        return False

    def init(self, pieces: int) -> Any:
        """What the policy keeps in the state before the first step.

        Args:
            pieces: how many there are.
        """
        del pieces
        return ()

    @abc.abstractmethod
    def due(self, age: Integer[Array, ""], pieces: int, kept: Any) -> list[Array]:
        """Is it each piece's turn? Pieces with the same array are renewed together.

        Args:
            age: usable steps since the inverse was first made.
            pieces: how many there are.
            kept: what the policy keeps.
        """

    def renewed(
        self, kept: Any, age: Integer[Array, ""], which: Sequence[Bool[Array, ""]]
    ) -> Any:
        """What is kept after pieces were renewed.

        Args:
            kept: what the policy kept before.
            age: as for `due`.
            which: of each piece, was it?
        """
        del age, which
        return kept

    def measured(
        self,
        kept: Any,
        solver: CachedSolver,
        metric: Any,
        pieces: Sequence[Any],
        damping: DampingLike,
    ) -> Any:
        """What is kept once the statistics have changed.

        Args:
            kept: what the policy kept before.
            solver: whose inverses they are.
            metric: F of the new statistics.
            pieces: the kept inverses.
            damping: λ >= 0.
        """
        del solver, metric, pieces, damping
        return kept


@final
@dataclasses.dataclass(frozen=True)
class Every(Renewal):
    """Each piece after a number of steps.

    Attributes:
        steps: from one renewal to the next.
        staggered: do the pieces take turns, or are all renewed in one step?
    """

    steps: int
    staggered: bool

    @property
    def period(self) -> int:
        """That number of steps."""
        return self.steps

    @property
    def together(self) -> bool:
        """Yes, unless they take turns."""
        return not self.staggered

    def due(self, age: Array, pieces: int, kept: Any) -> list[Array]:
        """Those whose turn it is; see `Renewal.due`."""
        del kept
        groups = stagger(pieces, self.steps, self.staggered)
        turns = [((age > 0) & (age % self.steps == t), group) for t, group in groups]
        return [now for i in range(pieces) for now, group in turns if i in group]


def stagger(
    blocks: int, period: int, staggered: bool = False
) -> list[tuple[int, Sequence[int]]]:
    """When the blocks of a metric are factorised anew.

    Args:
        blocks: how many there are.
        period: steps from one refresh of a block to its next.
        staggered: whether the work is spread evenly over the period, or all done at its
            first step.

    Returns:
        Pairs (step within the period, numbers of the blocks that are due then).
    """
    groups = min(period, blocks) if staggered else 1
    return [(g * period // groups, range(g, blocks, groups)) for g in range(groups)]


@final
@dataclasses.dataclass(frozen=True)
class Refresh:
    """How often, in steps, and from which part of the batch.

    Attributes:
        statistics: between two estimates of the statistics.
        inverses: between two refreshes of a piece of the inverse; 1 keeps none. More
            needs a solver that is a `natgrad.solvers.CachedSolver`. Or a policy, such
            as `natgrad.WhenStale()`, which renews by need, one layer a step.
        staggered: whether the pieces take turns, or are refreshed in one step.
        warm_up: for so many steps at the start statistics are estimated in every step,
            and inverses renewed whenever the number of steps has doubled. The average
            of a few small estimates is far from full rank, and its inverse far too long
            in what they miss.
        sub_batch: k: the statistics are those of every k-th example of the batch; None
            for all. Four does no harm where the batch has hundreds.
        min_examples: a smaller k is taken for batches of which fewer would be left.
    """

    statistics: int = 1
    inverses: int | Renewal = 1
    staggered: bool = False
    warm_up: int = 0
    sub_batch: int | None = None
    min_examples: int = 1

    def __post_init__(self):
        if self.sub_batch is not None:
            check_stride("Refresh(sub_batch=...)", self.sub_batch)
        check_fewest("Refresh(min_examples=...)", self.min_examples)
        for name, least in (("statistics", 1), ("inverses", 1), ("warm_up", 0)):
            steps = getattr(self, name)
            if name == "inverses" and isinstance(steps, Renewal):
                continue
            if not isinstance(steps, int) or steps < least:
                raise ValueError(
                    f"Refresh({name}=...) is a number of steps, an integer >= {least}, "
                    f"got {steps!r}."
                )

    @property
    def renewal(self) -> Renewal:
        """When the pieces of the inverse are renewed."""
        if isinstance(self.inverses, Renewal):
            return self.inverses
        return Every(self.inverses, self.staggered)

    @property
    def period(self) -> int:
        """The oldest that a piece of the inverse gets, in steps."""
        if isinstance(self.inverses, int):
            return self.inverses
        return self.inverses.period

    def of_part(self, curvature: Curvature) -> Curvature:
        """The curvature with statistics of a part of each batch, or as it is."""
        if self.sub_batch is None:
            return curvature
        return SubBatch(curvature, self.sub_batch, self.min_examples)

    def warming(self, steps: Array) -> Array:
        """Does the warm-up renew inverses after so many steps: 0, 1, 2, 4, 8 …?"""
        doubled = (steps & (steps - 1)) == 0
        return (steps == 0) | (doubled & (steps < self.warm_up))

    def measures(self, age: Array) -> Array:
        """Is this a step of the oldest inverses that is measured: see `Health`?"""
        periods = age // self.period
        doubled = (periods & (periods - 1)) == 0
        seldom = periods % max(1, MEASURED // self.period) == 0
        return (age % self.period == 0) & (doubled | seldom)

    def renews_inverses(self, steps: Array) -> Array:
        """Are all inverses renewed after so many steps?"""
        return (steps % self.period == 0) | self.warming(steps)


EVERY_STEP = Refresh()


class InverseCache(NamedTuple):
    """An inverse between refreshes.

    Attributes:
        age: usable steps since it was first made; −1 before.
        pieces: the factorisations.
        renewal: what the policy keeps that says when they are renewed.
    """

    age: Array
    pieces: tuple[Any, ...]
    renewal: Any = ()


def check_refresh(refresh: Refresh, solver: Solver | None) -> None:
    """Raise a ValueError where the solver has no inverse that could be kept.

    Args:
        refresh: how often.
        solver: of the transformation.
    """
    if refresh.period > 1 and not isinstance(solver, CachedSolver):
        raise ValueError(
            f"Refresh(inverses={refresh.inverses!r}) needs a solver that keeps its "
            "inverse, such as solver=natgrad.kronecker.Eigenbasis() for KFAC, got "
            f"{solver!r}."
        )


def init_inverse_cache(
    refresh: Refresh, solver: Solver | None, curvature: Curvature, params: Params
) -> Any:
    """What is kept from step to step, before the first: () where nothing is.

    Args:
        refresh: how often.
        solver: of the transformation.
        curvature: specialized for the parameters.
        params: θ.

    Returns:
        An `InverseCache` of zeros with age −1, or the state of a `StatefulSolver`.
    """
    if isinstance(solver, StatefulSolver):
        return solver.init(Layout.of(params))
    if refresh.period == 1 or not isinstance(solver, CachedSolver):
        return ()
    shapes = shapes_of_pieces(solver, curvature, params)
    zeros = jax.tree.map(lambda leaf: jnp.zeros(leaf.shape, leaf.dtype), shapes)
    kept = refresh.renewal.init(len(shapes))
    return InverseCache(jnp.full((), -1, jnp.int32), zeros, kept)


def shapes_of_pieces(
    solver: CachedSolver, curvature: Curvature, params: Params
) -> tuple[Any, ...]:
    """Shapes and dtypes of the factorisations for these parameters, one a piece.

    Args:
        solver: what factorises.
        curvature: specialized for the parameters.
        params: θ.
    """

    def factorize(params):
        metric = curvature.metric(curvature.init(params), params)
        one = jnp.ones((), metric.layout.dtype)
        return tuple(solver.factorize(metric, one, range(solver.num_blocks(metric))))

    return jax.eval_shape(factorize, params)
