"""How much a comparison may cost, and so how exact its figures are."""

from __future__ import annotations

import dataclasses
import math

from natgrad.solvers.conjugate_gradients import RelativeResidual


@dataclasses.dataclass(frozen=True)
class Budget:
    """What a comparison may spend.

    Attributes:
        matrices: P up to which F and its approximations are formed as matrices [P, P]
            and every figure is exact; beyond, figures come from products F v.
        memory: bytes that the statistics of one approximation, or the temporaries of
            its step, may take.
        probes: random vectors of each estimate from products.
        iterations: of Lanczos's method, for each probe.
        stop: when conjugate gradients for the exact step stop, without matrices.
        draws: label sets drawn from the model for the test of misspecification, which
            with fewer than 99 cannot reject.
        factors: multiples of the step size at which the path is measured.
        charts: random coordinates in which invariance is tested; 0 saves the time.
        repeats: timed runs of each approximation, of which the median is given.
    """

    matrices: int = 4096
    memory: float = 4e9
    probes: int = 8
    iterations: int = 16
    stop: RelativeResidual = RelativeResidual(1e-4, 300)  # noqa: RUF009 (frozen, without state)
    draws: int = 199
    factors: tuple[float, ...] = (0.125, 0.25, 0.5, 1.0, 2.0)
    charts: int = 1
    repeats: int = 3

    def __post_init__(self):
        lowest = {"matrices": 0, "memory": 1, "probes": 2, "iterations": 2, "draws": 2}
        for name, bound in {**lowest, "charts": 0, "repeats": 1}.items():
            value = getattr(self, name)
            if not value >= bound:
                raise ValueError(f"{name} must be at least {bound}, got {value}.")
        if not all(math.isfinite(factor) for factor in self.factors):
            raise ValueError(f"factors must be finite, got {self.factors}.")
