"""γ of K-FAC's factors by trial: when, how far apart, and which is best.

Source: Martens & Grosse (2015), section 6.6.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import final

import jax
import jax.numpy as jnp

from natgrad import tree
from natgrad.control_flow import any_over_vmap
from natgrad.metrics.kronecker import FactoredTikhonov, KroneckerMetric
from natgrad.typing import Array

SOLVER = FactoredTikhonov()


@final
@dataclasses.dataclass(frozen=True)
class Trials:
    """When γ is tried, and how far apart.

    Attributes:
        period: T₂, in steps.
        factor: ω₂ in (0, 1).
    """

    period: int = 20
    factor: float = 0.95**10

    def __post_init__(self):
        if not isinstance(self.period, int) or self.period < 1:
            raise ValueError(f"period must be an integer >= 1, got {self.period!r}.")
        if not 0 < self.factor < 1:
            raise ValueError(f"factor must lie in (0, 1), got {self.factor}.")


def best_inverses(
    metric: KroneckerMetric,
    factors: Array,
    value_of: Callable[[tuple, Array], Array],
    taken: Array,
    trial: Array,
    kept: tuple[Array, tuple],
) -> tuple[Array, tuple]:
    """(γ, inverses) made anew: for γ times factor 1, or in a trial for the best factor.

    Args:
        metric: what is inverted.
        factors: of γ, the first of them 1.
        value_of: M at its minimum, of inverses and their γ.
        taken: is anything to change? Under `vmap` not for every member.
        trial: are the other factors tried?
        kept: (γ, inverses) so far, which stay where none is finite.
    """
    gamma, _ = kept
    every = range(SOLVER.num_blocks(metric))

    def candidate(best, factor):
        own = factor == 1

        def tried():
            new = gamma * factor
            made = tuple(SOLVER.factorize(metric, new**2, every))
            value = jax.lax.cond(
                any_over_vmap(trial),
                lambda: value_of(made, new),
                lambda: jnp.zeros_like(new),
            )
            better = own | (trial & (value < best[0]))
            better = better & taken & tree.all_finite(made)
            return tree.where(better, (value, new, made), best)

        return jax.lax.cond(any_over_vmap(own | trial), tried, lambda: best), None

    worst = jnp.full_like(gamma, jnp.inf)
    (_, gamma, pieces), _ = jax.lax.scan(candidate, (worst, *kept), factors)
    return gamma, pieces
