"""Figures from matrices [P, P], in float64 on the host: exact, for small models."""

from __future__ import annotations

import dataclasses
from collections.abc import Sequence

import jax
import numpy as np

from natgrad.compare.figures import (
    Figures,
    Part,
    Spectrum,
    divergence,
    effective_dimension,
    ratio,
    step_figures,
)
from natgrad.metrics.base import Metric
from natgrad.typing import Array

# Eigenvalues of a spectrum that are kept.
_KEPT = 128


@dataclasses.dataclass(frozen=True, eq=False)
class DecomposedPart:
    """F on one part, decomposed.

    Attributes:
        part: which parameters.
        matrix: F, [p, p].
        values: eigenvalues of F, ascending; what is negative by rounding is 0.
        vectors: its eigenvectors, in columns.
        damping: λ.
    """

    part: Part
    matrix: np.ndarray
    values: np.ndarray
    vectors: np.ndarray
    damping: float

    @classmethod
    def of(cls, part: Part, matrix: np.ndarray, damping: float) -> DecomposedPart:
        """The part of F, [P, P]."""
        own = matrix[np.ix_(part.positions, part.positions)]
        values, vectors = np.linalg.eigh(_symmetric(own))
        return cls(part, own, np.maximum(values, 0), vectors, damping)

    def figures(
        self, matrix: np.ndarray, step: np.ndarray, exact_step: np.ndarray
    ) -> tuple[Figures, np.ndarray]:
        """The figures of A, and its eigenvalues on this part, ascending.

        Args:
            matrix: A, [P, P].
            step: d_A, [P].
            exact_step: d_F, [P].
        """
        place, exact, norm = self.part.positions, self.matrix, np.linalg.norm
        own = matrix[np.ix_(place, place)]
        values, ratios = np.linalg.eigvalsh(_symmetric(own)), self._ratios(own)
        figures = Figures(
            name=self.part.name,
            parameters=self.part.size,
            relative_error=ratio(norm(own - exact), norm(exact)),
            spectral_error=ratio(_spectral_norm(own - exact), self.values[-1]),
            trace_ratio=ratio(np.trace(own), np.trace(exact)),
            divergence=divergence(ratios),
            lowest_ratio=float(ratios.min()),
            median_ratio=float(np.median(ratios)),
            highest_ratio=float(ratios.max()),
            effective_dimension=effective_dimension(values, self.damping),
            exact_effective_dimension=effective_dimension(self.values, self.damping),
            **step_figures(step[place], exact_step[place]),
        )
        return figures, values

    def _ratios(self, matrix: np.ndarray) -> np.ndarray:
        """Eigenvalues of (F + λI)⁻¹(A + λI); NaN where F + λI is singular."""
        damped = self.values + self.damping
        if damped[0] <= np.finfo(float).eps * len(damped) * damped[-1]:
            return np.full(len(damped), np.nan)
        # I + W (A − F) W with W = (F + λI)^-½: exact where A is F.
        whiten = self.vectors / np.sqrt(damped)
        change = whiten.T @ _symmetric(matrix - self.matrix) @ whiten
        return 1 + np.linalg.eigvalsh(change)


class DenseFigures:
    """F as a matrix, with which approximations are measured.

    Attributes:
        norm: ‖F‖_F.
        spectrum: eigenvalues of F.
    """

    def __init__(self, metric: Metric, parts: Sequence[Part], damping: float):
        """Form F and decompose it on all parameters and on the blocks after them."""
        matrix = _dense(metric)
        self._parts = [DecomposedPart.of(part, matrix, damping) for part in parts]
        self.norm = float(np.linalg.norm(matrix))
        self.spectrum = _thinned(self._parts[0].values)

    def measure(
        self, metric: Metric, step: np.ndarray, exact_step: np.ndarray
    ) -> tuple[Figures, tuple[Figures, ...], Spectrum]:
        """See `FigureComputer`."""
        matrix = _dense(metric)
        measured = [part.figures(matrix, step, exact_step) for part in self._parts]
        (whole, values), *blocks = measured
        return whole, tuple(figures for figures, _ in blocks), _thinned(values)


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
