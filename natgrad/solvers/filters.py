"""Solvers that weigh the eigenvalues of F otherwise than by 1/(s + λ).

    HardCutoff      1/(s + λ) where s > τ max s, else 0
    SmoothCutoff    1/(s + λ) · 1/(1 + (τ max s/s)⁶)
    RobustDamping   (s + γ λ²)/(s + λ)²

Each is a solver (metric, v, damping) -> x for any metric, and `of` gives the function
of eigenvalues that `Metric.function`, `trace_of` and `diagonal_of` take. Max s is that
of `Metric.largest_eigenvalue`.

Source: Medvidović & Carleo (2020), Classical variational simulation of the quantum
approximate optimization algorithm, and Schmitt & Heyl (2020), Quantum many-body
dynamics in two dimensions with artificial neural networks, for the smooth cutoff.
"""

from __future__ import annotations

import abc
import dataclasses
from typing import Any, final

import jax.numpy as jnp

from natgrad.solvers.matrix_functions import Spectral
from natgrad.typing import Array, ArrayLike, Params


class Filter(abc.ABC):
    """A function of the eigenvalues of F in the place of 1/(s + λ)."""

    @abc.abstractmethod
    def of(self, largest: ArrayLike, damping: ArrayLike = 0.0) -> Spectral:
        """The function, of an array of eigenvalues s >= 0.

        Args:
            largest: max s, in the units of F.
            damping: λ >= 0, in the units of F.
        """

    def __call__(self, metric: Any, v: Params, damping: ArrayLike) -> Params:
        """f(F) v.

        Args:
            metric: F.
            v: a tree like the parameters.
            damping: λ >= 0, in the units of F.

        Returns:
            A tree like the parameters, in their dtypes.
        """
        return metric.function(self.of(metric.largest_eigenvalue(), damping), v)


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

    With γ = 1/λ it is (F + λI)⁻¹ v, with γ = 0 directions of s = 0 are dropped.

    Attributes:
        gamma: γ, 0 <= γ <= 1/λ, in the units of 1/F.
    """

    gamma: float = 0.0

    def of(self, largest: ArrayLike, damping: ArrayLike = 0.0) -> Spectral:
        """s -> (s + γ λ²)/(s + λ)²; arguments as of `Filter.of`."""
        del largest

        def f(s):
            inverse = _reciprocal(s + damping)
            return (s + self.gamma * damping**2) * inverse**2

        return f

    def __call__(self, metric: Any, v: Params, damping: ArrayLike) -> Params:
        """a − λ (1 − γ λ) (F + λI)⁻¹ a, a = (F + λI)⁻¹ v: two of the metric's solves.

        Args:
            metric: F.
            v: a tree like the parameters.
            damping: λ >= 0, in the units of F.

        Returns:
            A tree like the parameters, in their dtypes.
        """
        layout = metric.layout
        damping = jnp.asarray(damping, layout.dtype)
        once = metric.solve(v, damping)
        twice = layout.ravel(metric.solve(once, damping))
        share = damping * (1 - self.gamma * damping)
        return layout.unravel(layout.ravel(once) - share * twice)


def _reciprocal(total: Array) -> Array:
    """1/total, and 0 where there is nothing to divide by."""
    return jnp.where(total > 0, 1 / jnp.where(total > 0, total, 1), 0)
