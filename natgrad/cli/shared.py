"""What the commands share: exit codes, errors, numerics, and writing of results.

A file is either all there or not there at all.
"""

from __future__ import annotations

import contextlib
import json
import math
import os
import tempfile
from collections.abc import Callable, Iterator
from pathlib import Path
from typing import Any, BinaryIO

import jax

from natgrad.compare.extras import require

# Exit codes: what went wrong while running, what was asked wrongly, and Ctrl-C.
FAILED, USAGE, INTERRUPTED = 1, 2, 130


class UsageError(Exception):
    """The command line asks for what does not exist or cannot be."""


@contextlib.contextmanager
def numerics(*, x64: bool) -> Iterator[None]:
    """Compute in this precision, with LAPACK on one thread.

    OpenBLAS's threads spin while they wait, which on a busy machine makes a
    factorisation some ten times slower. XLA keeps its threads.
    """
    limits = require("threadpoolctl").threadpool_limits
    with (
        jax.enable_x64(x64 or jax.config.values["jax_enable_x64"]),
        limits(1, user_api="blas"),
    ):
        yield


def write_atomically(path: Path, write: Callable[[BinaryIO], object]) -> None:
    """Call write(file), then put the file in place; on any failure leave no trace."""
    path.parent.mkdir(parents=True, exist_ok=True)
    temporary = path.with_name(f".{path.name}.{os.getpid()}")
    try:
        with open(temporary, "xb") as file:
            write(file)
        os.replace(temporary, path)
    except BaseException as error:
        temporary.unlink(missing_ok=True)
        if isinstance(error, OSError):  # name the file: a full disk names none
            raise OSError(f"cannot write {path}: {error.strerror or error}") from error
        raise


def write_json(path: Path, record: dict[str, Any]) -> None:
    """Write `json_bytes` of a record."""
    write_atomically(path, lambda file: file.write(json_bytes(record)))


def json_bytes(record: dict[str, Any]) -> bytes:
    """`record` as JSON that any parser reads: a number that is not finite is null."""
    text = json.dumps(_finite(record), indent=2, ensure_ascii=False, allow_nan=False)
    return f"{text}\n".encode()


def check_directory(path: Path) -> None:
    """Raise an OSError unless files can be written to `path`, made if missing."""
    place = path
    while not place.exists() and place != place.parent:
        place = place.parent
    if not place.is_dir():
        raise NotADirectoryError(f"cannot write to {path}: {place} is not a directory.")
    try:
        tempfile.TemporaryFile(dir=place).close()
    except OSError as error:
        reason = error.strerror or str(error)
        raise OSError(f"cannot write to {path}: {reason} in {place}.") from error


def _finite(node: Any) -> Any:
    if isinstance(node, dict):
        return {key: _finite(value) for key, value in node.items()}
    if isinstance(node, list | tuple):
        return [_finite(value) for value in node]
    if isinstance(node, float) and not math.isfinite(node):
        return None
    return node
