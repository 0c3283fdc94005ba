"""How λ follows from the reduction ratio ρ = (actual decrease)/(predicted decrease).

Where the loss falls as far as the quadratic model says, ρ = 1, and less damping is
needed; where it does not, more. A step that was rejected always raises λ.
"""

from __future__ import annotations

import abc
import dataclasses
from typing import final

import jax.numpy as jnp

from natgrad.arguments import check_count
from natgrad.typing import Array


class Rule(abc.ABC):
    """λ after a step: `accepted` for one that was taken, `rejected` for others.

    Attributes:
        period: ρ is measured every so many steps, and λ lowered or raised by it.
    """

    period: int

    @abc.abstractmethod
    def accepted(self, damping: Array, ratio: Array) -> Array:
        """λ after a step that was taken."""

    @abc.abstractmethod
    def rejected(self, damping: Array, growth: Array) -> tuple[Array, Array]:
        """λ, and the growth of the next rejection in a row, which begins at 2."""


@final
@dataclasses.dataclass(frozen=True)
class Thresholds(Rule):
    """λ ω where ρ > ¾, λ / ω where ρ < ¼, every few steps; 4 λ after a rejection.

    Attributes:
        period: T₁, steps between two changes.
        factor: ω₁ in (0, 1), of one change; 0.95 to the power of the period.
        rejection: what a rejected step multiplies λ by.

    Source: Martens (2010), Deep learning via Hessian-free optimization, section 4.1;
    Martens & Grosse (2015), section 6.5. They take every step; rejection is ours.
    """

    period: int = 5
    factor: float = 0.95**5
    rejection: float = 4.0

    def __post_init__(self):
        check_count("period", self.period)
        if not 0 < self.factor < 1 < self.rejection:
            raise ValueError(
                "Thresholds needs 0 < factor < 1 < rejection, got factor="
                f"{self.factor}, rejection={self.rejection}."
            )

    def accepted(self, damping: Array, ratio: Array) -> Array:
        """λ ω, λ or λ / ω."""
        lower, higher = damping * self.factor, damping / self.factor
        return jnp.where(ratio > 0.75, lower, jnp.where(ratio < 0.25, higher, damping))

    def rejected(self, damping: Array, growth: Array) -> tuple[Array, Array]:
        """4 λ."""
        return damping * self.rejection, growth


@final
@dataclasses.dataclass(frozen=True)
class Nielsen(Rule):
    """λ max(⅓, 1 − (2ρ − 1)³) after a step; λ times 2, 4, 8 … after rejections.

    Source: Nielsen (1999), Damping parameter in Marquardt's method, section 3.
    """

    period: int = dataclasses.field(default=1, init=False)

    def accepted(self, damping: Array, ratio: Array) -> Array:
        """λ max(⅓, 1 − (2ρ − 1)³), at most 2 λ."""
        return damping * jnp.clip(1 - (2 * ratio - 1) ** 3, 1 / 3, 2)

    def rejected(self, damping: Array, growth: Array) -> tuple[Array, Array]:
        """λ times the growth, which doubles."""
        return damping * growth, 2 * growth


@final
@dataclasses.dataclass(frozen=True)
class LossFloor:
    """A floor c |loss|ᵖ under λ, which vanishes with the loss.

    With p = 1 or 2 it keeps the quadratic convergence of Gauss-Newton steps to a loss
    of 0, and keeps λ from falling far below what the loss still calls for.

    Attributes:
        coefficient: c >= 0.
        power: p > 0.

    Source: Yamashita & Fukushima (2001), On the rate of convergence of the
    Levenberg-Marquardt method.
    """

    coefficient: float = 1e-4
    power: float = 1.0

    def __post_init__(self):
        if self.coefficient < 0 or self.power <= 0:
            raise ValueError(
                "LossFloor needs coefficient >= 0 and power > 0, got "
                f"{self.coefficient} and {self.power}."
            )

    def of(self, loss: Array) -> Array:
        """c |loss|ᵖ."""
        return self.coefficient * jnp.abs(loss) ** self.power
