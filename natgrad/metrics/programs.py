"""Methods of metrics as compiled programs, as they are called in a notebook."""

from __future__ import annotations

import functools
import inspect
from collections.abc import Callable

from natgrad.layers.compiled import compiled
from natgrad.solvers.damping import check_damping, is_by_layer


def one_program(method: Callable) -> Callable:
    """A method of metrics as one program outside of `jax.jit`, for a single damping.

    Of dampings by layer the values decide what is solved, and what is refused.

    Args:
        method: (metric, …, damping) -> a tree of arrays; it may have no damping.

    Returns:
        A method with the same results and errors: see `natgrad.layers.compiled`.
    """
    program, signature = compiled(method), inspect.signature(method)

    @functools.wraps(method)
    def call(*args, **kwargs):
        given = signature.bind(*args, **kwargs).arguments.get("damping", 0.0)
        if is_by_layer(given):
            return method(*args, **kwargs)
        check_damping(given)
        return program(*args, **kwargs)

    return call
