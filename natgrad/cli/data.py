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
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax.numpy as jnp
import numpy as np

from natgrad.compare.extras import require
from natgrad.curvature import choose
from natgrad.families import Categorical, Family, NormalMean
from natgrad.typing import Array

_HELD_OUT = 0.25
_KEYS = ("inputs", "targets")

# Rows without which there is nothing to hold out.
FEWEST = 8


@dataclasses.dataclass(frozen=True)
class Dataset:
    """A data set ready to train on.

    Attributes:
        name: of the source.
        train: (inputs [N, D] or [N, ...], targets).
        test: (inputs, targets).
        family: the law of the targets.
        outputs: C, outputs the model must have.
        score_name: what `score` is.
        score: (outputs, targets) -> a number, the higher the better.
        about_targets: what they are taken for, in words.
    """

    name: str
    train: tuple[Array, Array]
    test: tuple[Array, Array]
    family: Family
    outputs: int
    score_name: str
    score: Callable[[Array, Array], Array]
    about_targets: str

    @property
    def features(self) -> int:
        """D."""
        return self.train[0][0].size

    @property
    def classes(self) -> bool:
        """Are the targets classes?"""
        return self.score_name == "accuracy"


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
        targets = targets.astype(np.int32)
        family, outputs = Categorical(), int(targets.max()) + 1
        score_name, score, about = "accuracy", accuracy, f"{outputs} classes"
    else:
        about = _about_numbers(targets)
        targets = targets[:, None] if targets.ndim == 1 else targets
        targets = _standardised(targets, train, one_unit=False)
        family, outputs = NormalMean(), targets.shape[1]
        score_name, score = "R²", r_squared
    return Dataset(
        name=name,
        train=(jnp.asarray(inputs[train]), jnp.asarray(targets[train])),
        test=(jnp.asarray(inputs[test]), jnp.asarray(targets[test])),
        family=family,
        outputs=outputs,
        score_name=score_name,
        score=score,
        about_targets=about,
    )


def _about_numbers(targets: np.ndarray) -> str:
    """How many numbers are predicted; what they would be as whole ones."""
    count = targets[0].size
    about = f"{count} to predict as {'a number' if count == 1 else 'numbers'}"
    if targets.ndim == 1 and np.all(targets == np.floor(targets)):
        about += (
            f" (it has {len(np.unique(targets))} whole values: as integers they would "
            "be classes)"
        )
    return about


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
