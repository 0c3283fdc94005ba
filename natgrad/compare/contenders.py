"""Who races: a learning rate -> an optax transformation, and its grid of rates.

Any name of `natgrad.CURVATURES` is a contender: `natural_gradient` with that curvature
and no trust region: −η (A + λI)⁻¹ g with A of the current batch. Beside them stand
optimizers that know no Fisher.
All grids have the same number of rates, half a decade apart (1, 3, 10, 30 …).
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import optax

from natgrad.curvature import CURVATURES, choose
from natgrad.model import Model
from natgrad.optimizers import kl_shampoo, natural_gradient, soap

Make = Callable[[Any], optax.GradientTransformationExtraArgs]

DEFAULT = ("dense", "kfac", "diagonal", "sgd", "adam")


@dataclasses.dataclass(frozen=True)
class Contender:
    """An optimizer up to its learning rate."""

    name: str
    make: Make  # learning rate -> transformation; called under jit
    middle: int  # of the grid, in half decades above 1e-3: 0 is 0.001, 1 is 0.003

    def rates(self, count: int) -> tuple[float, ...]:
        """`count` learning rates around the middle."""
        first = self.middle - count // 2
        steps = (divmod(index, 2) for index in range(first, first + count))
        return tuple(float(f"{3 if odd else 1}e{tens - 3}") for tens, odd in steps)


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
        with_extra = optax.with_extra_args_support
        return Contender(name, lambda rate: with_extra(optimizer(rate)), middle)
    make = functools.partial(
        natural_gradient,
        model=model,
        curvature=CURVATURES[name],
        damping=damping,
        trust_region=None,
    )
    return Contender(name, make, _CURVATURE_MIDDLE)


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
