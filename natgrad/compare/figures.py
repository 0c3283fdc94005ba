"""The figures of one part of the parameters, all or a block, and what they may cost.

A is the approximation, F the reference, λ the damping; d_A = (A + λI)⁻¹ g and d_F are
steps of all parameters, of which a block sees its own entries. Inside a block A and F
stand for their diagonal blocks. With μ_i the eigenvalues of (F + λI)⁻¹(A + λI),

    KL(N(0, (F + λI)⁻¹) ‖ N(0, (A + λI)⁻¹)) = ½ Σ_i (μ_i − 1 − log μ_i)

is the divergence, in nats, between the posteriors that F and A stand for (Laplace's
approximation with prior precision λ), and Σ_i a_i/(a_i + λ) over the eigenvalues a_i of
A its effective dimension: the directions that outweigh the damping (MacKay 1992).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping, Sequence
from typing import Any, SupportsFloat

import jax
import numpy as np

from natgrad import layers
from natgrad.layers import Captured, NotCapturedError
from natgrad.metrics.base import Metric
from natgrad.model import Model
from natgrad.solvers.conjugate_gradients import RelativeResidual
from natgrad.tree import Layout
from natgrad.typing import Array, Inputs, Params

# Eigenvalues of a spectrum that are kept.
_KEPT = 128


@dataclasses.dataclass(frozen=True)
class Budget:
    """What a comparison may spend.

    Attributes:
        matrices: P up to which F and its approximations are formed as matrices [P, P]
            and every figure is exact; beyond, figures come from products F v.
        memory: bytes that the statistics of one approximation, or the temporaries of
            its step, may take.
        probes: random vectors of each estimate from products.
        iterations: of Lanczos's method, for each probe.
        stop: when conjugate gradients for the exact step stop, without matrices.
        draws: label sets drawn from the model for the test of misspecification, which
            with fewer than 99 cannot reject.
        factors: multiples of the step size at which the path is measured.
        charts: random coordinates in which invariance is tested; 0 saves the time.
        repeats: timed runs of each approximation, of which the median is given.
    """

    matrices: int = 4096
    memory: float = 4e9
    probes: int = 8
    iterations: int = 16
    stop: RelativeResidual = RelativeResidual(1e-4, 300)  # noqa: RUF009 (frozen, without state)
    draws: int = 199
    factors: tuple[float, ...] = (0.125, 0.25, 0.5, 1.0, 2.0)
    charts: int = 1
    repeats: int = 3

    def __post_init__(self):
        lowest = {"matrices": 0, "memory": 1, "probes": 2, "iterations": 2, "draws": 2}
        for name, bound in {**lowest, "charts": 0, "repeats": 1}.items():
            value = getattr(self, name)
            if not value >= bound:
                raise ValueError(f"{name} must be at least {bound}, got {value}.")
        if not all(math.isfinite(factor) for factor in self.factors):
            raise ValueError(f"factors must be finite, got {self.factors}.")


@dataclasses.dataclass(frozen=True)
class Figures:
    """An approximation A of F on one part of the parameters.

    A figure that is not known is NaN. Without matrices, figures are means over random
    probes, whose standard errors stand in `standard_errors`; then the spectral error
    and the extreme ratios, from Krylov spaces, are bounds from inside.

    Attributes:
        name: of the block, "" for all parameters.
        parameters: how many.
        relative_error: ‖A − F‖_F / ‖F‖_F.
        spectral_error: ‖A − F‖₂ / ‖F‖₂.
        trace_ratio: tr A / tr F.
        divergence: KL(N(0, (F + λI)⁻¹) ‖ N(0, (A + λI)⁻¹)), nats.
        step_cosine: between d_A and d_F.
        step_norm_ratio: |d_A| / |d_F|.
        lowest_ratio: the smallest eigenvalue μ of (F + λI)⁻¹(A + λI).
        median_ratio: the middle one.
        highest_ratio: the largest.
        effective_dimension: Σ a/(a + λ).
        exact_effective_dimension: the same of F.
        standard_errors: figure -> its standard error, where it is an estimate.
    """

    name: str
    parameters: int
    relative_error: float
    spectral_error: float
    trace_ratio: float
    divergence: float
    step_cosine: float
    step_norm_ratio: float
    lowest_ratio: float
    median_ratio: float
    highest_ratio: float
    effective_dimension: float
    exact_effective_dimension: float
    standard_errors: Mapping[str, float] = dataclasses.field(default_factory=dict)

    def figures(self) -> dict[str, float]:
        """Those of the attributes that are figures: name -> number."""
        others = ("name", "parameters", "standard_errors")
        return {k: number for k, number in vars(self).items() if k not in others}


@dataclasses.dataclass(frozen=True)
class Spectrum:
    """Eigenvalues, largest first, thinned.

    Attributes:
        ranks: values[i] is about the ranks[i]-th largest; fractions where estimated.
        values: eigenvalues.
    """

    ranks: tuple[float, ...]
    values: tuple[float, ...]


def vector(tree: Params) -> np.ndarray:
    """A tree of parameters as one vector in float64, [P]."""
    return np.asarray(Layout.of(tree).ravel(tree), np.float64)


def generalised_eigenvalues(
    values: np.ndarray, vectors: np.ndarray, change: np.ndarray
) -> np.ndarray:
    """Those of (F + λI)⁻¹(A + λI), ascending, from those of F + λI and A − F."""
    whiten = vectors / np.sqrt(values)
    return 1 + np.linalg.eigvalsh(whiten.T @ change @ whiten)


def step_figures(step: np.ndarray, exact: np.ndarray) -> dict[str, Any]:
    """Cosine and ratio of lengths of two steps."""
    own, other = np.linalg.norm(step), np.linalg.norm(exact)
    cosine = ratio(step @ exact, own * other)
    return {"step_cosine": cosine, "step_norm_ratio": ratio(own, other)}


def ratio(numerator: SupportsFloat, denominator: SupportsFloat) -> float:
    """numerator / denominator, NaN where the denominator is 0."""
    return float(numerator) / float(denominator) if float(denominator) else math.nan


@dataclasses.dataclass(frozen=True, eq=False)
class Part:
    """Some of the parameters: all, or a block.

    A block is a layer as `natgrad.layers` reads it, weight and bias together. Blocks
    that share a parameter are one. A model that cannot be read has a block a parameter.
    """

    name: str  # "" for all parameters
    positions: np.ndarray  # of its entries in the vector [P], ascending

    size = property(lambda part: len(part.positions))


def captured(model: Model, params: Params, inputs: Inputs) -> Captured | None:
    """The layers of the model, None where it cannot be read."""
    try:
        return layers.capture(model.apply_real, params, inputs, in_axes=model.in_axes)
    except NotCapturedError:
        return None


class DenseFigures:
    """F as a matrix in float64 on the host, decomposed in all and by block: exact.

    Attributes:
        norm: ‖F‖_F.
        spectrum: eigenvalues of F.
    """

    def __init__(self, metric: Metric, parts: Sequence[Part], damping: float):
        matrix, self._damping = np.asarray(_matrix(metric), float), damping
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
        """The figures of A, with d_A and d_F [P], in all and by block; its spectrum."""
        matrix, norm = np.asarray(_matrix(metric), float), np.linalg.norm
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
                effective_dimension=self._dimension(values),
                exact_effective_dimension=self._dimension(exact_values),
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
        return generalised_eigenvalues(damped, vectors, _symmetric(change))

    def _dimension(self, eigenvalues: np.ndarray) -> float:
        """Σ a/(a + λ); the rank for λ = 0."""
        noise = np.finfo(float).eps * len(eigenvalues) * np.abs(eigenvalues).max()
        positive = eigenvalues[eigenvalues > noise]
        return float(np.sum(positive / (positive + self._damping)))


@jax.jit
def _matrix(metric: Metric) -> Array:
    return metric.dense()


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
