"""What the command needs beside natgrad's own dependencies: the `report` extra."""

from __future__ import annotations

import importlib
from types import ModuleType


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
        raise MissingExtra(
            f"This needs {package}, which is not installed: "
            "pip install 'natgrad[report]'"
        ) from error
