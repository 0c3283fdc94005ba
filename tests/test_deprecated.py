"""Names of the version before: each gives what it gave, or is gone for a reason."""

from __future__ import annotations

import abc
import importlib
import subprocess
import sys
import warnings
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import natgrad as ng
from natgrad import _deprecated, solvers

# One line a name, "module:Name", and the public members of a class behind it.
BEFORE = Path(__file__).parent / "data" / "public_names_before.txt"

# A module, or "module:Name", or "module:Name.member" -> why it is gone.
GONE = {
    "natgrad.compare.kunstner": "the experiments of one paper are in benchmarks",
    "natgrad.compare.kunstner.figures": "the same",
    "natgrad.damping:SLACK": "a constant of one function, now beside it",
    "natgrad.damping:TRIES": "the same",
    "natgrad.damping:TrustRegion.shrinkage": "it bounds what is applied, not d alone",
    "natgrad.refresh:reading": "CachedSolver.with_row_factors does it",
    "natgrad.state:average": "a part of one step, which runs through other functions",
    "natgrad.state:examined": "the same",
} | {
    f"natgrad.refresh:Solved.{field}": "a value inside of one step"
    for field in ("kept", "measured", "settled", "solution")
}
for _curvature in ("EKFAC", "KFAC", "LayerDiagonal"):
    GONE[f"natgrad.curvature:{_curvature}.plan"] = "layer_statistics, with two methods"
    GONE[f"natgrad.curvature:{_curvature}.example_weights"] = "of CapturedBatch"


def place_of(dotted):
    """The module or class natgrad.<dotted>."""
    package, _, last = f"natgrad.{dotted}".rpartition(".")
    if last[0].isupper():
        return getattr(importlib.import_module(package), last)
    return importlib.import_module(f"natgrad.{dotted}")


def new_object(place, new):
    """What a name of the table NAMES stands for, dotted if it is in another module."""
    home, _, last = new.rpartition(".")
    return getattr(importlib.import_module(f"natgrad.{home}") if home else place, last)


RENAMED = [
    pytest.param(place, old, new, id=f"{place}.{old}")
    for place, names in _deprecated.NAMES.items()
    for old, new in names.items()
]
MEMBERS = [p for p in RENAMED if isinstance(place_of(p.values[0]), type)]
OVERRIDABLE = [p for p in MEMBERS if isinstance(place_of(p.values[0]), abc.ABCMeta)]
OF_MODULES = [p for p in RENAMED if not isinstance(place_of(p.values[0]), type)]


@pytest.mark.parametrize(("place", "old", "new"), OF_MODULES)
def test_an_old_name_of_a_module_is_the_same_object(place, old, new):
    module = place_of(place)
    with pytest.warns(DeprecationWarning, match=f"{old} is now natgrad"):
        before = getattr(module, old)
    assert before is new_object(module, new)


@pytest.mark.parametrize(("place", "old", "new"), MEMBERS)
def test_an_old_name_of_a_member_gives_the_new_one(place, old, new):
    owner = place_of(place)
    member = object()
    instance = type("Instance", (owner,), {new: member, "__init__": object.__init__})
    instance.__abstractmethods__ = frozenset()
    with pytest.warns(DeprecationWarning, match=f"{old} is now"):
        assert getattr(instance(), old) is member


@pytest.mark.parametrize(("place", "old", "new"), OVERRIDABLE)
def test_an_override_by_an_old_name_overrides_the_new_one(place, old, new):
    def member(self):
        del self

    with pytest.warns(DeprecationWarning, match=f"Subclass.{old} is now") as caught:
        subclass = type("Subclass", (place_of(place),), {old: member})
    assert vars(subclass)[new] is member
    assert caught[0].filename == __file__


def test_a_solver_with_the_method_names_of_before_solves():
    with pytest.warns(DeprecationWarning, match="is now"):

        class Scaled(solvers.CachedSolver):
            def pieces(self, metric):
                return len(metric.blocks)

            def prepare(self, metric, damping, which):
                return [jnp.asarray(1 / damping) for _ in which]

            def apply(self, metric, prepared, v, damping):
                value = jax.tree.map(lambda leaf: prepared[0] * leaf, v)
                return solvers.Solution(value, jnp.array(False))

    x = jnp.ones((4, 2))
    model = ng.Model(lambda p, x: x @ p, ng.families.Categorical(), x)
    curvature = ng.curvature.KFAC(model)
    refresh = ng.Refresh(inverses=3)
    tx = ng.scale_by_curvature(curvature, damping=0.5, solver=Scaled(), refresh=refresh)
    params = gradient = jnp.ones((2, 3))
    updates, _ = tx.update(gradient, tx.init(params), params, inputs=x)
    np.testing.assert_array_equal(updates, 2 * gradient)


@pytest.mark.parametrize("old", _deprecated.MODULES)
def test_an_old_module_hands_on_every_name_of_those_in_its_place(old):
    module = importlib.import_module(f"natgrad.{old}")
    for home in _deprecated.MODULES[old]:
        for name, value in vars(importlib.import_module(f"natgrad.{home}")).items():
            if name.startswith("_"):
                continue
            with pytest.warns(DeprecationWarning, match="is now natgrad"):
                before = getattr(module, name)
            first = next(
                getattr(place, name)
                for place in map(place_of, _deprecated.MODULES[old])
                if hasattr(place, name)
            )
            assert before is first
            assert home != _deprecated.MODULES[old][0] or before is value
    with pytest.raises(AttributeError, match="no attribute 'nonsense'"):
        _ = module.nonsense
    package, _, last = module.__name__.rpartition(".")
    assert hasattr(sys.modules[package], last)


@pytest.mark.parametrize("place", _deprecated.KEYWORDS)
def test_an_old_argument_of_a_class_sets_the_new_one(place):
    model = ng.Model(lambda p, x: x @ p, ng.families.Categorical())
    assert place == "curvature.SubBatch"
    with pytest.warns(DeprecationWarning, match=r"fewest=...\) is now"):
        curvature = ng.curvature.SubBatch(ng.curvature.KLHessian(model), 2, fewest=5)
    assert curvature.min_examples == 5


def test_a_package_that_was_a_function_can_be_called():
    with (
        pytest.warns(DeprecationWarning, match="natgrad.compare.compare"),
        pytest.raises(TypeError, match="missing"),
    ):
        ng.compare()


def names_before():
    """(module, name, its public members) of all that was public before."""
    for line in BEFORE.read_text(encoding="utf-8").splitlines():
        dotted, *members = line.split()
        yield *dotted.split(":"), members


def has(owner, member):
    fields = getattr(owner, "__dataclass_fields__", {}), getattr(owner, "_fields", ())
    return any(member in names for names in fields) or hasattr(owner, member)


def lost(module, name, members):
    """Those of these names that are gone."""
    try:
        owner = getattr(importlib.import_module(module), name)
    except (ImportError, AttributeError):
        return {module if module in GONE else f"{module}:{name}"}
    return {f"{module}:{name}.{m}" for m in members if not has(owner, m)}


def test_every_public_name_of_the_version_before_still_resolves():
    with warnings.catch_warnings():
        warnings.simplefilter("ignore", DeprecationWarning)
        gone = set().union(*(lost(*line) for line in names_before()))
    assert gone == set(GONE)


def test_importing_the_library_warns_of_nothing():
    command = [sys.executable, "-W", "error", "-c", "import natgrad, natgrad.compare"]
    subprocess.run(command, check=True)
