"""Means over random probes, and their standard errors."""

from __future__ import annotations

import math
from collections.abc import Sequence

import numpy as np

from natgrad.compare.figures import Spectrum, ratio


def mean(values: Sequence[float] | np.ndarray) -> tuple[float, float]:
    """The mean and its standard error."""
    array = np.asarray(values, float)
    return float(array.mean()), float(array.std(ddof=1) / math.sqrt(len(array)))


def ratio_of_means(
    numerators: Sequence[float], denominators: Sequence[float]
) -> tuple[float, float]:
    """mean a / mean b of pairs, and its standard error to first order."""
    a, b = np.asarray(numerators, float), np.asarray(denominators, float)
    value = ratio(a.mean(), b.mean())
    return value, ratio(mean(a - value * b)[1], abs(b.mean()))


def root_of_ratio(
    numerators: Sequence[float], denominators: Sequence[float]
) -> tuple[float, float]:
    """√(mean a / mean b) of pairs of squares, and its standard error to first order."""
    value, noise = ratio_of_means(numerators, denominators)
    root = math.sqrt(value) if value >= 0 else math.nan
    return root, (noise / (2 * root) if root else 0.0)


def outweighing(eigenvalues: np.ndarray, damping: float) -> np.ndarray:
    """a/(a + λ), 0 for a <= 0."""
    positive = np.maximum(eigenvalues, 0)
    damped = positive + damping
    return np.divide(positive, damped, out=np.zeros_like(damped), where=damped > 0)


def extreme_ratios(damped: np.ndarray, change: np.ndarray) -> tuple[float, float]:
    """Lowest and highest eigenvalue of I + W C W with W = (F + λI)^-½; NaN if singular.

    Args:
        damped: F + λI in some basis.
        change: C = A − F in the same.
    """
    values, vectors = np.linalg.eigh(damped)
    if values[0] <= 0:
        return math.nan, math.nan
    whiten = vectors / np.sqrt(values)
    ratios = 1 + np.linalg.eigvalsh(whiten.T @ change @ whiten)
    return float(ratios[0]), float(ratios[-1])


def spectrum(quadratures: Sequence[tuple[np.ndarray, np.ndarray]]) -> Spectrum:
    """The eigenvalues that quadratures stand for: ranks from their summed weights."""
    nodes, weights = (np.concatenate(x) for x in zip(*quadratures, strict=True))
    order = np.argsort(-nodes)
    ranks = np.cumsum(weights[order]) / len(quadratures)
    return Spectrum(tuple(ranks.tolist()), tuple(nodes[order].tolist()))
