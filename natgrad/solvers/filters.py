"""Solvers that weigh the eigenvalues of F otherwise than by 1/(s + λ).

    HardCutoff      1/(s + λ) where s > τ max s, else 0
    SmoothCutoff    1/(s + λ) · 1/(1 + (τ max s/s)⁶)
    RobustDamping   (s + γ λ²)/(s + λ)²

Each is a solver (metric, v, damping) -> x for any metric, and `of` gives the function
of eigenvalues that `Metric.function`, `trace_of` and `diagonal_of` take. Max s is that
of the decomposition which the filter is applied by; of a metric that is known by its
products, that of `Metric.largest_eigenvalue`. Derivatives hold the first constant.

For cutoffs λ is one number: F + Λ with a Λ by layer has other eigenvectors than F. The
third needs none: it is (F + Λ)⁻¹ (F + γ Λ²) (F + Λ)⁻¹.

Source: Medvidović & Carleo (2020), Classical variational simulation of the quantum
approximate optimization algorithm, and Schmitt & Heyl (2020), Quantum many-body
dynamics in two dimensions with artificial neural networks, for the smooth cutoff.
"""

from __future__ import annotations

import abc
import dataclasses
from typing import Any, ClassVar, final

import jax
import jax.numpy as jnp

from natgrad.solvers.base import Solution
from natgrad.solvers.damping import (
    DampingLike,
    by_leaf,
    entries,
    resolve_damping,
)
from natgrad.solvers.matrix_functions import Spectral
from natgrad.solvers.spectral import spectrum
from natgrad.typing import Array, ArrayLike, Params


class Filter(abc.ABC):
    """A function of the eigenvalues of F in the place of 1/(s + λ)."""

    takes_layers: ClassVar[bool] = False

    @abc.abstractmethod
    def of(self, largest: ArrayLike, damping: ArrayLike = 0.0) -> Spectral:
        """The function, of an array of eigenvalues s >= 0.

        Args:
            largest: max s, in the units of F.
            damping: λ >= 0, in the units of F.
        """

    @final
    def __call__(self, metric: Any, v: Params, damping: DampingLike) -> Params:
        """f(F) v.

        Args:
            metric: F.
            v: a tree like the parameters.
            damping: λ >= 0, in the units of F.

        Returns:
            A tree like the parameters, in their dtypes.
        """
        return self.solution(metric, v, damping).value

    @final
    def solution(
        self,
        metric: Any,
        v: Params,
        damping: DampingLike,
        anchor: Params | None = None,
    ) -> Solution:
        """f(F) v, and what the eigenvalues say.

        With an anchor a it is a + f(F) (v − (F + Λ) a): where f drops a direction a
        stays as it is, and where f is 1/(s + λ) nothing changes.

        Args:
            metric: F.
            v: a tree like the parameters.
            damping: λ >= 0, in the units of F.
            anchor: a, a tree like the parameters; None for 0.

        Raises:
            ValueError: layers or parameters have dampings of their own, in a cutoff.
        """
        found = resolve_damping(damping, metric)
        if not (self.takes_layers or isinstance(found, jax.Array)):
            raise ValueError(
                f"{self!r} weighs the eigenvalues of F with one λ for all parameters; "
                f"got one by {'layer' if hasattr(found, 'index') else 'parameter'}: "
                "give a number, or leave solver= out."
            )
        if anchor is None:
            return self._weighted(metric, v, found)
        left = jax.tree.map(
            lambda v, f, own, a: (v - f - own * a).astype(v.dtype),
            v,
            metric.mv(anchor),
            by_leaf(found, anchor),
            anchor,
        )
        step = self._weighted(metric, left, found)
        value = jax.tree.map(lambda a, x: (a + x).astype(x.dtype), anchor, step.value)
        return step._replace(value=value)

    def _weighted(self, metric: Any, v: Params, damping: Array) -> Solution:
        """f(F) v by the decomposition of F."""
        found, known = metric.decomposed(), None
        if found.values is None:
            largest = metric.largest_eigenvalue()
        else:
            largest = jnp.max(jnp.stack([jnp.max(each) for each in found.values]))
            outside = jnp.zeros(found.outside, largest.dtype)
            parts = [*found.values, *([outside] if found.outside else [])]
            known = spectrum([(values, damping) for values in parts])
        value = found.function(self.of(largest, damping), v)
        return Solution(value, jnp.zeros((), bool), spectrum=known)


@final
@dataclasses.dataclass(frozen=True)
class HardCutoff(Filter):
    """Directions with s <= τ max s are dropped, the others damped by λ.

    Attributes:
        rtol: τ.
    """

    rtol: float

    def of(self, largest: ArrayLike, damping: ArrayLike = 0.0) -> Spectral:
        """s -> 1/(s + λ), or 0; arguments as of `Filter.of`."""

        def f(s):
            kept = s > self.rtol * largest
            return jnp.where(kept, _reciprocal(s + damping), 0)

        return f


@final
@dataclasses.dataclass(frozen=True)
class SmoothCutoff(Filter):
    """Directions with s below τ max s fade out with the sixth power of s.

    Attributes:
        rtol: τ > 0.
    """

    rtol: float

    def of(self, largest: ArrayLike, damping: ArrayLike = 0.0) -> Spectral:
        """s -> 1/(s + λ) times the weight; arguments as of `Filter.of`."""

        def f(s):
            cutoff = self.rtol * largest
            above = s > cutoff
            high, low = jnp.where(above, s, cutoff), jnp.where(above, cutoff, s)
            power = (low / jnp.where(high > 0, high, 1)) ** 6  # at most 1
            weight = jnp.where(above, 1, power) / (1 + power)
            return weight * _reciprocal(s + damping)

        return f


@final
@dataclasses.dataclass(frozen=True)
class RobustDamping(Filter):
    """Damping whose step is shorter than (F + λI)⁻¹ v where s is far below λ.

    With γ = 1/λ it is (F + λI)⁻¹ v, with γ = 0 directions of s = 0 are dropped. It is
    a − (F + λI)⁻¹ λ (1 − γ λ) a, a = (F + λI)⁻¹ v: two of the metric's solves, with λ
    by layer too.

    Attributes:
        gamma: γ, 0 <= γ <= 1/λ, in the units of 1/F.
    """

    gamma: float = 0.0

    takes_layers: ClassVar[bool] = True

    def of(self, largest: ArrayLike, damping: ArrayLike = 0.0) -> Spectral:
        """s -> (s + γ λ²)/(s + λ)²; arguments as of `Filter.of`."""
        del largest

        def f(s):
            inverse = _reciprocal(s + damping)
            return (s + self.gamma * damping**2) * inverse**2

        return f

    def _weighted(self, metric: Any, v: Params, damping: Any) -> Solution:
        layout, own = metric.layout, entries(damping, metric)
        once = metric.solution(v, damping)
        inside = own * (1 - self.gamma * own) * layout.ravel(once.value)
        twice = layout.ravel(metric.solve(layout.unravel(inside), damping))
        value = layout.unravel(layout.ravel(once.value) - twice)
        return once._replace(value=value, remainder=None)


def _reciprocal(total: Array) -> Array:
    """1/total, and 0 where there is nothing to divide by."""
    return jnp.where(total > 0, 1 / jnp.where(total > 0, total, 1), 0)
