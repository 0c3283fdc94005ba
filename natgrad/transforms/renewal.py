"""Renewal of kept inverses by need: `WhenStale`, for `Refresh(inverses=...)`."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence
from typing import Any, NamedTuple, final

import jax.numpy as jnp
from jaxtyping import Float, Integer

from natgrad.solvers.base import CachedSolver
from natgrad.solvers.damping import DampingLike
from natgrad.transforms.inverse_cache import Renewal
from natgrad.typing import Array


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
