"""Figures from products F v and A v: estimates, for models of any size.

With random signs v on the part in question, and D = A − F,

    ‖D‖_F² = E|D v|²     tr A = E⟨v, A v⟩     (Hutchinson 1989)
    log det and effective dimension by quadrature (`natgrad.compare.lanczos`)
    tr (F + λI)⁻¹(A + λI) = E⟨v, (A + λI)(F + λI)⁻¹ v⟩

F and A see the same v, so that most of the noise of a ratio or difference cancels; what
is left is the standard error that is given. ‖D‖₂ and the extreme eigenvalues of
(F + λI)⁻¹(A + λI) are those of their restrictions to a Krylov space of D: bounds from
inside.
"""

from __future__ import annotations

import functools
from collections.abc import Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from natgrad.compare import estimates, figures
from natgrad.compare.budget import Budget
from natgrad.compare.figures import Figures, Spectrum, ratio
from natgrad.compare.lanczos import Krylov, lanczos
from natgrad.compare.partition import Part
from natgrad.metrics.base import Metric
from natgrad.typing import Array, Key


class Seen(NamedTuple):
    """What one random vector v showed of an operator on one part.

    Attributes:
        image: F v, [p].
        nodes: of the quadrature vᵀ f(F) v ≈ Σ w f(θ).
        weights: of the quadrature.
    """

    image: np.ndarray
    nodes: np.ndarray
    weights: np.ndarray

    def mean(self, function) -> float:
        """vᵀ f(F) v."""
        return float(self.weights @ function(self.nodes))


class Probed(NamedTuple):
    """One random vector v, and what it showed of the reference.

    Attributes:
        signs: v on the part, [p].
        seen: of F.
        solved: (F + λI)⁻¹ v, [p].
    """

    signs: np.ndarray
    seen: Seen
    solved: np.ndarray


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
        self._metric, self._damping, self._effort = metric, damping, budget
        self._parts = parts
        # Blocks have half the probes: there are many of them.
        counts = [budget.probes] + [max(2, budget.probes // 2)] * (len(parts) - 1)
        draw = np.random.default_rng(np.asarray(jax.random.key_data(key)).tolist())
        self._probes = [
            [self._probe(part, draw) for _ in range(count)]
            for part, count in zip(self._parts, counts, strict=True)
        ]
        images = [float(p.seen.image @ p.seen.image) for p in self._probes[0]]
        self.norm = float(np.sqrt(np.mean(images)))
        self.spectrum = estimates.spectrum([p.seen[1:] for p in self._probes[0]])

    def measure(
        self, metric: Metric, step: np.ndarray, exact_step: np.ndarray
    ) -> tuple[Figures, tuple[Figures, ...], Spectrum]:
        """The figures of A = `metric` in all and by block, and its spectrum."""
        found = []
        for part, probes in zip(self._parts, self._probes, strict=True):
            own = [self._see(metric, part, probe.signs)[0] for probe in probes]
            if part is self._parts[0]:
                spectrum = estimates.spectrum([seen[1:] for seen in own])
            place = part.positions
            found.append(
                Figures(
                    name=part.name,
                    parameters=part.size,
                    **self._estimates(own, probes),
                    **self._extremes(metric, part, probes),
                    **figures.step_figures(step[place], exact_step[place]),
                )
            )
        return found[0], tuple(found[1:]), spectrum

    def _estimates(self, own: Sequence[Seen], probes: Sequence[Probed]) -> dict:
        """The means over probes, and their standard errors."""
        pairs = list(zip(own, probes, strict=True))
        damping = self._damping
        square = lambda x: float(x @ x)
        dimension = lambda a: estimates.outweighing(a, damping)
        found = {
            "relative_error": estimates.root_of_ratio(
                [square(a.image - f.seen.image) for a, f in pairs],
                [square(f.seen.image) for _, f in pairs],
            ),
            "trace_ratio": estimates.ratio_of_means(
                [float(f.signs @ a.image) for a, f in pairs],
                [float(f.signs @ f.seen.image) for _, f in pairs],
            ),
            "divergence": estimates.mean(
                [estimates.divergence(f.signs, a, f, damping) for a, f in pairs]
            ),
            "effective_dimension": estimates.mean([a.mean(dimension) for a in own]),
            "exact_effective_dimension": estimates.mean(
                [f.seen.mean(dimension) for f in probes]
            ),
        }
        return {
            **{name: value for name, (value, _) in found.items()},
            "standard_errors": {name: noise for name, (_, noise) in found.items()},
        }

    def _extremes(
        self, metric: Metric, part: Part, probes: Sequence[Probed]
    ) -> dict[str, float]:
        """The extreme eigenvalues of D, and the extreme ratios, in a Krylov space."""
        mask, start = self._placed(part, probes[0].signs)
        found, gram = _difference(
            metric, self._metric, mask, start, self._effort.iterations
        )
        largest = max(float(np.abs(p.seen.nodes).max()) for p in probes)
        gram = np.asarray(gram, float)
        damped = (gram + gram.T) / 2 + self._damping * np.eye(len(gram))
        lowest, highest = estimates.extreme_ratios(damped, found.matrix())
        return {
            "spectral_error": ratio(np.abs(found.quadrature()[0]).max(), largest),
            "lowest_ratio": lowest,
            "median_ratio": np.nan,
            "highest_ratio": highest,
        }

    def _probe(self, part: Part, draw: np.random.Generator) -> Probed:
        signs = draw.choice([-1.0, 1.0], part.size).astype(self._dtype)
        seen, krylov = self._see(self._metric, part, signs)
        solved = np.asarray(krylov.solved(self._damping))[part.positions]
        return Probed(signs, seen, solved)

    def _see(
        self, metric: Metric, part: Part, signs: np.ndarray
    ) -> tuple[Seen, Krylov]:
        mask, start = self._placed(part, signs)
        found = _krylov(metric, mask, start, self._effort.iterations)
        image = np.asarray(found.image())[part.positions]
        return Seen(image, *found.quadrature()), found

    def _placed(self, part: Part, signs: np.ndarray) -> tuple[Array, Array]:
        """The part as a mask [P], and a vector of the part as one of all parameters."""
        mask, full = np.zeros((2, self._metric.layout.size), self._dtype)
        mask[part.positions], full[part.positions] = 1, signs
        return jnp.asarray(mask), jnp.asarray(full)

    @property
    def _dtype(self) -> np.dtype:
        return np.dtype(self._metric.layout.dtype)


@functools.partial(jax.jit, static_argnames="iterations")
def _krylov(metric: Metric, mask: Array, start: Array, iterations: int) -> Krylov:
    return lanczos(lambda x: (_product(metric, mask, x), ()), start, iterations)


@functools.partial(jax.jit, static_argnames="iterations")
def _difference(
    metric: Metric, exact: Metric, mask: Array, start: Array, iterations: int
) -> tuple[Krylov, Array]:
    """The Krylov space of A − F, and Qᵀ F Q."""

    def operator(x):
        image = _product(exact, mask, x)
        return _product(metric, mask, x) - image, image

    found = lanczos(operator, start, iterations)
    gram = jnp.matmul(found.basis, found.kept.T, precision=jax.lax.Precision.HIGHEST)
    return found._replace(kept=()), gram


def _product(metric: Metric, mask: Array, x: Array) -> Array:
    """The diagonal block of the operator on the part, times x."""
    image = metric.layout.ravel(metric.mv(metric.layout.unravel(mask * x)))
    return mask * image.astype(x.dtype)
