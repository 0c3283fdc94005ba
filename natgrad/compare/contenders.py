"""Who races: a learning rate -> an optax transformation, and its grid of rates.

Any name of `natgrad.CURVATURES` is a contender: the step −η (A + λI)⁻¹ g with that
approximation of the current batch. Beside them stand optimizers that know no Fisher.
All grids have the same number of rates, half a decade apart (1, 3, 10, 30 …).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import optax

from natgrad.curvature import CURVATURES, choose
from natgrad.model import Model
from natgrad.transforms.scale_by_curvature import scale_by_curvature
from natgrad.typing import ArrayLike

Make = Callable[[ArrayLike], optax.GradientTransformationExtraArgs]

DEFAULT = ("dense", "diagonal", "empirical", "sgd", "adam")


@dataclasses.dataclass(frozen=True)
class Contender:
    """An optimizer up to its learning rate.

    Attributes:
        name: what it is called.
        make: learning rate -> transformation; called under jit.
        middle: of the grid, in half decades above 1e-3: 0 is 0.001, 1 is 0.003.
    """

    name: str
    make: Make
    middle: int

    def rates(self, count: int) -> tuple[float, ...]:
        """`count` learning rates around the middle."""
        first = self.middle - count // 2
        return tuple(_half_decade(first + index) for index in range(count))


# (optimizer, middle of its grid)
BASELINES: dict[str, tuple[Callable, int]] = {
    "sgd": (optax.sgd, 7),
    "adam": (optax.adam, 3),
}

# The middle of the grid of every curvature: 0.3. One step of 1 is Newton's.
_CURVATURE_MIDDLE = 5


def contender(name: str, model: Model, damping: float) -> Contender:
    """The contender called `name`.

    Raises:
        ValueError: for an unknown name.
    """
    choose({**CURVATURES, **BASELINES}, name, "optimizer")
    if name in BASELINES:
        optimizer, middle = BASELINES[name]

        def make(rate: ArrayLike) -> optax.GradientTransformationExtraArgs:
            return optax.with_extra_args_support(optimizer(rate))

        return Contender(name, make, middle)
    curvature = CURVATURES[name](model)

    def make_natural(rate: Any) -> optax.GradientTransformationExtraArgs:
        return optax.chain(
            scale_by_curvature(curvature, damping=damping),
            optax.scale_by_learning_rate(rate),
        )

    return Contender(name, make_natural, _CURVATURE_MIDDLE)


def _half_decade(index: int) -> float:
    decade, half = divmod(index, 2)
    return float(f"{3 if half else 1}e{decade - 3}")
