"""Who races: a learning rate -> an optax transformation, and its grid of rates.

Any name of `natgrad.CURVATURES` is a contender: `natural_gradient` with that curvature
and no trust region: −η (A + λI)⁻¹ g with A of the current batch. Beside them stand
optimizers that know no Fisher.
All grids have the same number of rates, half a decade apart (1, 3, 10, 30 …).
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import optax

from natgrad.curvature import CURVATURES, choose
from natgrad.model import Model
from natgrad.optimizers import kl_shampoo, natural_gradient, soap
from natgrad.typing import ArrayLike

Make = Callable[[ArrayLike], optax.GradientTransformationExtraArgs]

DEFAULT = ("dense", "kfac", "diagonal", "sgd", "adam")


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


# (optimizer, middle of its grid, where it comes from)
BASELINES: dict[str, tuple[Callable, int, str]] = {
    "sgd": (optax.sgd, 7, "optax"),
    "adam": (optax.adam, 3, "optax"),
    "soap": (soap, 3, "ng"),
    "kl_shampoo": (kl_shampoo, 3, "ng"),
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
        optimizer, middle, _ = BASELINES[name]

        def make(rate: ArrayLike) -> optax.GradientTransformationExtraArgs:
            return optax.with_extra_args_support(optimizer(rate))

        return Contender(name, make, middle)

    def make_natural(rate: Any) -> optax.GradientTransformationExtraArgs:
        how = {"curvature": CURVATURES[name], "damping": damping}
        return natural_gradient(rate, model, **how, trust_region=None)

    return Contender(name, make_natural, _CURVATURE_MIDDLE)


def line(name: str, rate: float, damping: float) -> str:
    """What makes a contender in a program, to paste.

    Args:
        name: of the contender.
        rate: η.
        damping: λ, which baselines have none of.
    """
    if name in BASELINES:
        return f"{BASELINES[name][2]}.{name}({rate:g})"
    form = CURVATURES[name]
    where = f"curvature.{form.__name__}" if isinstance(form, type) else ""
    where = where or f'CURVATURES["{name}"]'
    keywords = f"curvature=ng.{where}, damping={damping:g}, trust_region=None"
    return f"ng.natural_gradient({rate:g}, model, {keywords})"


def _half_decade(index: int) -> float:
    decade, half = divmod(index, 2)
    return float(f"{3 if half else 1}e{decade - 3}")
