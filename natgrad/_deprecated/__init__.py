"""Names of the version before: they still work, with a DeprecationWarning.

MODULES says where the names of a module went that stood at the root, NAMES what a
public name of a module or class is called now, KEYWORDS the same of arguments.
`install` makes them work; `natgrad.compare`, once a function and now a package, can
still be called, and `then=` given to an optimizer. The next release drops this file.
"""

from __future__ import annotations

import abc
import dataclasses
import functools
import importlib
import inspect
import sys
import types
import warnings
from collections.abc import Callable
from typing import Any

import optax

from natgrad._deprecated.tables import (
    COMPARISON_KEYWORDS,
    COMPOSED,
    KEYWORDS,
    MODULES,
    NAMES,
    SETUP,
)


class OldModule(types.ModuleType):
    """A module that is gone: it hands on the names of those that came in its place."""

    def __init__(self, name: str, homes: tuple[str, ...]):
        super().__init__(f"natgrad.{name}", f"Moved to {' and '.join(homes)}.")
        self.__homes = homes

    def __getattr__(self, name: str) -> Any:
        if name.startswith("__"):
            raise AttributeError(name)
        for home in self.__homes:
            new = NAMES.get(home, {}).get(name, name)
            module = importlib.import_module(f"natgrad.{home}")
            if hasattr(module, new):
                _warn(f"{self.__name__}.{name}", f"natgrad.{home}.{new}")
                return getattr(module, new)
        raise AttributeError(f"module {self.__name__!r} has no attribute {name!r}")


class CalledPackage(types.ModuleType):
    """A package that is called as the function was that it took the name of."""

    def __call__(self, *args: Any, **kwargs: Any) -> Any:
        name = self.__name__.rpartition(".")[2]
        _warn(f"{self.__name__}()", f"{self.__name__}.{name}()")
        return getattr(self, name)(*args, **kwargs)


def install() -> None:
    """Make the names of all tables work."""
    compare = sys.modules["natgrad.compare"]
    compare.__class__ = CalledPackage
    for name, old in COMPARISON_KEYWORDS.items():
        accepting = _with_comparison_keywords(getattr(compare, name), old, compare)
        setattr(compare, name, accepting)
    for name, homes in MODULES.items():
        module = OldModule(name, homes)
        package, _, last = module.__name__.rpartition(".")
        sys.modules[module.__name__] = module
        if not hasattr(sys.modules[package], last):
            setattr(sys.modules[package], last, module)
    for place, names in NAMES.items():
        package, _, last = f"natgrad.{place}".rpartition(".")
        if last[0].isupper():
            owner = getattr(importlib.import_module(package), last)
            for old, new in names.items():
                setattr(owner, old, _old_member(owner, old, new))
            if isinstance(owner, abc.ABCMeta):
                _adopt_old_overrides(owner, names)
        else:
            module = importlib.import_module(f"natgrad.{place}")
            module.__getattr__ = _old_names(module, names)
    for home in (sys.modules["natgrad"], sys.modules["natgrad.optimizers"]):
        for name in COMPOSED:
            setattr(home, name, _with_composition(getattr(home, name)))
    for place, names in KEYWORDS.items():
        package, _, last = f"natgrad.{place}".rpartition(".")
        _accept_old_keywords(getattr(importlib.import_module(package), last), names)


def _old_names(module: types.ModuleType, names: dict[str, str]) -> Callable:
    def of(name: str) -> Any:
        if name not in names:
            text = f"module {module.__name__!r} has no attribute {name!r}"
            raise AttributeError(text, name=name, obj=module)
        new = names[name]
        owner, _, last = new.rpartition(".")
        home = importlib.import_module(f"natgrad.{owner}") if owner else module
        _warn(f"{module.__name__}.{name}", f"{home.__name__}.{last}")
        return getattr(home, last)

    return of


def _with_comparison_keywords(
    function: Callable, old: set[str], compare: Any
) -> Callable:
    """`function`, whose old keywords are those of a ComparisonSetup or RaceSettings."""
    name = function.__name__
    home = "RaceSettings" if name == "race" else "ComparisonSetup"

    @functools.wraps(function)
    def call(model: Any, *arrays: Any, **keywords: Any) -> Any:
        if not old & keywords.keys():
            return function(model, *arrays, **keywords)
        _warn(
            f"natgrad.compare.{name}({', '.join(sorted(old & keywords.keys()))})",
            f"natgrad.compare.{home} (effort is budget)",
        )
        names = old if name == "race" else SETUP
        options = {key: keywords.pop(key) for key in names if key in keywords}
        if name == "race":
            settings = compare.RaceSettings(**options)
            return function(model, *arrays, settings=settings, **keywords)
        budget = options.pop("effort", keywords.pop("budget", None))
        setup = compare.ComparisonSetup(model, budget=budget, **options)
        if name == "along":
            return function(setup, *arrays, **keywords)
        return compare.Reference.at(setup, *arrays, **keywords).compare()

    return call


def _with_composition(alias: Callable) -> Callable:
    """`alias`, which takes `then=` and `sub_batch=` too."""
    name, library = alias.__name__, sys.modules["natgrad"]

    @functools.wraps(alias)
    def make(*args: Any, then: Any = None, sub_batch: Any = None, **names: Any) -> Any:
        if then is None and sub_batch is None:
            return alias(*args, **names)
        new = "momentum=, weight_decay= and refresh=Refresh(sub_batch=...)"
        _warn(f"{name}(then=, sub_batch=)", f"{name}({new})")
        given = inspect.signature(alias).bind(*args, **names)
        given.apply_defaults()
        old = given.arguments
        old["refresh"] = dataclasses.replace(old["refresh"], sub_batch=sub_batch)
        if then is None:
            return alias(**old)
        uphill = alias(**old | {"learning_rate": -1.0, "trust_region": None})
        steps = [uphill, then, optax.scale_by_learning_rate(old["learning_rate"])]
        if (radius := old["trust_region"]) is not None:
            steps.append(library.scale_by_kl_trust_region(old["model"], radius))
        return optax.chain(*steps)

    return make


def _old_member(owner: type, old: str, new: str) -> property:
    def of(self) -> Any:
        _warn(f"{owner.__name__}.{old}", f"{owner.__name__}.{new}")
        return getattr(self, new)

    return property(of, doc=f"Deprecated: `{new}`.")


def _accept_old_keywords(owner: type, names: dict[str, str]) -> None:
    init: Callable[..., None] = owner.__init__

    @functools.wraps(init)
    def accepting(self, *args: Any, **kwargs: Any) -> None:
        for old in names.keys() & kwargs.keys():
            new = names[old]
            _warn(f"{owner.__name__}({old}=...)", f"{owner.__name__}({new}=...)")
            kwargs[new] = kwargs.pop(old)
        init(self, *args, **kwargs)

    owner.__init__ = accepting


def _adopt_old_overrides(owner: type, names: dict[str, str]) -> None:
    """A subclass that overrides a method by its old name overrides the new one."""

    def init_subclass(cls) -> None:
        super(owner, cls).__init_subclass__()
        for old, new in names.items():
            if old in vars(cls) and new not in vars(cls):
                # One frame more: that of the metaclass.
                _warn(f"{cls.__name__}.{old}", f"{cls.__name__}.{new}", 4)
                setattr(cls, new, vars(cls)[old])

    setattr(owner, "__init_subclass__", classmethod(init_subclass))  # noqa: B010 (typed)


def _warn(old: str, new: str, level: int = 3) -> None:
    """A DeprecationWarning at the line that uses the old name."""
    message = f"{old} is now {new}; the old name goes with the next release."
    warnings.warn(message, DeprecationWarning, stacklevel=level)
