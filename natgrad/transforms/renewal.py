"""Which pieces of a kept inverse a step renews: by count, or by need.

A policy sees how old the inverse is and what it keeps itself, in arrays, and says of
each piece whether it is due. `Refresh(inverses=...)` takes one, or a number of steps.
"""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple, final

import jax.numpy as jnp
from jaxtyping import Bool, Float, Integer

from natgrad.solvers.base import CachedSolver, stagger
from natgrad.solvers.damping import DampingLike
from natgrad.typing import Array


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


class Need(NamedTuple):
    """What `WhenStale` keeps of each piece.

    Attributes:
        residual: as measured last; 0 after a renewal.
        made: the age of the inverse as a whole at its last renewal.
    """

    residual: Float[Array, " pieces"]
    made: Integer[Array, " pieces"]


@final
@dataclasses.dataclass(frozen=True)
class WhenStale(Renewal):
    """One piece a step, the one that needs it most, where it needs it.

    Measured is how far a kept inverse M⁻¹ is from inverting the damped factor M' of
    today, whenever the statistics were estimated anew, on one fixed vector v of random
    signs: |M⁻¹ M' v − v| / |v|, which is √(‖M⁻¹ M' − I‖_F² / d) in the mean over such
    vectors; of a layer the larger of its two factors'. That reads each factor and each
    inverse once, and keeps no copy of the old factor.

    Attributes:
        residual: above it a piece is due.
        oldest: after so many steps without renewal it is due in any case.
    """

    residual: float = 0.3
    oldest: int = 50

    def __post_init__(self):
        if not self.residual > 0:
            raise ValueError(
                "WhenStale(residual=...) is a number > 0, relative to 1, got "
                f"{self.residual!r}."
            )
        if not isinstance(self.oldest, int) or self.oldest < 2:
            raise ValueError(
                "WhenStale(oldest=...) is a number of steps, an integer >= 2, got "
                f"{self.oldest!r}."
            )

    @property
    def period(self) -> int:
        """The oldest that a piece may get, but for its turn."""
        return self.oldest

    def init(self, pieces: int) -> Need:
        """No need yet."""
        return Need(jnp.zeros(pieces), jnp.zeros(pieces, jnp.int32))

    def due(self, age: Array, pieces: int, kept: Need) -> list[Array]:
        """At most one piece: the oldest where one is too old, else the stalest."""
        old = age - kept.made >= self.oldest
        need = jnp.where(old, jnp.inf, kept.residual)
        first = jnp.argmax(need)
        now = (age > 0) & (need[first] > self.residual)
        return [now & (first == i) for i in range(pieces)]

    def renewed(self, kept: Need, age: Array, which: Sequence[Array]) -> Need:
        """Nothing is needed of those; see `Renewal.renewed`."""
        new = jnp.stack(list(which))
        made = jnp.where(new, jnp.maximum(age, 0), kept.made)
        return Need(jnp.where(new, 0, kept.residual), made)

    def measured(
        self,
        kept: Need,
        solver: CachedSolver,
        metric: Any,
        pieces: Sequence[Any],
        damping: DampingLike,
    ) -> Need:
        """The residuals of the solver; see `Renewal.measured`."""
        found = solver.residuals(metric, pieces, damping)
        found = jnp.where(jnp.isfinite(found), found, kept.residual)
        return kept._replace(residual=found.astype(kept.residual.dtype))
