"""What is registered, and what an import costs."""

from __future__ import annotations

import importlib
import inspect
import os
import pkgutil
import subprocess
import sys

import contract
import jax.numpy as jnp
from modules import PACKAGE

import natgrad as ng


def concrete(base, package) -> set[type]:
    """Every class of a package that is a `base` and can be built."""
    found = set()
    for info in pkgutil.walk_packages(package.__path__, package.__name__ + "."):
        for _, cls in inspect.getmembers(importlib.import_module(info.name)):
            if inspect.isclass(cls) and issubclass(cls, base):
                found |= set() if inspect.isabstract(cls) else {cls}
    return found


def built_by(registry) -> set[type]:
    model = ng.Model(
        lambda params, x: x @ params["w"],
        ng.families.Categorical(),
        example_inputs=jnp.ones((1, 2)),
    )
    return {type(make(model)) for make in registry.values()}


def test_every_concrete_curvature_is_registered():
    classes = concrete(ng.curvature.Curvature, ng.curvature)
    assert ng.curvature.Dense in classes
    # Choosing among others, or changing one, is no approximation of its own.
    classes -= concrete(ng.curvature.Delegate, ng.curvature)
    classes -= {ng.curvature.GramOfTheBatch, ng.curvature.OfTheBatch}
    assert classes == built_by(ng.CURVATURES)
    without = {name: make for name, make in ng.CURVATURES.items() if name != "diagonal"}
    assert classes - built_by(without) == {ng.curvature.Diagonal}


def test_every_optimizer_with_a_learning_rate_meets_the_contract():
    """The table is read off signatures: were it empty, its tests would be skipped."""
    found = {"natural_gradient", "gram", "spring", "matrix_free", "kfac", "ekfac"}
    found |= {"diagonal_fisher", "empirical_fisher", "gram_blocks", "march"}
    assert set(contract.ALIASES) == found


def test_concrete_curvatures_are_exported_and_final():
    for cls in concrete(ng.curvature.Curvature, ng.curvature):
        assert getattr(ng.curvature, cls.__name__) is cls
        assert getattr(cls, "__final__", False), f"{cls.__name__} is not @final"
        assert cls.__name__ in ng.curvature.__all__


def test_importing_natgrad_loads_no_optional_package_and_warns_of_nothing():
    optional = "rich matplotlib sklearn flax equinox distrax numpyro haiku orbax pandas"
    program = (
        "import sys, natgrad, natgrad.__main__\n"
        f"print(*(set({optional.split()}) & set(sys.modules)))\n"
        "print('jax' in sys.modules, 'natgrad.compare.doctor' in sys.modules)\n"
        "print(natgrad.doctor.__name__)"
    )
    path = os.pathsep.join([str(PACKAGE.parent), os.environ.get("PYTHONPATH", "")])
    done = subprocess.run(
        [sys.executable, "-W", "error", "-c", program],
        capture_output=True,
        text=True,
        check=False,
        env={**os.environ, "PYTHONPATH": path, "JAX_PLATFORMS": "cpu"},
    )
    assert done.stderr == ""
    assert done.stdout.split("\n")[:3] == ["", "True False", "doctor"]
