"""What the command needs beside natgrad's own dependencies: the `report` extra."""

from __future__ import annotations

import importlib
from types import ModuleType

# What no extra installs.
_OUTSIDE = frozenset({"pandas"})


class MissingExtra(ImportError):
    """A package of the `report` extra is not installed."""


def require(module: str) -> ModuleType:
    """Import `module`, which the `report` extra installs.

    Raises:
        MissingExtra: saying what to install.
    """
    try:
        return importlib.import_module(module)
    except ModuleNotFoundError as error:
        package = (error.name or module).partition(".")[0]
        package = {"sklearn": "scikit-learn"}.get(package, package)
        what = package if package in _OUTSIDE else "'natgrad[report]'"
        raise MissingExtra(
            f"This needs {package}, which is not installed: pip install {what}"
        ) from error
