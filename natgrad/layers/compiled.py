"""One compiled program in place of a function that is called outside of `jax.jit`.

Operation by operation, an update takes seconds and compiles its loops anew each time.
`compiled(function)` is the function, run as one program wherever all that it is given
is known; under a transformation of JAX it is the function itself. Programs are found by
all that is no array in the arguments, specifications taken apart (`apart`), so those
that are made anew for each call find that of the call before.

A program has what it read from Python when it was traced. So the functions of the user
that it calls are traced again at each call (`natgrad.eager`), and where one does
something else than before, so does the result. A program cannot raise for values: where
they are impossible, the function itself runs, which does.
"""

from __future__ import annotations

import collections
import functools
import warnings
from collections.abc import Callable, Hashable
from typing import Any

import jax
import jax.core
import jax.numpy as jnp
import numpy as np

from natgrad import tree
from natgrad.eager import note_read, replaced_outside, taking_notes
from natgrad.layers import jaxprs
from natgrad.layers.apart import (
    Fixed,
    holds_arrays,
    is_of_functions,
    taken_apart,
    whole,
    written_as,
)
from natgrad.layers.fingerprint import fingerprint

# Programs, and calls that could become one, that a function keeps.
_KEPT = 8


def compiled(function: Callable) -> Callable:
    """The function, one compiled program where all values are known.

    Args:
        function: of trees of arrays and numbers, of booleans, strings and functions;
            it depends on nothing else but the functions that it names by
            `natgrad.eager.note_read`.

    Returns:
        A function with the same results and errors. Compiled are the first call, and
        whatever comes a second time: a function of the user that is given anew in each
        call never is.
    """
    own = _Programs()
    # Made for one call, perhaps: then it shares the programs of its like.
    is_shared = functools.cache(lambda: holds_arrays(function))

    def program(*args, **kwargs):
        def plain():
            return function(*args, **kwargs)

        shared = is_shared()
        made = taken_apart(function) if shared else Fixed(function)
        given = args, kwargs
        apart = made, *jax.tree.map(_argument, given, is_leaf=is_of_functions)
        leaves, structure = jax.tree.flatten(apart)
        if not _can_be_compiled(leaves, structure):
            return plain()
        return (_shared if shared else own).run(leaves, structure, plain)

    return written_as(replaced_outside(function, program), function)


def compiled_method(method: Callable) -> Callable:
    """The method of a curvature, one compiled program where all values are known.

    Programs are kept with the model, so curvatures that are made anew share them.

    Args:
        method: (curvature, params, inputs, ...) -> a tree of arrays.

    Returns:
        A method with the same results and errors: see `compiled`.
    """

    @functools.wraps(method)
    def noted(curvature, params, inputs, *args, **kwargs):
        note_read(curvature.model.apply, tree.join_complex(params), inputs)
        return method(curvature, params, inputs, *args, **kwargs)

    def program(self, *args, **kwargs):
        kept = vars(self.model).setdefault("_programs", _Kept())
        if method not in kept:
            kept[method] = compiled(noted)
        return kept[method](self, *args, **kwargs)

    return replaced_outside(method, program)


class _Kept(dict):
    """Programs by method; copies of what holds it, and what is pickled, begin anew."""

    def __reduce__(self):
        return _Kept, ()


class _Programs:
    """The programs of functions, by what is no array among the arguments."""

    def __init__(self):
        self.programs: collections.OrderedDict = collections.OrderedDict()
        self.seen: collections.OrderedDict = collections.OrderedDict()
        self.warned = False

    def run(self, leaves: list, structure: Any, plain: Callable[[], Any]) -> Any:
        """The result for the function and its arguments, which can be compiled.

        Args:
            leaves: of (function, args, kwargs).
            structure: of the same.
            plain: gives the result without a program.
        """
        static = tuple(None if _is_array(leaf) else leaf for leaf in leaves)
        arrays = [leaf for leaf in leaves if _is_array(leaf)]
        arguments, reads = (structure, static), {}
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
        program = _Program(structure, static)
        _remember(self.programs, key, program)
        return program.run(arrays, plain)

    def _waits(self, key: tuple, same: bool) -> bool:
        """Is this call not worth a program, since its like may never come again?"""
        (structure, static), _ = key
        known = any(arguments[0] == structure for arguments, _ in self.programs)
        if key in self.seen or not known:
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
                stacklevel=6,
            )
        return True


class _UnknownError(Exception):
    """What a function does cannot be told beforehand."""


class _Program:
    """A compiled function of arrays, and the functions of the user that it read."""

    def __init__(self, structure: Any, static: tuple):
        self.functions: dict[int, tuple[Callable, tuple]] = {}
        self.reads: dict[int, Hashable] = {}
        self.compiles = True

        def traced(arrays):
            rest = iter(arrays)
            leaves = [next(rest) if each is None else each for each in static]
            function, args, kwargs = structure.unflatten(leaves)
            function = function.value if isinstance(function, Fixed) else function
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


def _can_be_compiled(leaves: list, structure: Any) -> bool:
    """Are these known, and of kinds that can be?"""
    try:
        hash(structure)
    except TypeError:
        return False
    return all(
        _is_array(leaf) or isinstance(leaf, bool | str | Fixed) or _is_function(leaf)
        for leaf in leaves
    )


def _is_array(leaf: Any) -> bool:
    """An array whose values are known, or a number."""
    if isinstance(leaf, jax.Array):
        return not isinstance(leaf, jax.core.Tracer)
    if isinstance(leaf, np.ndarray | np.generic):
        return leaf.dtype.kind in "biufc" or leaf.dtype.name == "bfloat16"
    return isinstance(leaf, int | float | complex) and not isinstance(leaf, bool)


def _argument(leaf: Any) -> Any:
    """A tree of what is given: functions stay themselves, but for those with arrays."""
    if is_of_functions(leaf):
        return whole(leaf)
    return leaf if callable(leaf) and not holds_arrays(leaf) else taken_apart(leaf)


def _is_function(leaf: Any) -> bool:
    return callable(leaf) and not isinstance(leaf, jax.core.Tracer)


_shared = _Programs()


def _remember(kept: collections.OrderedDict, key: Hashable, value: Any) -> None:
    kept[key] = value
    while len(kept) > _KEPT:
        kept.popitem(last=False)
