"""Checks of numbers that are given: of their values where jit does not hide them."""

from __future__ import annotations

import math
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from natgrad.typing import ArrayLike


def known_value(number: ArrayLike) -> float | None:
    """The value of a real scalar; None where it is traced and so not known yet.

    Args:
        number: of shape ().
    """
    return None if isinstance(number, Tracer) else float(np.asarray(number))


def check_number(
    name: str, value: ArrayLike, expected: str = "a scalar", cure: str = ""
) -> None:
    """Raise a ValueError for what is no real scalar.

    Args:
        name: of the argument.
        value: of the argument.
        expected: what the argument may be, in words.
        cure: a sentence for what is no number at all.
    """
    if callable(value):
        injected = f"optax.inject_hyperparams(optimizer)(..., {name}=schedule)"
        static = 'what is no number, such as "model", in its static_args'
        cure = cure or f"For a schedule take {injected}, with {static}."
        raise ValueError(f"{name} must be {expected}, got a function. {cure}")
    number = value if isinstance(value, jax.Array) else np.asarray(value)
    real = jnp.issubdtype(number.dtype, jnp.number) and not jnp.iscomplexobj(number)
    if not real:
        raise ValueError(f"{name} must be {expected}, got {value!r}. {cure}".rstrip())
    if number.ndim != 0:
        raise ValueError(f"{name} must be {expected}, got shape {number.shape}.")


def check_in(
    name: str, value: ArrayLike, holds: Callable[[float], bool], expected: str
) -> None:
    """Raise a ValueError for what is no real scalar, or is known and out of range.

    Args:
        name: of the argument.
        value: of the argument.
        holds: is this value in the range? NaN is in none.
        expected: what the value must do, in words, such as "lie in [0, 1)".
    """
    check_number(name, value)
    known = known_value(value)
    if known is not None and not holds(known):
        raise ValueError(f"{name} must {expected}, got {value}.")


def check_weight_decay(value: ArrayLike) -> None:
    """Raise a ValueError for what is no weight decay.

    Args:
        value: finite and at least 0.
    """
    decays = lambda value: 0 <= value < math.inf
    check_in("weight_decay", value, decays, "be finite and at least 0")


def is_positive(value: float) -> bool:
    """x > 0."""
    return value > 0


def check_count(name: str, value: Any, least: int = 1) -> None:
    """Raise a ValueError unless this is an integer, and not too small.

    Args:
        name: of the argument.
        value: of the argument.
        least: what it is at least.
    """
    whole = isinstance(value, int | np.integer) and not isinstance(value, bool)
    if not whole or value < least:
        raise ValueError(f"{name} must be an integer >= {least}, got {value!r}.")
