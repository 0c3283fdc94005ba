"""Data sets that ship inside scikit-learn, or a person's own, split and scaled.

Read from scikit-learn's own CSV files, or from an .npz file: nothing is downloaded and
nothing unpickled. A quarter is held out, by a permutation that the seed fixes. Inputs
have mean 0 and standard deviation 1 over the training data; the pixels of digits, which
share a unit, and inputs of more than one axis are divided by one standard deviation. A
column that never changes becomes 0. Numbers to predict are standardised too, so that
their loss is in units of their spread.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax.numpy as jnp
import numpy as np

from natgrad.cli import user_data
from natgrad.compare.extras import require
from natgrad.curvature import choose
from natgrad.families import Categorical, Family, NormalMean
from natgrad.typing import Array

_HELD_OUT = 0.25

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
        name: in `SOURCES`, or the path of an .npz file; see `natgrad.cli.user_data`.
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
        inputs, targets = user_data.read(name)
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
