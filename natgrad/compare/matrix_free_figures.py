"""Figures from products F v and A v: estimates, for models of any size.

With random signs v on the part in question, and D = A − F,

    ‖D‖_F² = E|D v|²     tr A = E⟨v, A v⟩     (Hutchinson 1989)
    log det and effective dimension by quadrature (`natgrad.solvers.lanczos`)
    tr (F + λI)⁻¹(A + λI) = E⟨v, (A + λI)(F + λI)⁻¹ v⟩

F and A see the same v, so that most of the noise of a ratio or difference cancels; what
is left is the standard error that is given. ‖D‖₂ and the extreme eigenvalues of
(F + λI)⁻¹(A + λI) are those of their restrictions to a Krylov space of D: bounds from
inside.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Sequence
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from natgrad.compare.figures import (
    Budget,
    Figures,
    Part,
    Spectrum,
    generalised_eigenvalues,
    ratio,
    step_figures,
)
from natgrad.metrics.base import Metric
from natgrad.solvers.lanczos import Krylov, krylov
from natgrad.typing import Array, Key


class Probe(NamedTuple):
    """A random v, F v, (F + λI)⁻¹ v on one part, and vᵀ f(F) v ≈ Σ weights f(nodes)."""

    signs: np.ndarray
    image: np.ndarray
    solved: np.ndarray
    nodes: np.ndarray
    weights: np.ndarray

    def integral(self, function: Callable[[np.ndarray], np.ndarray]) -> float:
        """vᵀ f(F) v."""
        return float(self.weights @ function(self.nodes))


class MatrixFreeFigures:
    """F as an operator, with which approximations are measured.

    Attributes:
        norm: ‖F‖_F, estimated.
        spectrum: eigenvalues of F, estimated.
    """

    def __init__(
        self,
        metric: Metric,
        parts: Sequence[Part],
        damping: float,
        key: Key,
        budget: Budget,
    ):
        """Probe F on all parameters; on the blocks, which are many, half as often."""
        self._metric, self._damping = metric, damping
        self._iterations = budget.iterations
        draw = np.random.default_rng(np.asarray(jax.random.key_data(key)).tolist())
        self._probes, count = [], budget.probes
        for part in parts:
            signs = [
                draw.choice([-1.0, 1.0], part.size).astype(self._dtype)
                for _ in range(count)
            ]
            self._probes.append((part, [self._probe(metric, part, v) for v in signs]))
            count = max(2, budget.probes // 2)
        probes = self._probes[0][1]
        self.norm = math.sqrt(np.mean([float(p.image @ p.image) for p in probes]))
        self.spectrum = _spectrum([p[3:] for p in probes])

    def measure(
        self, metric: Metric, step: np.ndarray, exact_step: np.ndarray
    ) -> tuple[Figures, tuple[Figures, ...], Spectrum]:
        """See `DenseFigures.measure`."""
        measured, spectra = [], []
        for part, exact in self._probes:
            own = [self._probe(metric, part, probe.signs) for probe in exact]
            spectra.append(_spectrum([probe[3:] for probe in own]))
            values = self._estimates(own, exact)
            figures = Figures(
                name=part.name,
                parameters=part.size,
                standard_errors={name: noise for name, (_, noise) in values.items()},
                **{name: value for name, (value, _) in values.items()},
                **self._extremes(metric, part, exact),
                **step_figures(step[part.positions], exact_step[part.positions]),
            )
            measured.append(figures)
        return measured[0], tuple(measured[1:]), spectra[0]

    def _estimates(
        self, own: Sequence[Probe], exact: Sequence[Probe]
    ) -> dict[str, tuple[float, float]]:
        """Figure -> its mean over probes of A and F, and its standard error."""
        pairs = list(zip(own, exact, strict=True))
        dimension = functools.partial(outweighing, damping=self._damping)
        traces = [(a.signs @ a.image, f.signs @ f.image) for a, f in pairs]
        errors = [(a.image - f.image, f.image) for a, f in pairs]
        return {
            "relative_error": root_of_ratio([(d @ d, f @ f) for d, f in errors]),
            "trace_ratio": _ratio_of_means(traces),
            "divergence": _mean([self._divergence(a, f) for a, f in pairs]),
            "effective_dimension": _mean([a.integral(dimension) for a in own]),
            "exact_effective_dimension": _mean([f.integral(dimension) for f in exact]),
        }

    def _divergence(self, own: Probe, exact: Probe) -> float:
        """½ [⟨v, (A + λI)(F + λI)⁻¹ v⟩ − p − vᵀ log(A + λI) v + vᵀ log(F + λI) v]."""
        damping = self._damping
        if damping == 0:
            return math.nan
        log = lambda nodes: np.log1p(np.maximum(nodes, 0) / damping)
        trace = float((own.image + damping * own.signs) @ exact.solved)
        logarithms = exact.integral(log) - own.integral(log)
        return (trace - len(own.signs) + logarithms) / 2

    def _extremes(
        self, metric: Metric, part: Part, probes: Sequence[Probe]
    ) -> dict[str, float]:
        """The extreme eigenvalues of D, and the extreme ratios, in a Krylov space."""
        place = self._placed(part, probes[0].signs)
        space, gram = _difference(metric, self._metric, *place, self._iterations)
        largest = max(float(np.abs(probe.nodes).max()) for probe in probes)
        gram = np.asarray(gram, float)
        damped = (gram + gram.T) / 2 + self._damping * np.eye(len(gram))
        values, vectors = np.linalg.eigh(damped)
        ratios = np.full(2, np.nan)
        if values[0] > 0:
            ratios = generalised_eigenvalues(values, vectors, space.matrix())
        return {
            "spectral_error": ratio(np.abs(space.quadrature()[0]).max(), largest),
            "lowest_ratio": float(ratios[0]),
            "median_ratio": np.nan,
            "highest_ratio": float(ratios[-1]),
        }

    def _probe(self, metric: Metric, part: Part, signs: np.ndarray) -> Probe:
        place = self._placed(part, signs)
        space = _krylov(metric, *place, self._iterations)
        vectors = space.image(), space.solved(self._damping)
        image, solved = (np.asarray(vector)[part.positions] for vector in vectors)
        return Probe(signs, image, solved, *space.quadrature())

    def _placed(self, part: Part, signs: np.ndarray) -> tuple[Array, Array]:
        """The part as a mask [P], and a vector of the part as one of all parameters."""
        mask, vector = np.zeros((2, self._metric.layout.size), self._dtype)
        mask[part.positions], vector[part.positions] = 1, signs
        return jnp.asarray(mask), jnp.asarray(vector)

    @property
    def _dtype(self) -> np.dtype:
        return np.dtype(self._metric.layout.dtype)


@functools.partial(jax.jit, static_argnames="iterations")
def _krylov(metric: Metric, mask: Array, start: Array, iterations: int) -> Krylov:
    return krylov(lambda x: (_product(metric, mask, x), ()), start, iterations)


@functools.partial(jax.jit, static_argnames="iterations")
def _difference(
    metric: Metric, exact: Metric, mask: Array, start: Array, iterations: int
) -> tuple[Krylov, Array]:
    """The Krylov space of A − F, and Qᵀ F Q."""

    def operator(x):
        image = _product(exact, mask, x)
        return _product(metric, mask, x) - image, image

    space = krylov(operator, start, iterations)
    gram = jnp.matmul(space.basis, space.extra.T, precision=jax.lax.Precision.HIGHEST)
    return space._replace(extra=()), gram


def _product(metric: Metric, mask: Array, x: Array) -> Array:
    """The diagonal block of the operator on the part, times x."""
    image = metric.layout.ravel(metric.mv(metric.layout.unravel(mask * x)))
    return mask * image.astype(x.dtype)


def _mean(values: Sequence[float] | np.ndarray) -> tuple[float, float]:
    """The mean and its standard error."""
    array = np.asarray(values, float)
    return float(array.mean()), float(array.std(ddof=1) / math.sqrt(len(array)))


def _ratio_of_means(pairs: Sequence[tuple[Any, Any]]) -> tuple[float, float]:
    """mean a / mean b of pairs, and its standard error to first order."""
    a, b = np.asarray(pairs, float).T
    value = ratio(a.mean(), b.mean())
    return value, ratio(_mean(a - value * b)[1], abs(b.mean()))


def root_of_ratio(pairs: Sequence[tuple[Any, Any]]) -> tuple[float, float]:
    """√(mean a / mean b) of pairs of squares, and its standard error to first order."""
    value, noise = _ratio_of_means(pairs)
    root = math.sqrt(value) if value >= 0 else math.nan
    return root, (noise / (2 * root) if root else 0.0)


def outweighing(eigenvalues: np.ndarray, damping: float) -> np.ndarray:
    """a/(a + λ), 0 for a <= 0."""
    positive = np.maximum(eigenvalues, 0)
    damped = positive + damping
    return np.divide(positive, damped, out=np.zeros_like(damped), where=damped > 0)


def _spectrum(quadratures: Sequence[tuple[np.ndarray, np.ndarray]]) -> Spectrum:
    """The eigenvalues that quadratures stand for: ranks from their summed weights."""
    nodes, weights = (np.concatenate(x) for x in zip(*quadratures, strict=True))
    order = np.argsort(-nodes)
    ranks = np.cumsum(weights[order]) / len(quadratures)
    return Spectrum(tuple(ranks.tolist()), tuple(nodes[order].tolist()))
