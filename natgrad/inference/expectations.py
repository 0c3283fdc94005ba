"""Expectations E_q[f(w, data)] over a law q of an exponential family, by named rules.

    ClosedForm         the user's own function of μ
    Quadrature         nodes and weights
    LinearPredictors   Σ_n E[f(x_n·w, y_n)], by the one-dimensional laws of x_n·w
    ClosedPredictors   the same, by the user's own function of their mean and variance
    Sampling           draws of q, reparameterised: derivatives pass through the draws
    ScoreFunction      draws of q: derivatives by the score, for any family
    BonnetPrice        draws of a Gaussian q, and the Hessian of f

The first four are deterministic, the others unbiased. f is log p(D | w), or log p(w)
with the prior's parameters for data. Here are the protocol and the first.
"""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Callable
from typing import Any

import jax

from natgrad.families.base import ExponentialFamily
from natgrad.inference.dual import value_and_dual_gradient
from natgrad.typing import Array, Key

# (w, data) -> nats, shape ()
LogDensity = Callable[[Array, Any], Array]


class Expectation(abc.ABC):
    """A rule for E_q[f(w, data)], shape (), in nats."""

    @abc.abstractmethod
    def value(
        self, family: ExponentialFamily, eta: Array, data: Any, key: Key | None
    ) -> Array:
        """The expectation under a law q.

        Args:
            family: of q.
            eta: its natural parameters.
            data: what f reads beside w.
            key: a random key, for rules that draw; None for others.

        Returns:
            E_q[f(w, data)] in nats, shape ().

        Raises:
            ValueError: where the rule does not fit the family, or a key is missing.
        """

    def value_and_gradient(
        self, family: ExponentialFamily, eta: Array, data: Any, key: Key | None
    ) -> tuple[Array, Array]:
        """The expectation and its gradient in μ.

        Args:
            family: of q.
            eta: its natural parameters.
            data: what f reads beside w.
            key: a random key, for rules that draw; None for others.

        Returns:
            (E_q[f] in nats, shape (); ∇_μ E_q[f], shaped like η).

        Raises:
            ValueError: as for `value`.
        """

        def value_of(eta):
            return self.value(family, eta, data, key)

        return value_and_dual_gradient(family, value_of, eta)


@dataclasses.dataclass(frozen=True)
class ClosedForm(Expectation):
    """The user's E_q[f] as a function of the expectation parameters.

    For a conjugate likelihood it is linear, ⟨s(data), μ⟩ plus a constant. A function of
    Gaussian variances loses what E[y²] − m² cancels: there use `ClosedPredictors`.

    Attributes:
        function: (μ, data) -> nats, shape ().
    """

    function: LogDensity

    def value(self, family, eta, data, key):
        """function(mean(η), data)."""
        del key
        return self.function(family.mean(eta), data)

    def value_and_gradient(self, family, eta, data, key):
        """By differentiating in μ itself."""
        del key
        return jax.value_and_grad(self.function)(family.mean(eta), data)
