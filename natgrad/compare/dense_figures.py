"""Figures from matrices [P, P], in float64 on the host: exact, for small models."""

from __future__ import annotations

import math
from collections.abc import Sequence

import jax
import numpy as np

from natgrad.compare.figures import Figures, Part, Spectrum, ratio, step_figures
from natgrad.metrics.base import Metric
from natgrad.typing import Array

# Eigenvalues of a spectrum that are kept.
_KEPT = 128


class DenseFigures:
    """F as a matrix, decomposed on all parameters and on the blocks after them.

    Attributes:
        norm: ‖F‖_F.
        spectrum: eigenvalues of F.
    """

    def __init__(self, metric: Metric, parts: Sequence[Part], damping: float):
        matrix, self._damping = _dense(metric), damping
        self._parts = []
        for part in parts:
            own = matrix[np.ix_(part.positions, part.positions)]
            values, vectors = np.linalg.eigh(_symmetric(own))
            # What is negative by rounding is 0.
            self._parts.append((part, own, np.maximum(values, 0), vectors))
        self.norm = float(np.linalg.norm(matrix))
        self.spectrum = _thinned(self._parts[0][2])

    def measure(
        self, metric: Metric, step: np.ndarray, exact_step: np.ndarray
    ) -> tuple[Figures, tuple[Figures, ...], Spectrum]:
        """The figures of A in all and by block, and its spectrum.

        Args:
            metric: A.
            step: d_A, [P].
            exact_step: d_F, [P].
        """
        matrix, norm, damping = _dense(metric), np.linalg.norm, self._damping
        measured, spectra = [], []
        for part, exact, exact_values, vectors in self._parts:
            own = matrix[np.ix_(part.positions, part.positions)]
            values = np.linalg.eigvalsh(_symmetric(own))
            ratios = self._ratios(own - exact, exact_values, vectors)
            largest = _spectral_norm(own - exact)
            figures = Figures(
                name=part.name,
                parameters=part.size,
                relative_error=ratio(norm(own - exact), norm(exact)),
                spectral_error=ratio(largest, exact_values[-1]),
                trace_ratio=ratio(np.trace(own), np.trace(exact)),
                divergence=_divergence(ratios),
                lowest_ratio=float(ratios.min()),
                median_ratio=float(np.median(ratios)),
                highest_ratio=float(ratios.max()),
                effective_dimension=_effective_dimension(values, damping),
                exact_effective_dimension=_effective_dimension(exact_values, damping),
                **step_figures(step[part.positions], exact_step[part.positions]),
            )
            measured.append(figures)
            spectra.append(values)
        return measured[0], tuple(measured[1:]), _thinned(spectra[0])

    def _ratios(
        self, change: np.ndarray, values: np.ndarray, vectors: np.ndarray
    ) -> np.ndarray:
        """Eigenvalues of (F + λI)⁻¹(A + λI); NaN where F + λI is singular."""
        damped = values + self._damping
        if damped[0] <= np.finfo(float).eps * len(damped) * damped[-1]:
            return np.full(len(damped), np.nan)
        # I + W (A − F) W with W = (F + λI)^-½: exact where A is F.
        whiten = vectors / np.sqrt(damped)
        return 1 + np.linalg.eigvalsh(whiten.T @ _symmetric(change) @ whiten)


@jax.jit
def _matrix(metric: Metric) -> Array:
    return metric.dense()


def _dense(metric: Metric) -> np.ndarray:
    return np.asarray(_matrix(metric), np.float64)


def _symmetric(matrix: np.ndarray) -> np.ndarray:
    return (matrix + matrix.T) / 2


def _spectral_norm(matrix: np.ndarray) -> float:
    symmetric = _symmetric(matrix)
    if np.linalg.norm(matrix - symmetric) <= 1e-6 * np.linalg.norm(matrix):
        return float(np.abs(np.linalg.eigvalsh(symmetric)).max())
    return float(np.linalg.norm(matrix, 2))


def _thinned(values: np.ndarray) -> Spectrum:
    """Ascending eigenvalues as a spectrum of some ranks, evenly spread in log."""
    ranks = np.unique(np.geomspace(1, len(values), _KEPT).round().astype(int))
    largest = values[::-1][ranks - 1]
    return Spectrum(tuple(ranks.astype(float).tolist()), tuple(largest.tolist()))


def _divergence(ratios: np.ndarray) -> float:
    """½ Σ (μ − 1 − log μ); infinite where some μ is not positive."""
    if np.isnan(ratios).any():
        return math.nan
    if ratios.min() <= 0:
        return math.inf
    # μ − 1 − log μ without cancellation near 1.
    excess = ratios - 1
    return float(np.sum(np.maximum(excess - np.log1p(excess), 0)) / 2)


def _effective_dimension(eigenvalues: np.ndarray, damping: float) -> float:
    """Σ a/(a + λ); the rank for λ = 0."""
    noise = np.finfo(float).eps * len(eigenvalues) * np.abs(eigenvalues).max()
    positive = eigenvalues[eigenvalues > noise]
    return float(np.sum(positive / (positive + damping)))
