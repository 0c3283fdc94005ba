"""γ of K-FAC's factors by trial: when, how far apart, and which is best.

Source: Martens & Grosse (2015), section 6.6.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import final

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float

from natgrad import tree
from natgrad.arguments import check_count
from natgrad.control_flow import any_over_vmap
from natgrad.metrics.kronecker import FactoredTikhonov
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
        check_count("period", self.period)
        if not 0 < self.factor < 1:
            raise ValueError(f"factor must lie in (0, 1), got {self.factor}.")


def best_inverses(
    invert: Callable[[Array], tuple],
    factors: Float[Array, " F"],
    value_of: Callable[[tuple, Array], Array],
    accepted: Bool[Array, ""],
    trial: Bool[Array, ""],
    so_far: tuple[Float[Array, ""], tuple],
) -> tuple[Float[Array, ""], tuple]:
    """(γ, inverses) made anew: for γ times factor 1, or in a trial for the best factor.

    Args:
        invert: γ -> inverses.
        factors: of γ, the first of them 1.
        value_of: M at its minimum, of inverses and their γ.
        accepted: is anything to change? Under `vmap` not for every member.
        trial: are the other factors tried?
        so_far: (γ, inverses) of the steps before, which stay where none is finite.

    Returns:
        (γ, inverses).
    """
    gamma, _ = so_far

    def try_factor(best, factor):
        unchanged = factor == 1

        def renew():
            new_gamma = gamma * factor
            pieces = invert(new_gamma)
            value = jax.lax.cond(
                any_over_vmap(trial),
                lambda: value_of(pieces, new_gamma),
                lambda: jnp.zeros_like(new_gamma),
            )
            better = unchanged | (trial & (value < best[0]))
            better = better & accepted & tree.all_finite(pieces)
            return tree.where(better, (value, new_gamma, pieces), best)

        due = any_over_vmap(unchanged | trial)
        return jax.lax.cond(due, renew, lambda: best), None

    worst = jnp.full_like(gamma, jnp.inf)
    (_, gamma, pieces), _ = jax.lax.scan(try_factor, (worst, *so_far), factors)
    return gamma, pieces
