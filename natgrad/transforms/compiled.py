"""One compiled program in place of a function that is called outside of `jax.jit`.

Operation by operation, an update takes seconds and compiles its loops anew each time.
`compiled(function)` is the function, run as one program wherever all that it is given
is known; under a transformation of JAX it is the function itself.

A program has what it read from Python when it was traced. So the functions of the user
that it calls are traced again at each call (`natgrad.eager`), and where one does
something else than before, so does the result. A program cannot raise for values: where
they are impossible, the function itself runs, which does.
"""

from __future__ import annotations

import collections
import contextlib
import contextvars
import dataclasses
import functools
import inspect
import warnings
from collections.abc import Callable, Hashable, Iterator
from typing import Any

import jax
import jax.core
import jax.numpy as jnp
import numpy as np

from natgrad.control_flow import is_traced
from natgrad.eager import taking_notes
from natgrad.layers import jaxprs
from natgrad.layers.fingerprint import fingerprint
from natgrad.model import Model

# Programs, and calls that could become one, that a function keeps.
_KEPT = 8
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


def compiled(function: Callable) -> Callable:
    """The function, one compiled program where all values are known.

    Args:
        function: of trees of arrays and numbers, of booleans, strings and functions;
            it depends on nothing else but the functions that it names by
            `natgrad.eager.note_read`.

    Returns:
        A function with the same results and errors. Compiled are the first call, and
        whatever comes a second time: a function that is given anew in each call never
        is.
    """
    programs = _Programs(function)

    @functools.wraps(function)
    def call(*args, **kwargs):
        leaves, structure = jax.tree.flatten((args, kwargs))
        if not _can_be_compiled(leaves):
            return function(*args, **kwargs)
        return programs.run(leaves, structure)

    return call


class _Programs:
    """The programs of a function, by what is no array among its arguments."""

    def __init__(self, function: Callable):
        self.function = function
        self.programs: collections.OrderedDict = collections.OrderedDict()
        self.seen: collections.OrderedDict = collections.OrderedDict()
        self.warned = False

    def run(self, leaves: list, structure: Any) -> Any:
        """The result for these arguments, which can be compiled."""
        static = tuple(None if _is_array(leaf) else leaf for leaf in leaves)
        arrays = [leaf for leaf in leaves if _is_array(leaf)]
        arguments, reads = (structure, static), {}

        def plain() -> Any:
            args, kwargs = structure.unflatten(leaves)
            return self.function(*args, **kwargs)

        try:
            kept = list(self.programs.items())
            same = [p for key, p in kept if key[0] == arguments]
            for program in reversed(same):
                if program.reads_as_before(reads):
                    return program.run(arrays, plain)
            key = arguments, tuple(sorted(reads.items()))
            if self._waits(key, bool(same)):
                return plain()
        except _UnknownError:
            return plain()
        program = _Program(self.function, structure, static)
        _remember(self.programs, key, program)
        return program.run(arrays, plain)

    def _waits(self, key: tuple, same: bool) -> bool:
        """Is this call not worth a program, since its like may never come again?"""
        (structure, static), _ = key
        known = any(arguments[0] == structure for arguments, _ in self.programs)
        if key in self.seen or not (known or _holds_arrays(self.function)):
            return False
        _remember(self.seen, key, None)
        new = [leaf for leaf in static if callable(leaf)]
        if known and not same and new and not self.warned:
            self.warned = True
            warnings.warn(
                "An update outside of jax.jit got another function than the one before "
                f"({', '.join(getattr(f, '__name__', repr(f)) for f in new)}), so it "
                "runs operation by operation, which takes seconds. Pass the same "
                "function each time, and what changes by its arguments, such as "
                "value_fn=model.loss with inputs=x and targets=y; or compile the whole "
                "step by jax.jit.",
                stacklevel=5,
            )
        return True


class _UnknownError(Exception):
    """What a function does cannot be told beforehand."""


class _Program:
    """A compiled function of arrays, and the functions of the user that it read."""

    def __init__(self, function: Callable, structure: Any, static: tuple):
        self.functions: dict[int, tuple[Callable, tuple]] = {}
        self.reads: dict[int, Hashable] = {}
        self.compiles = True

        def traced(arrays):
            rest = iter(arrays)
            leaves = [next(rest) if each is None else each for each in static]
            args, kwargs = structure.unflatten(leaves)
            with taking_notes() as notes:
                result = function(*args, **kwargs)
            self.functions = notes.functions | self.functions
            found = notes.impossible
            return result, jnp.stack(found).any() if found else None

        self.jitted = jax.jit(traced)

    def reads_as_before(self, known: dict[int, Hashable]) -> bool:
        """Do the user's functions compute what they did when this was compiled?

        Args:
            known: what was found of them in this call; it gets what is missing.
        """
        for name, (function, shapes) in self.functions.items():
            if name not in known:
                known[name] = _read(function, shapes)
        return all(known[name] == read for name, read in self.reads.items())

    def run(self, arrays: list, plain: Callable[[], Any]) -> Any:
        """The result; as of `plain`, where this cannot be compiled or must raise."""
        if not self.compiles:
            return plain()
        try:
            result, impossible = self.jitted(arrays)
            for name in self.functions.keys() - self.reads.keys():
                self.reads[name] = _read(*self.functions[name])
        except (jax.errors.JaxRuntimeError, FloatingPointError):  # it ran
            raise
        except Exception:  # it looks at values; or an error, which may name values
            self.compiles = False
            return plain()
        return plain() if impossible is not None and bool(impossible) else result


def _read(function: Callable, shapes: tuple) -> Hashable:
    """What a function does now, the values that it closes over included."""
    try:
        return fingerprint(jaxprs.trace(function, *shapes).jaxpr, values=True)
    except Exception as error:
        raise _UnknownError from error


def _can_be_compiled(leaves: list) -> bool:
    """Are these known, outside of all transformations, and of kinds that can be?"""
    config: Any = jax.config  # whose type does not declare the settings
    return (
        not _off.get()
        and not config.jax_disable_jit
        and not is_traced()
        and all(
            _is_array(leaf) or isinstance(leaf, bool | str) or _is_function(leaf)
            for leaf in leaves
        )
    )


def _is_array(leaf: Any) -> bool:
    """An array whose values are known, or a number."""
    if isinstance(leaf, jax.Array):
        return not isinstance(leaf, jax.core.Tracer)
    if isinstance(leaf, np.ndarray | np.generic):
        return leaf.dtype.kind in "biufc" or leaf.dtype.name == "bfloat16"
    return isinstance(leaf, int | float | complex) and not isinstance(leaf, bool)


def _is_function(leaf: Any) -> bool:
    return callable(leaf) and not isinstance(leaf, jax.core.Tracer)


def _holds_arrays(function: Callable) -> bool:
    """Are there arrays among what a function closes over, models apart?

    So it is in transformations that `optax.inject_hyperparams` makes for one step.
    """
    values: list = [function]
    met: set[int] = set()
    while values:
        value = values.pop()
        if isinstance(value, jax.Array):
            return True
        if id(value) in met or isinstance(value, Model):
            continue
        met.add(id(value))
        values += value if isinstance(value, tuple | list) else ()
        values += [getattr(value, "__self__", None)] if callable(value) else ()
        if inspect.isfunction(value):
            for cell in value.__closure__ or ():
                values += _content(cell)
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            values += [getattr(value, f.name) for f in dataclasses.fields(value)]
    return False


def _content(cell: Any) -> list:
    """What a closure's cell holds, in a list; none where it holds nothing yet."""
    try:
        return [cell.cell_contents]
    except ValueError:
        return []


def _remember(kept: collections.OrderedDict, key: Hashable, value: Any) -> None:
    kept[key] = value
    while len(kept) > _KEPT:
        kept.popitem(last=False)
