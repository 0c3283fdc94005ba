"""The layers of the library, read from its imports; every rule is itself tested.

A rule is a function from parsed modules to sentences, one for each violation. It runs
over the library, where it must find nothing, and over sources made up to break it.
"""

from __future__ import annotations

import ast
import graphlib

import pytest
from layering import (
    CONTROL_FLOW,
    HIDDEN_MODULES,
    LATE_IMPORTERS,
    LATE_IMPORTS,
    LAYERS,
    MAX_LINES,
    MAX_LINES_OF_FUNCTION,
    MAX_PARAMETERS,
    MAX_ROOT_FILES,
    OPTAX,
    STOP_GRADIENT,
    TOO_LARGE,
    X64,
)
from modules import (
    bound_names,
    functions,
    imports,
    library,
    lines_of_code,
    made_up,
    names_in,
    of_library,
    parameters,
    under,
)

# The rules --------------------------------------------------------------------------


def layer(name: str) -> int | None:
    parts = name.split(".")
    top = parts[1] if len(parts) > 1 else "__init__"
    return next((i for i, names in enumerate(LAYERS) if top in names), None)


def upward_imports(modules):
    """Imports go down only."""
    for module in modules.values():
        here = layer(module.name)
        if here is None:
            yield f"{module.name} has no place in LAYERS"
            continue
        for target, _ in imports(module, modules):
            there = layer(target) if of_library(target) else -1
            if there is None or there > here:
                yield f"{module.name} imports {target}, which lies above it"


def cycles(modules):
    """No module imports itself, however long the way."""
    graph = {
        module.name: {i.target for i in imports(module, modules)} & modules.keys()
        for module in modules.values()
    }
    try:
        graphlib.TopologicalSorter(graph).prepare()
    except graphlib.CycleError as error:
        yield "import cycle: " + " <- ".join(error.args[1])


def late_imports(modules):
    """No import hides in a function, but for the extras of `compare`."""
    found = set()
    for module in modules.values():
        if any(under(module.name, prefix) for prefix in LATE_IMPORTERS):
            continue
        for target, late in imports(module, modules):
            if late and (module.name, target) not in LATE_IMPORTS:
                yield f"{module.name} imports {target} inside a function"
            elif late:
                found.add((module.name, target))
    if "natgrad" in modules:
        yield from (f"{name} in LATE_IMPORTS" for name in LATE_IMPORTS.keys() - found)


def private_jax(modules):
    """Nothing touches jax's private modules."""
    for module in modules.values():
        used = {i.target for i in imports(module, modules)} | set(names_in(module))
        if any(under(name, "jax._src") for name in used):
            yield f"{module.name} uses jax._src"


def long_files(modules):
    """A file is read in one sitting."""
    for module in modules.values():
        lines = module.source.count("\n")
        if lines > MAX_LINES:
            yield f"{module.name} has {lines} lines; {MAX_LINES} at most"


def many_root_files(modules):
    """The first page of the library is short: what is more belongs into a package."""
    files = [m.name for m in modules.values() if m.name.count(".") + m.package <= 1]
    if len(files) > MAX_ROOT_FILES:
        yield f"{len(files)} files at the root ({', '.join(sorted(files))}); 6 at most"


def large_functions(modules):
    """A function fits a screen, and a call fits a line or two."""
    large = {}
    for module in modules.values():
        for name, function in functions(module):
            lines, count = lines_of_code(function), len(parameters(function))
            full_name = f"{module.name}.{name}"
            if lines > MAX_LINES_OF_FUNCTION:
                large[full_name] = f"has {lines} lines; {MAX_LINES_OF_FUNCTION} at most"
            if count > MAX_PARAMETERS:
                large[full_name] = f"has {count} parameters; {MAX_PARAMETERS} at most"
    yield from (f"{n} {large[n]}" for n in sorted(large.keys() - TOO_LARGE.keys()))
    if "natgrad" in modules:
        for name in sorted(TOO_LARGE.keys() - large.keys()):
            yield f"{name} is no longer too large: take it off the list"


def hidden_modules(modules):
    """`import natgrad.a.b as m` gives the module b, and no function of that name."""
    hidden = {
        (module.name, name)
        for module in modules.values()
        for name, source in bound_names(module)
        if module.package and f"{module.name}.{name}" in modules.keys() - {source}
    }
    for package, name in sorted(hidden - HIDDEN_MODULES.keys()):
        yield f"{package} binds {name}, which hides the module {package}.{name}"
    if "natgrad" in modules:
        for package, name in sorted(HIDDEN_MODULES.keys() - hidden):
            yield f"{package} no longer hides its module {name}: take it off the list"


def hidden_stop_gradients(modules):
    """Nothing is stopped unless there is a reason."""
    users = {m.name for m in modules.values() if "stop_gradient" in set(names_in(m))}
    yield from allowed(users, STOP_GRADIENT, "stop_gradient", modules)


def optax_imports(modules):
    """Curvatures, metrics and models do not know of optax."""
    packages = ("transforms", "compare", "optimizers", "cli")
    packages = tuple(f"natgrad.{name}" for name in packages)
    users = {
        next((p for p in packages if under(module.name, p)), module.name)
        for module in modules.values()
        if any(under(i.target, "optax") for i in imports(module, modules))
    }
    yield from allowed(users, OPTAX, "optax", modules)


def precision_switches(modules):
    """Nothing switches x64 on, whose callers would then compute in other types."""
    packages = ("natgrad.cli", "natgrad.layers")
    users = {
        next((p for p in packages if under(module.name, p)), module.name)
        for module in modules.values()
        if "enable_x64" in set(names_in(module))
        or "jax_enable_x64'" in module.source
        or 'jax_enable_x64"' in module.source
    }
    yield from allowed(users, X64, "enable_x64", modules)


def allowed(users, reasons, what, modules):
    for name in sorted(users - reasons.keys()):
        yield f"{name} uses {what}; give a reason in the list above, or another way"
    if "natgrad" in modules:  # the whole library
        for name in sorted((reasons.keys() - users) & modules.keys()):
            yield f"{name} no longer uses {what}: take it off the list"


def jaxprs_outside_layers(modules):
    """Only `layers` reads programs, and `control_flow` lifts what they close over."""
    words = {"make_jaxpr", "eval_jaxpr", "ClosedJaxpr", "Jaxpr", "JaxprEqn"}
    for module in modules.values():
        if under(module.name, "natgrad.layers") or module.name == CONTROL_FLOW:
            continue
        targets = {i.target for i in imports(module, modules)}
        names = targets | set(names_in(module))
        ends = {target.rpartition(".")[2] for target in targets} | names
        if words & ends or any(under(name, "jax.extend") for name in names):
            yield f"{module.name} works on jaxprs"


def concrete_curvatures_in_transform(modules):
    """The optax code never names a concrete curvature."""
    for name in sorted(name for name in modules if under(name, "natgrad.transforms")):
        if under(name, "natgrad.transforms.adaptive"):
            continue
        for target, _ in imports(modules[name], modules):
            if (
                under(target, "natgrad.curvature")
                and target != "natgrad.curvature.base"
            ):
                yield f"{name} imports {target}; curvature.base is all it may know"


def imports_of_chex(modules):
    """chex checks tests; users of the library get a ValueError."""
    for module in modules.values():
        if any(under(i.target, "chex") for i in imports(module, modules)):
            yield f"{module.name} imports chex"


def files_that_only_reexport(modules):
    """Only a package's `__init__` may consist of imports."""
    for module in modules.values():
        body = [
            node
            for node in module.tree.body
            if not isinstance(node, ast.Import | ast.ImportFrom | ast.Expr)
            and not (isinstance(node, ast.Assign) and "__all__" in ast.unparse(node))
        ]
        if not body and not module.package:
            yield f"{module.name} only hands on other modules' names"


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
            "curvature.base is all",
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
    model__placeholders="import optax\nN = optax.MaskedNode",
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
