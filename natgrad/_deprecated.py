"""Names of the version before: they still work, with a DeprecationWarning.

Three tables. MODULES says where the names of a module went that stood at the root;
NAMES says what a public name of a module, or of a class, is called now; KEYWORDS says
the same of a class's arguments. `install` makes them work; `natgrad.compare`, once a
function and now a package, can still be called. The next release drops this file.
"""

from __future__ import annotations

import abc
import functools
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
# The module or class -> {a name before: the name now, dotted if it is elsewhere}.
NAMES = {
    "compare": {"Effort": "Budget", "Yardstick": "Reference"},
    "control_flow": {
        "any_member": "any_over_vmap",
        "cleared": "zeros_unless",
        "renewed": "cond_in_place",
        "renewed_in_turn": "repeat_in_place",
    },
    "curvature.Curvature": {
        "fixing": "with_frozen",
        "following": "with_previous",
        "instantaneous": "requires_batch",
        "resolved": "specialize",
    },
    "curvature.EKFAC": {"kept_metric": "metric_from_statistics"},
    "curvature.KFAC": {"kept_metric": "metric_from_statistics"},
    "curvature.LayerDiagonal": {"kept_metric": "metric_from_statistics"},
    "curvature.SubBatch": {"fewest": "min_examples", "part": "subsample"},
    "curvature.summed.SummedCurvature": {
        "everywhere": "psum_over_devices",
        "local": "to_device_local",
    },
    "families.Family": {"has_nodes": "has_score_nodes", "nodes": "score_nodes"},
    "geometry": {
        "bending": "christoffel_contraction",
        "displaced": "retract_into_domain",
    },
    "layers": {"Diagonal": "DiagonalBlock", "Exact": "DenseBlock"},
    "metrics.blockwise": {
        "from_rows": "kron_matvec_low_rank",
        "sandwich": "kron_matvec",
    },
    "model.Model": {"fixing": "with_frozen"},
    "model.batch": {"check_every": "check_stride", "thinned": "subsample"},
    "solvers": {
        "KeptInverse": "CachedSolver",
        "Recalling": "StatefulSolver",
        "any_member": "control_flow.any_over_vmap",
        "mirrored": "solvers.dense.mirrored",
        "turns": "solvers.base.stagger",
    },
    "solvers.CachedSolver": {
        "apply": "solve",
        "pieces": "num_blocks",
        "prepare": "factorize",
        "reading": "with_row_factors",
    },
    "solvers.StatefulSolver": {"first": "init"},
    "solvers.conjugate_gradients": {
        "Fixed": "FixedIterations",
        "Progress": "ModelDecrease",
        "Residual": "RelativeResidual",
    },
    "solvers.jacobian_blocks": {
        "Explicit": "DenseRows",
        "Factored": "LinearBlock",
        "Lookups": "EmbeddingBlock",
        "Piece": "JacobianBlock",
    },
    "transforms.distributed_inverse": {
        "Spread": "DistributedInverse",
        "shared_out": "assign_greedily",
    },
    "transforms.inverse_cache": {
        "Kept": "InverseCache",
        "check": "check_refresh",
        "nothing_kept": "init_inverse_cache",
    },
    "transforms.statistics_update": {"kept_up": "update_statistics_and_inverse"},
    "transforms.validation": {
        "checked": "validate_update",
        "part_of": "restrict_to_subtree",
    },
}
# Keywords before of natgrad.compare's functions, which a ComparisonSetup now takes.
SETUP = ("approximations", "reference", "damping", "step_size", "effort")
COMPARISON_KEYWORDS = {
    "compare": {"reference", "step_size", "effort"},
    "along": set(SETUP),
    "race": {"steps", "batch_size", "rates", "damping", "seed"},
}
# The class -> {an argument's name before: its name now}.
KEYWORDS = {"curvature.SubBatch": {"fewest": "min_examples"}}


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
        setattr(
            compare,
            name,
            _with_comparison_keywords(getattr(compare, name), old, compare),
        )
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
