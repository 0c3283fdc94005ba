"""Data sets that ship inside scikit-learn, or a person's own, split and scaled.

Read from scikit-learn's own CSV files, or from an .npz file with `inputs` and
`targets`: nothing is downloaded and nothing unpickled. A quarter is held out, by a
permutation that the seed fixes. Inputs have mean 0 and standard deviation 1 over the
training data; the pixels of digits, which share a unit, and inputs of more than one
axis are divided by one standard deviation. A column that never changes becomes 0.
Numbers to predict are standardised too, so that their loss is in units of their spread.
"""

from __future__ import annotations

import dataclasses
import zipfile
from collections.abc import Iterator
from pathlib import Path

import jax.numpy as jnp
import numpy as np

from natgrad.compare.extras import require
from natgrad.curvature import choose
from natgrad.families import Categorical, NormalMean
from natgrad.typing import Array

_HELD_OUT = 0.25
_KEYS = ("inputs", "targets")

# Rows without which there is nothing to hold out.
FEWEST = 8


@dataclasses.dataclass(frozen=True)
class Dataset:
    """A data set ready to train on."""

    name: str
    train: tuple[Array, Array]  # inputs [N, D] or [N, ...], targets
    test: tuple[Array, Array]
    classes: bool  # or numbers?
    outputs: int  # C, that the model must have
    about_targets: str  # what they are taken for, in words

    features = property(lambda data: data.train[0][0].size)
    family = property(lambda data: Categorical() if data.classes else NormalMean())
    score_name = property(lambda data: "accuracy" if data.classes else "R²")
    score = property(lambda data: accuracy if data.classes else r_squared)


# Those that ship inside scikit-learn: do all inputs share a unit?
SOURCES = {"digits": True, "breast_cancer": False, "wine": False, "diabetes": False}


def load(name: str, *, seed: int = 0, limit: int | None = None) -> Dataset:
    """The data set called `name`.

    Args:
        name: in `SOURCES`, or the path of an .npz file; see `read`.
        seed: of the split.
        limit: rows to keep before the split; None for all.

    Raises:
        ValueError: for an unknown name, and a file that is not as it should be.
        MissingExtra: where scikit-learn is not installed.
    """
    inputs, targets, one_unit = _read(name)
    classes = targets.dtype.kind in "iu"
    if len(inputs) < FEWEST:
        raise ValueError(
            f"{name} has {len(inputs)} rows; at least {FEWEST} are needed, of which "
            "a quarter is held out."
        )
    order = np.random.default_rng(seed).permutation(len(inputs))[:limit]
    held_out = max(1, round(_HELD_OUT * len(order)))
    test, train = order[:held_out], order[held_out:]
    inputs = _standardised(inputs, train, one_unit)
    if classes:
        targets, outputs = targets.astype(np.int32), int(targets.max()) + 1
        about = f"{outputs} classes"
    else:
        about = _about_numbers(targets)
        targets = _standardised(targets.reshape(len(targets), -1), train, False)
        outputs = targets.shape[1]
    parts = [(jnp.asarray(inputs[i]), jnp.asarray(targets[i])) for i in (train, test)]
    return Dataset(name, parts[0], parts[1], classes, outputs, about)


def _about_numbers(targets: np.ndarray) -> str:
    """How many numbers are predicted; what they would be as whole ones."""
    count, whole = targets[0].size, np.all(targets == np.floor(targets))
    about = f"{count} to predict as {'a number' if count == 1 else 'numbers'}"
    if targets.ndim > 1 or not whole:
        return about
    values = f"it has {len(np.unique(targets))} whole values"
    return f"{about} ({values}: as integers they would be classes)"


def _read(name: str) -> tuple[np.ndarray, np.ndarray, bool]:
    """Inputs and targets as they are, and whether all inputs share a unit."""
    if name.endswith(".npz"):
        inputs, targets = read(name)
        return inputs, targets, inputs.ndim > 2
    one_unit = choose(SOURCES, name, "data set")
    load_bundled = getattr(require("sklearn.datasets"), f"load_{name}")
    return *load_bundled(return_X_y=True), one_unit


def accuracy(z: Array, y: Array) -> Array:
    """The fraction of examples whose largest logit is that of their class."""
    return jnp.mean((jnp.argmax(z, axis=-1) == y).astype(z.dtype))


def r_squared(z: Array, y: Array) -> Array:
    """1 − (mean squared error) / (variance of the targets)."""
    return 1 - jnp.mean((z - y) ** 2) / jnp.mean((y - jnp.mean(y)) ** 2)


def _standardised(values: np.ndarray, train: np.ndarray, one_unit: bool) -> np.ndarray:
    """Mean 0 and standard deviation 1 over the training rows."""
    values = values.astype(np.float64)
    centred = values - values[train].mean(axis=0)
    axis = None if one_unit else 0
    scale = np.sqrt(np.mean(centred[train] ** 2, axis=axis))
    return centred / np.where(scale == 0, 1, scale)


def read(path: str) -> tuple[np.ndarray, np.ndarray]:
    """(inputs [N, ...], targets [N] or [N, K]) of a file; whole targets are classes.

    Raises:
        ValueError: saying what is wrong with the file, in one line.
    """
    inputs, targets = (
        values.astype(np.int32) if values.dtype.kind == "b" else values
        for values in _arrays(path)
    )
    for fault in _faults(inputs, targets):
        raise ValueError(f"{path}: {fault}.")
    return inputs, targets


def _arrays(path: str) -> list[np.ndarray]:
    if not Path(path).is_file():
        raise ValueError(f"There is no file {path}.")
    try:
        # Opened here: numpy leaves a file open that it cannot read.
        with open(path, "rb") as file:
            archive = np.load(file, allow_pickle=False)
            if not isinstance(archive, np.lib.npyio.NpzFile):
                words = "it is a single array; expected an .npz of inputs, targets"
                raise ValueError(words)
            missing = [repr(key) for key in _KEYS if key not in archive]
            if missing:
                raise ValueError(
                    f"it has no {' and no '.join(missing)}; its arrays are "
                    f"{', '.join(archive.files) or 'none'}. Expected: inputs, targets"
                )
            return [archive[key] for key in _KEYS]
    except (ValueError, EOFError, zipfile.BadZipFile) as error:
        text = str(error).rstrip(".")
        if "pickle" in text:
            text = "it holds Python objects, or is no .npz file; nothing is unpickled"
        raise ValueError(f"{path} cannot be read: {text}.") from error


def _faults(inputs: np.ndarray, targets: np.ndarray) -> Iterator[str]:
    """What is wrong with arrays of a file; after the first nothing else may hold."""
    for name, values in zip(_KEYS, (inputs, targets), strict=True):
        if values.dtype.kind not in "iuf":
            yield f"{name} must be real numbers, got dtype {values.dtype}"
        if not values.ndim:
            yield f"{name} is one number; expected an axis of examples"
        if not values.size:
            yield f"{name} is empty: its shape is {values.shape}"
        if bad := int(np.sum(~np.isfinite(values))):
            yield (
                f"{name} must be finite, got {bad} NaN or infinite of {values.size} "
                "numbers"
            )
    if inputs.ndim == 1:
        yield (
            "inputs must have an axis of examples and at least one more, got shape "
            f"{inputs.shape}"
        )
    if len(inputs) != len(targets):
        yield (
            f"inputs and targets must have as many rows, got shapes {inputs.shape} and "
            f"{targets.shape}"
        )
    if targets.dtype.kind in "iu":
        yield from _faults_of_classes(targets)
    elif targets.ndim > 2:
        yield f"numbers to predict must have shape [N] or [N, K], got {targets.shape}"


def _faults_of_classes(targets: np.ndarray) -> Iterator[str]:
    """The same of whole numbers."""
    if targets.ndim > 1:
        yield (
            f"classes must have shape [N], got {targets.shape}. Numbers to predict "
            "must be floating"
        )
    least, last = int(targets.min()), int(targets.argmax())
    if least < 0:
        yield f"classes are counted from 0, got {least}"
    classes = int(targets[last]) + 1
    if classes > len(targets):
        yield (
            f"targets[{last}] = {classes - 1} makes {classes:,} classes for "
            f"{len(targets)} rows. Correct it, or count the classes from 0 without "
            "gaps; numbers to predict must be floating"
        )
    if classes == least + 1:
        yield f"all targets are of one class, {least}: there is nothing to learn"
