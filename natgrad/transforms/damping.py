"""Damping rules: step count -> λ, the multiple of the identity added to F.

F is a mean over the batch in nats, so λ has the units of F, nats per squared unit of
the parameters, whatever the batch size. Layers can have their own: see
`natgrad.solvers.damping`. A trust region bounds the step instead, or as well:
`TrustRegion`.
"""

from __future__ import annotations

from typing import Any

import jax
import optax

from natgrad.arguments import check_number
from natgrad.solvers.damping import ByPath, DampingLike, Relative, check_damping
from natgrad.solvers.damping_of_metric import ConditionNumber, ScaleInvariant
from natgrad.transforms.radius import AdaptiveRadius, longest_within
from natgrad.transforms.trust_region import Damping, Radius, TrustRegion
from natgrad.typing import ArrayLike

__all__ = [
    "AdaptiveRadius",
    "ByPath",
    "ConditionNumber",
    "Damping",
    "DampingLike",
    "Radius",
    "Relative",
    "ScaleInvariant",
    "TrustRegion",
    "as_damping",
    "check_scalar",
    "first_damping",
    "longest_within",
]

_ORDER = (
    "Optimizers take the learning rate first and the model second: "
    "natural_gradient(0.1, model, damping=1e-3)."
)


def as_damping(damping: DampingLike | Damping) -> Damping:
    """A rule from a constant, or from a rule such as an optax schedule.

    Args:
        damping: λ >= 0, shape (), or a function count -> λ. By layer too, which is
            checked where the parameters are known.

    Raises:
        ValueError: for a constant that is negative, not finite, or not a scalar. A
            traced or scheduled value cannot raise: a step with a negative or
            non-finite λ is skipped, and the state's health says so.
    """
    if callable(damping):
        check_scalar("damping", damping)
        return damping
    given: Any = damping
    if jax.tree.leaves(given) and not jax.tree_util.all_leaves([given]):
        return optax.constant_schedule(given)
    check_scalar("damping", given)
    check_damping(given)
    return optax.constant_schedule(given)


def first_damping(rule: Damping) -> Any:
    """What a rule gives for the first step, or would.

    Args:
        rule: count -> damping.
    """
    count: Any = 0
    return rule(count)


def check_scalar(name: str, value: ArrayLike | Damping) -> None:
    """Raise a ValueError for what is neither a real scalar nor a schedule.

    A class is callable, and no schedule: `AdaptiveRadius` for `AdaptiveRadius()`.

    Args:
        name: of the argument.
        value: of the argument.
    """
    if isinstance(value, type):
        name_of = value.__name__
        raise ValueError(f"{name} is the class {name_of}: give it {name_of}(...).")
    if not callable(value):
        check_number(name, value, "a scalar or a schedule", _ORDER)
