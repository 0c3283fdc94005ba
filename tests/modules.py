"""The library as parsed modules, and what they import and name."""

from __future__ import annotations

import ast
import functools
from collections.abc import Iterator
from pathlib import Path
from typing import NamedTuple

import natgrad as ng

PACKAGE = Path(ng.__file__).parent

parsed = functools.cache(ast.parse)


class Module(NamedTuple):
    """A file."""

    name: str
    package: bool
    source: str

    @property
    def tree(self):
        return parsed(self.source)


class Import(NamedTuple):
    """One imported name: `target` is a module of the library, or a dotted name."""

    target: str
    late: bool


def library() -> dict[str, Module]:
    modules = {}
    for path in sorted(PACKAGE.rglob("*.py")):
        parts = path.relative_to(PACKAGE.parent).with_suffix("").parts
        package = parts[-1] == "__init__"
        name = ".".join(parts[:-1] if package else parts)
        modules[name] = Module(name, package, path.read_text(encoding="utf-8"))
    return modules


def made_up(**sources: str) -> dict[str, Module]:
    """Modules from text; `a__b` stands for natgrad.a.b, `init` for natgrad itself."""
    names = {
        key: "natgrad" if key == "init" else "natgrad." + key.replace("__", ".")
        for key in sources
    }
    names |= {key: "natgrad.__main__" for key in sources if key == "main"}
    packages = {name.rpartition(".")[0] for name in names.values()}
    return {
        names[key]: Module(names[key], names[key] in packages, source)
        for key, source in sources.items()
    }


def imports(module: Module, modules: dict[str, Module]) -> Iterator[Import]:
    """Every import of a module, wherever it stands."""
    functions = (ast.FunctionDef, ast.AsyncFunctionDef, ast.Lambda)
    late = {
        id(inner)
        for node in ast.walk(module.tree)
        if isinstance(node, functions)
        for inner in ast.walk(node)
    }
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Import):
            for alias in node.names:
                yield Import(alias.name, id(node) in late)
        elif isinstance(node, ast.ImportFrom):
            base = _base(node, module)
            for alias in node.names:
                full_name = f"{base}.{alias.name}"
                inside = of_library(base) and full_name not in modules
                yield Import(base if inside else full_name, id(node) in late)


def _base(node: ast.ImportFrom, module: Module) -> str:
    """The full name of what `from ... import` imports from."""
    if not node.level:
        return node.module or ""
    above = module.name.split(".")
    keep = len(above) - node.level + module.package
    return ".".join([*above[:keep], *filter(None, [node.module])])


def of_library(name: str) -> bool:
    return name.split(".")[0] == "natgrad"


def under(name: str, prefix: str) -> bool:
    return name == prefix or name.startswith(prefix + ".")


def names_in(module: Module) -> Iterator[str]:
    """Dotted names that are used, such as jax.lax.stop_gradient, and their ends."""
    for node in ast.walk(module.tree):
        if isinstance(node, ast.Attribute | ast.Name):
            dotted = ast.unparse(node)
            yield dotted
            yield dotted.rpartition(".")[2]


Function = ast.FunctionDef | ast.AsyncFunctionDef


def functions(module: Module) -> Iterator[tuple[str, Function]]:
    """The functions of a module and their names in it, those inside others too."""

    def of(node, prefix):
        for child in ast.iter_child_nodes(node):
            inner = prefix
            if isinstance(child, Function | ast.ClassDef):
                inner = f"{prefix}{child.name}."
            if isinstance(child, Function):
                yield inner.rstrip("."), child
            yield from of(child, inner)

    yield from of(module.tree, "")


def lines_of_code(function: Function) -> int:
    """Lines from `def` to the end, without the docstring."""
    lines = function.end_lineno - function.lineno + 1
    first = function.body[0]
    if ast.get_docstring(function) is not None:
        lines -= first.end_lineno - first.lineno + 1
    return lines


def parameters(function: Function) -> list[str]:
    """Names of the parameters, but for `self` and `cls`."""
    every = function.args
    names = [a.arg for a in (*every.posonlyargs, *every.args, *every.kwonlyargs)]
    names += [a.arg for a in (every.vararg, every.kwarg) if a is not None]
    return [name for name in names if name not in ("self", "cls")]


def bound_names(module: Module) -> Iterator[tuple[str, str]]:
    """(name, full name of what it is) for each name that the module's lines bind."""
    for node in module.tree.body:
        if isinstance(node, ast.ImportFrom):
            base = _base(node, module)
            for alias in node.names:
                yield alias.asname or alias.name, f"{base}.{alias.name}"
        elif isinstance(node, Function | ast.ClassDef):
            yield node.name, f"{module.name}:{node.name}"
        elif isinstance(node, ast.Assign):
            for target in node.targets:
                yield ast.unparse(target), f"{module.name}:{ast.unparse(target)}"
