"""Specifications and closures as trees, whose leaves are the arrays in them.

A transformation that `optax.inject_hyperparams` makes for one step, or a curvature that
continues from averaged statistics, is a new object with new arrays in it. As trees two
of them have one structure, and a program of the one serves the other.
"""

from __future__ import annotations

import dataclasses
import inspect
import types
from collections.abc import Callable, Hashable
from typing import Any

import jax

from natgrad.model import Model

_WRITTEN = "_natgrad_as_written"
_OURS = ("natgrad", "optax")
# In a cell that holds nothing yet.
_EMPTY = object()


@dataclasses.dataclass(frozen=True)
class Fixed:
    """What is part of a program: numbers by value and type, the rest as objects."""

    value: Any

    def __eq__(self, other: object) -> bool:
        return isinstance(other, Fixed) and self._key == other._key

    def __hash__(self) -> int:
        return hash(self._key)

    @property
    def _key(self) -> Hashable:
        plain = isinstance(self.value, int | float | complex | str)
        what = repr(self.value) if plain else id(self.value)
        return type(self.value), what


@jax.tree_util.register_pytree_node_class
class _Parts:
    """An object: how it is made, and of what. Its tree unflattens to the object."""

    def __init__(self, kind: tuple[Callable, Hashable], values: tuple):
        self.kind, self.values = kind, values

    def tree_flatten(self) -> tuple[tuple, tuple]:
        return self.values, self.kind

    @classmethod
    def tree_unflatten(cls, kind: tuple[Callable, Hashable], values: tuple) -> Any:
        make, about = kind
        return make(about, *jax.tree.map(_opened, values))


def written_as(replacement: Callable, function: Callable) -> Callable:
    """Say that a function is taken apart as another one, which does the same.

    Args:
        replacement: what is called.
        function: what is taken apart.

    Returns:
        The replacement.
    """
    setattr(replacement, _WRITTEN, (replacement, function))
    return replacement


def taken_apart(value: Any, within: tuple = ()) -> Any:
    """The tree of an object, or the object where it is to be taken as it is.

    Args:
        value: any; taken apart are the library's specifications but models, and the
            functions that it and optax make.
        within: what it is part of, since closures may hold themselves.

    Returns:
        A tree; `jax.tree.unflatten` of its leaves and structure gives the object again.
    """
    if inspect.isfunction(value):
        # `functools.wraps` hands attributes on to functions that do something else.
        replacement, function = getattr(value, _WRITTEN, (None, None))
        value = function if replacement is value else value
    if any(value is each for each in within) or not _is_ours(value):
        return value

    def part(leaf):
        if isinstance(leaf, jax.Array):
            return leaf
        apart = taken_apart(leaf, (*within, value))
        return apart if isinstance(apart, _Parts) else Fixed(apart)

    def parts(*values):
        return jax.tree.map(part, values)

    if inspect.ismethod(value):
        return _Parts((_method, Fixed(value.__func__)), parts(value.__self__))
    if inspect.isfunction(value):
        about = value.__code__, value.__name__, Fixed(value.__globals__)
        cells = map(_content, value.__closure__ or ())
        values = parts(value.__defaults__, value.__kwdefaults__, *cells)
        return _Parts((_function, about), values)
    names = tuple(field.name for field in dataclasses.fields(value))
    values = parts(*(getattr(value, name) for name in names))
    return _Parts((_specification, (type(value), names)), values)


def is_of_functions(value: Any) -> bool:
    """Is this a named tuple of functions, such as a transformation of optax?

    Args:
        value: any.
    """
    named = isinstance(value, tuple) and hasattr(value, "_fields")
    return named and bool(value) and all(map(callable, value))


def whole(value: tuple) -> Any:
    """A tree without leaves, so that each of these has a structure of its own.

    Args:
        value: a named tuple of functions.

    Returns:
        The tree; it unflattens to the same functions.
    """
    return _Parts((_named, (type(value), tuple(map(Fixed, value)))), ())


def holds_arrays(function: Callable) -> bool:
    """Are there arrays among what a function closes over, models apart?

    So it is in transformations that `optax.inject_hyperparams` makes for one step.

    Args:
        function: any callable.
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
            values += map(_content, value.__closure__ or ())
        if dataclasses.is_dataclass(value) and not isinstance(value, type):
            values += [getattr(value, f.name) for f in dataclasses.fields(value)]
    return False


def _is_ours(value: Any) -> bool:
    if str(getattr(value, "__module__", "")).partition(".")[0] not in _OURS:
        return False
    if inspect.isfunction(value):
        return "<locals>" in value.__qualname__
    specification = dataclasses.is_dataclass(value) and not isinstance(value, type)
    return inspect.ismethod(value) or (specification and not isinstance(value, Model))


def _opened(leaf: Any) -> Any:
    return leaf.value if isinstance(leaf, Fixed) else leaf


def _method(function: Fixed, instance: Any) -> Callable:
    return types.MethodType(function.value, instance)


def _named(about: tuple) -> tuple:
    kind, functions = about
    return kind(*map(_opened, functions))


def _function(about: tuple, defaults: Any, keywords: Any, *cells: Any) -> Callable:
    code, name, home = about
    closure = tuple(
        types.CellType() if cell is _EMPTY else types.CellType(cell) for cell in cells
    )
    made = types.FunctionType(code, home.value, name, defaults, closure)
    made.__kwdefaults__ = keywords
    return made


def _specification(about: tuple, *values: Any) -> Any:
    kind, names = about
    made = object.__new__(kind)
    for name, value in zip(names, values, strict=True):
        object.__setattr__(made, name, value)
    return made


def _content(cell: Any) -> Any:
    """What a closure's cell holds; a mark where it holds nothing yet."""
    try:
        return cell.cell_contents
    except ValueError:
        return _EMPTY
