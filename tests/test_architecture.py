"""The layers of the library, read from its imports; every rule is itself tested.

A rule is a function from parsed modules to sentences, one for each violation. It runs
over the library, where it must find nothing, and over sources made up to break it.
"""

from __future__ import annotations

import pytest
from layering import (
    MAX_LINES,
)
from modules import (
    imports,
    library,
    made_up,
)
from rules import (
    concrete_curvatures_in_transform,
    cycles,
    files_that_only_reexport,
    hidden_modules,
    hidden_stop_gradients,
    imports_of_chex,
    jaxprs_outside_layers,
    large_functions,
    late_imports,
    long_files,
    many_root_files,
    optax_imports,
    precision_switches,
    private_jax,
    upward_imports,
)

# A rule -> sources that break it. Beside each, what the rule must say.
BROKEN = {
    upward_imports: [
        (made_up(tree="from natgrad.model import Model", model=""), "tree imports"),
        (made_up(tree="from natgrad import model", model=""), "natgrad.model, which"),
        (made_up(tree="from . import model", model=""), "natgrad.model, which"),
        (made_up(metrics="import natgrad.curvature.dense"), "metrics imports"),
        (made_up(tree="from natgrad import Model", init=""), "imports natgrad, which"),
        (made_up(tree="def f():\n    import natgrad.model"), "tree imports"),
        (made_up(families__base="from ..model import Model", model=""), "base imports"),
        (made_up(helpers=""), "natgrad.helpers has no place"),
        (made_up(tree="import natgrad.helpers"), "natgrad.helpers, which"),
    ],
    cycles: [
        (
            made_up(
                metrics="from natgrad.solvers import f",
                solvers="from natgrad import layers",
                layers="import natgrad.metrics",
            ),
            "import cycle",
        ),
        (
            made_up(families__a="from . import b", families__b="from . import a"),
            "cycle",
        ),
    ],
    late_imports: [
        (made_up(tree="def f():\n    import scipy"), "scipy inside"),
        (made_up(tree="class A:\n  def f(self):\n    from rich import x"), "rich.x"),
    ],
    private_jax: [
        (made_up(tree="from jax._src import core"), "tree uses"),
        (made_up(tree="import jax._src.core as c"), "tree uses"),
        (made_up(tree="import jax\njax._src.core.Primitive('p')"), "tree uses"),
    ],
    long_files: [(made_up(tree="x = 1\n" * (MAX_LINES + 1)), "301 lines")],
    many_root_files: [
        (made_up(init="", a="", b="", c="", d="", e="", f=""), "7 files at the root"),
    ],
    large_functions: [
        (made_up(tree="def f():\n" + "    x = 1\n" * 60), "tree.f has 61 lines"),
        (
            made_up(tree="class A:\n  def f(self):\n" + "    x = 1\n" * 60),
            "tree.A.f has 61 lines",
        ),
        (
            made_up(
                tree="def f():\n  def g():\n" + "    x = 1\n" * 50 + "  y = 1\n" * 9
            ),
            "tree.f has 61 lines",
        ),
        (made_up(tree="def f(a, b, c, d, /, e, f, *, g, h, i): 1"), "9 parameters"),
        (made_up(tree="def f(a, b, c, d, e, f, g, *h, **i): 1"), "9 parameters"),
        (
            made_up(tree="class A:\n  def f(self, a, b, c, d, e, f, g, h, i): 1"),
            "9 parameters",
        ),
        (made_up(tree="async def f(a, b, c, d, e, f, g, h, i): 1"), "9 parameters"),
    ],
    hidden_modules: [
        (
            made_up(layers="from natgrad.layers.conv import conv", layers__conv=""),
            "hides the module natgrad.layers.conv",
        ),
        (
            made_up(layers="from .dense import f as conv", layers__conv=""),
            "layers binds conv",
        ),
        (made_up(layers="def conv(): pass", layers__conv=""), "binds conv"),
        (made_up(layers="class conv: pass", layers__conv=""), "binds conv"),
        (made_up(layers="conv = 1", layers__conv=""), "binds conv"),
    ],
    hidden_stop_gradients: [
        (made_up(metric="import jax\njax.lax.stop_gradient(1.0)"), "metric uses"),
        (made_up(metric="def f(stop_gradient): stop_gradient(1.0)"), "metric uses"),
        (made_up(init="", solvers__dense=""), "solvers.dense no longer uses"),
    ],
    optax_imports: [
        (made_up(metric="import optax"), "metric uses optax"),
        (made_up(curvature__a="from optax.tree import x"), "curvature.a uses optax"),
        (made_up(init="", transforms=""), "transforms no longer uses"),
    ],
    precision_switches: [
        (made_up(tree="import jax\njax.enable_x64(True)"), "tree uses"),
        (made_up(tree="jax.config.update('jax_enable_x64', True)"), "tree uses"),
        (made_up(init="", solvers__spectral=""), "spectral no longer uses"),
    ],
    jaxprs_outside_layers: [
        (made_up(model="import jax\njax.make_jaxpr(f)"), "model works"),
        (made_up(model="from jax import make_jaxpr"), "model works"),
        (made_up(model="import jax.extend as jex"), "model works"),
        (made_up(model="from jax.extend.core import Jaxpr"), "model works"),
        (made_up(model="import jax\njax.extend.core.jaxpr_as_fun"), "model works"),
    ],
    concrete_curvatures_in_transform: [
        (
            made_up(transforms__a="from natgrad.curvature.dense import Dense"),
            "natgrad.curvature.dense",
        ),
        (
            made_up(transforms__state="from natgrad.curvature import Dense"),
            "is all it may know",
        ),
    ],
    imports_of_chex: [(made_up(tree="import chex"), "tree imports chex")],
    files_that_only_reexport: [
        (made_up(tree='"""Doc."""\nfrom natgrad.typing import Array'), "only hands on"),
        (made_up(tree="import jax\n__all__ = ['jax']"), "only hands on"),
    ],
}
# Sources that look suspicious and break nothing.
FINE = made_up(
    init='"""Root."""\nfrom natgrad.model import Model\nx = 1',
    typing="import jax\nArray = jax.Array",
    tree="from natgrad.typing import Array\nN = 1",
    tree__layout="import optax\nN = optax.MaskedNode",
    model="from natgrad import tree\nfrom natgrad.typing import A\nx = 'make_jaxpr'",
    layers__taps="import jax\nimport jax.extend as jex\nf = jax.make_jaxpr(abs)",
    metrics="from natgrad.solvers import f\nx = 'jax._src stop_gradient'",
    solvers__dense="import jax\nfrom natgrad.tree import N\nf = jax.lax.stop_gradient",
    compare__report="def plot():\n    import matplotlib",
    compare__run="import optax\nfrom natgrad.compare import report\ny = report",
    geometry="from natgrad.geometry import points",
    geometry__points="def f(a, b, c, d, e, f, g, h): 1",
    geometry__roots="def f():\n  '" + "A\\\n" * 60 + "'\n" + "  x = 1\n" * 59,
    main="def main():\n    from natgrad.compare import report",
)
RULES = list(BROKEN)
LIBRARY = library()


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_the_library_keeps_the_rule(rule):
    assert list(rule(LIBRARY)) == []


@pytest.mark.parametrize(
    ("rule", "modules", "words"),
    [(rule, *case) for rule, cases in BROKEN.items() for case in cases],
)
def test_the_rule_finds_what_breaks_it(rule, modules, words):
    assert words in "; ".join(rule(modules))


@pytest.mark.parametrize("rule", RULES, ids=lambda rule: rule.__name__)
def test_the_rule_finds_nothing_in_sources_that_keep_it(rule):
    found = [line for line in rule(FINE) if "no longer" not in line]
    assert found == []


def test_the_files_are_really_read():
    assert {"natgrad", "natgrad.tree", "natgrad.curvature.dense"} <= LIBRARY.keys()
    targets = {
        i.target
        for i in imports(LIBRARY["natgrad.transforms.scale_by_curvature"], LIBRARY)
    }
    assert {"optax", "natgrad.tree", "natgrad.curvature.base"} <= targets | {
        target.rpartition(".")[0] for target in targets
    }
