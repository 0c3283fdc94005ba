"""Names of the version before: they still work, with a DeprecationWarning.

Two tables. MODULES says where the names of a module went that stood at the root; NAMES
says what a public name of a module, or of a class, is called now. `install` makes both
work; `natgrad.compare`, once a function and now a package, can still be called. The
next release drops this file.
"""

from __future__ import annotations

import importlib
import sys
import types
import warnings
from collections.abc import Callable
from typing import Any

# The module before -> where its names are now, the first that has them.
MODULES = {
    "adaptive": ("transforms.adaptive",),
    "arguments": ("transforms.validation",),
    "batch": ("model.batch", "model.targets"),
    "blockwise": ("metrics.blockwise",),
    "damping": ("transforms.damping",),
    "eigenbasis": ("metrics.eigenbasis",),
    "errors": ("model.errors",),
    "health": ("transforms.health", "transforms.state"),
    "inference.ivon": ("inference.online_newton",),
    "inplace": ("control_flow",),
    "inverse": ("solvers.spd_inverse",),
    "jacobian": ("solvers.score_jacobian",),
    "kronecker": ("metrics.kronecker",),
    "krylov": ("solvers.conjugate_gradients",),
    "metric": ("metrics.base", "tree"),
    "mirror": ("transforms.mirror_descent",),
    "observation": ("transforms.observation",),
    "pieces": ("solvers.jacobian_blocks",),
    "placeholders": ("model.placeholders",),
    "refresh": ("transforms.inverse_cache", "transforms.solve"),
    "sample_space": ("solvers.gram",),
    "scaling": ("transforms.scaling",),
    "spectral": ("solvers.spectral",),
    "spread": ("transforms.distributed_inverse",),
    "spring": ("transforms.spring",),
    "state": ("transforms.state", "transforms.statistics_update"),
    "transform": ("transforms.scale_by_curvature",),
    "upkeep": ("transforms.statistics_update",),
    "weights": ("model.weights",),
}
# The module or class -> {a name before: the name now}.
NAMES = {
    "compare": {"Effort": "Budget", "Yardstick": "Reference"},
    "control_flow": {
        "any_member": "any_over_vmap",
        "cleared": "zeros_unless",
        "renewed": "cond_in_place",
    },
    "curvature.Curvature": {
        "fixing": "with_frozen",
        "following": "with_previous",
        "instantaneous": "requires_batch",
        "resolved": "specialize",
    },
    "curvature.SubBatch": {"fewest": "min_examples", "part": "subsample"},
    "families.Family": {"has_nodes": "has_score_nodes", "nodes": "score_nodes"},
    "geometry": {
        "bending": "christoffel_contraction",
        "displaced": "retract_into_domain",
    },
    "layers": {"Diagonal": "DiagonalBlock", "Exact": "DenseBlock"},
    "model.Model": {"fixing": "with_frozen"},
    "solvers": {"KeptInverse": "CachedSolver", "Recalling": "StatefulSolver"},
    "solvers.conjugate_gradients": {
        "Fixed": "FixedIterations",
        "Progress": "ModelDecrease",
        "Residual": "RelativeResidual",
    },
    "transforms.distributed_inverse": {"Spread": "DistributedInverse"},
}


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
    """Make the names of both tables work."""
    sys.modules["natgrad.compare"].__class__ = CalledPackage
    for name, homes in MODULES.items():
        sys.modules[f"natgrad.{name}"] = OldModule(name, homes)
    for place, names in NAMES.items():
        package, _, last = f"natgrad.{place}".rpartition(".")
        if last[0].isupper():
            owner = getattr(importlib.import_module(package), last)
            for old, new in names.items():
                setattr(owner, old, _old_member(owner, old, new))
            if place == "families.Family":
                _adopt_old_overrides(owner, names)
        else:
            module = importlib.import_module(f"natgrad.{place}")
            module.__getattr__ = _old_names(module, names)


def _old_names(module: types.ModuleType, names: dict[str, str]) -> Callable:
    def of(name: str) -> Any:
        if name not in names:
            text = f"module {module.__name__!r} has no attribute {name!r}"
            raise AttributeError(text, name=name, obj=module)
        _warn(f"{module.__name__}.{name}", f"{module.__name__}.{names[name]}")
        return getattr(module, names[name])

    return of


def _old_member(owner: type, old: str, new: str) -> property:
    def of(self) -> Any:
        _warn(f"{owner.__name__}.{old}", f"{owner.__name__}.{new}")
        return getattr(self, new)

    return property(of, doc=f"Deprecated: `{new}`.")


def _adopt_old_overrides(owner: type, names: dict[str, str]) -> None:
    """A subclass that overrides a method by its old name overrides the new one."""

    def init_subclass(cls) -> None:
        super(owner, cls).__init_subclass__()
        for old, new in names.items():
            if old in vars(cls) and new not in vars(cls):
                # One frame more: that of the metaclass.
                _warn(f"{cls.__name__}.{old}", f"{cls.__name__}.{new}", 4)
                setattr(cls, new, vars(cls)[old])

    owner.__init_subclass__ = classmethod(init_subclass)


def _warn(old: str, new: str, level: int = 3) -> None:
    """A DeprecationWarning at the line that uses the old name."""
    message = f"{old} is now {new}; the old name goes with the next release."
    warnings.warn(message, DeprecationWarning, stacklevel=level)
