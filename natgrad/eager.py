"""Whether a call may become a program, and what that must know of the call.

Outside of `jax.jit` a compiled program stands in for a call: `natgrad.layers.compiled`.
What it reads from Python is that of the time at which it was traced, and it cannot
raise. So code says by `note_read` which functions of the user it calls, and by
`note_impossible` what would be an error if its value were known.
"""

from __future__ import annotations

import contextlib
import contextvars
import functools
from collections.abc import Callable, Iterator
from typing import Any

import jax

from natgrad.control_flow import is_traced, trace_level
from natgrad.typing import Array

# Their functions read nothing but their arguments.
_PURE = ("natgrad", "optax", "jax")
_off: contextvars.ContextVar[bool] = contextvars.ContextVar(
    "natgrad_operation_by_operation", default=False
)


@contextlib.contextmanager
def operation_by_operation() -> Iterator[None]:
    """A context in which functions run as they are written."""
    token = _off.set(True)
    try:
        yield
    finally:
        _off.reset(token)


def replaced_outside(function: Callable, program: Callable) -> Callable:
    """The function; outside of all transformations, unless forbidden, the program.

    Args:
        function: any.
        program: of the same arguments, with the same results.
    """

    @functools.wraps(function)
    def call(*args, **kwargs):
        config: Any = jax.config  # whose type does not declare the settings
        as_written = _off.get() or config.jax_disable_jit or is_traced()
        return (function if as_written else program)(*args, **kwargs)

    return call


class Notes:
    """What was said during one trace.

    Attributes:
        functions: of the user, by their ids, each with the shapes that it was given.
        impossible: traced booleans of shape (); one that holds is an error.
    """

    def __init__(self):
        self.functions: dict[int, tuple[Callable, tuple]] = {}
        self.impossible: list[Array] = []
        self.level = trace_level()


_notes: contextvars.ContextVar[Notes | None] = contextvars.ContextVar(
    "natgrad_notes", default=None
)


@contextlib.contextmanager
def taking_notes() -> Iterator[Notes]:
    """A context in which notes are taken, those of the trace that it is entered in."""
    notes = Notes()
    token = _notes.set(notes)
    try:
        yield notes
    finally:
        _notes.reset(token)


def note_read(function: Any, *operands: Any) -> None:
    """Say that a function of the user is called, which may read anything from Python.

    Args:
        function: any; what is no function, and those of libraries, are left out.
        operands: what it is called with, trees of arrays or of their shapes.
    """
    notes = _notes.get()
    home = str(getattr(function, "__module__", "")).partition(".")[0]
    if notes is not None and callable(function) and home not in _PURE:
        shapes = jax.tree.map(_shape, operands)
        notes.functions.setdefault(id(function), (function, shapes))


def call(function: Callable, *operands: Any) -> Any:
    """function(*operands), with a note that it is read.

    Args:
        function: of the user.
        operands: what it is called with.

    Returns:
        Its result.
    """
    note_read(function, *operands)
    return function(*operands)


def note_impossible(found: Array) -> bool:
    """Say of values that are not known yet whether they are an error.

    Args:
        found: a traced boolean of shape ().

    Returns:
        Whether somebody looks at it when it is known, and raises.
    """
    notes = _notes.get()
    if notes is None or notes.level != trace_level():
        return False
    notes.impossible.append(found)
    return True


def _shape(leaf: Any) -> Any:
    if not hasattr(leaf, "dtype") or not hasattr(leaf, "shape"):
        return leaf
    weak = getattr(leaf, "weak_type", False)
    return jax.ShapeDtypeStruct(leaf.shape, leaf.dtype, weak_type=weak)
