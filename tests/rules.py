"""The rules of the architecture: functions from parsed modules to sentences.

A sentence is a violation; `test_architecture` runs the rules over the library and over
sources made up to break them.
"""

from __future__ import annotations

import ast
import graphlib

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
    lines_of_code,
    names_in,
    of_library,
    parameters,
    under,
)


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
        for module, target in sorted(LATE_IMPORTS.keys() - found):
            yield f"{module} no longer imports {target} late: take it off the list"


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
    """The optax code never names a concrete curvature; a part of any is none."""
    known = {"natgrad.curvature.base", "natgrad.curvature.sub_batch"}
    for name in sorted(name for name in modules if under(name, "natgrad.transforms")):
        if under(name, "natgrad.transforms.adaptive"):
            continue
        for target, _ in imports(modules[name], modules):
            if under(target, "natgrad.curvature") and target not in known:
                yield f"{name} imports {target}; {sorted(known)} is all it may know"


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
