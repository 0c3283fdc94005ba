"""A person's own data: an .npz file with `inputs` and `targets`, never unpickled."""

from __future__ import annotations

import zipfile
from pathlib import Path
from typing import Any

import numpy as np

_KEYS = ("inputs", "targets")


def read(path: str) -> tuple[np.ndarray, np.ndarray]:
    """(inputs [N, ...], targets [N] or [N, K]) of a file; whole targets are classes.

    Raises:
        ValueError: saying what is wrong with the file, in one line.
    """
    inputs, targets = (_checked(path, *item) for item in _arrays(path).items())
    if inputs.ndim < 2:
        raise ValueError(
            f"{path}: inputs must have an axis of examples and at least one more, got "
            f"shape {inputs.shape}."
        )
    if len(inputs) != len(targets):
        raise ValueError(
            f"{path}: inputs and targets must have as many rows, got shapes "
            f"{inputs.shape} and {targets.shape}."
        )
    if targets.dtype.kind in "iu":
        _check_classes(path, targets)
        return inputs, targets
    if targets.ndim > 2:
        raise ValueError(
            f"{path}: numbers to predict must have shape [N] or [N, K], got "
            f"{targets.shape}."
        )
    return inputs, targets


def _arrays(path: str) -> dict[str, np.ndarray]:
    if not Path(path).is_file():
        raise ValueError(f"There is no file {path}.")
    try:
        # Opened here: numpy leaves a file open that it cannot read.
        with open(path, "rb") as file:
            return _taken(np.load(file, allow_pickle=False))
    except (ValueError, EOFError, zipfile.BadZipFile) as error:
        text = str(error).rstrip(".")
        if "pickle" in text:
            text = "it holds Python objects, or is no .npz file; nothing is unpickled"
        raise ValueError(f"{path} cannot be read: {text}.") from error


def _taken(archive: Any) -> dict[str, np.ndarray]:
    if not isinstance(archive, np.lib.npyio.NpzFile):
        raise ValueError("it is a single array; expected an .npz of inputs, targets")
    missing = [key for key in _KEYS if key not in archive]
    if missing:
        raise ValueError(
            f"it has no {' and no '.join(map(repr, missing))}; its arrays are "
            f"{', '.join(archive.files) or 'none'}. Expected: inputs, targets"
        )
    return {key: archive[key] for key in _KEYS}


def _checked(path: str, name: str, values: np.ndarray) -> np.ndarray:
    """Real and finite numbers."""
    if values.dtype.kind == "b":
        values = values.astype(np.int32)
    if values.dtype.kind not in "iuf":
        raise ValueError(
            f"{path}: {name} must be real numbers, got dtype {values.dtype}."
        )
    if values.ndim == 0:
        raise ValueError(f"{path}: {name} is one number; expected an axis of examples.")
    if values.size == 0:
        raise ValueError(f"{path}: {name} is empty: its shape is {values.shape}.")
    bad = int(np.sum(~np.isfinite(values)))
    if bad:
        raise ValueError(
            f"{path}: {name} must be finite, got {bad} NaN or infinite of "
            f"{values.size} numbers."
        )
    return values


def _check_classes(path: str, targets: np.ndarray) -> None:
    if targets.ndim != 1:
        raise ValueError(
            f"{path}: classes must have shape [N], got {targets.shape}. Numbers to "
            "predict must be floating."
        )
    if targets.min() < 0:
        raise ValueError(
            f"{path}: classes are counted from 0, got {int(targets.min())}."
        )
    last = int(targets.argmax())
    if (classes := int(targets[last]) + 1) > len(targets):
        raise ValueError(
            f"{path}: targets[{last}] = {classes - 1} makes {classes:,} classes for "
            f"{len(targets)} rows. Correct it, or count the classes from 0 without "
            "gaps; numbers to predict must be floating."
        )
    found = np.unique(targets)
    if len(found) < 2:
        raise ValueError(
            f"{path}: all targets are of one class, {int(found[0])}: there is nothing "
            "to learn."
        )
