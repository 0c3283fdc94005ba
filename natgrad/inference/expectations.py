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
from jaxtyping import Float

from natgrad.families.base import ExponentialFamily
from natgrad.inference.dual import value_and_dual_gradient
from natgrad.typing import Array, Key

# (w, data) -> nats, shape ()
LogDensity = Callable[[Array, Any], Array]


class Expectation(abc.ABC):
    """A rule for E_q[f(w, data)], shape (), in nats.

    A rule of your own is a subclass with `value`; `value_and_gradient` follows from it.
    """

    @abc.abstractmethod
    def value(
        self,
        family: ExponentialFamily,
        eta: Float[Array, "*eta"],
        data: Any,
        key: Key | None,
    ) -> Float[Array, ""]:
        """The expectation under a law.

        Args:
            family: the family of q.
            eta: natural parameters of q.
            data: what f reads beside w.
            key: a random key for rules that draw; the others ignore it.

        Returns:
            E_q[f(w, data)] in nats, shape ().
        """

    def value_and_gradient(
        self,
        family: ExponentialFamily,
        eta: Float[Array, "*eta"],
        data: Any,
        key: Key | None,
    ) -> tuple[Float[Array, ""], Float[Array, "*eta"]]:
        """The expectation under a law and its gradient in the expectation parameters.

        Args:
            family: the family of q.
            eta: natural parameters of q.
            data: what f reads beside w.
            key: as for `value`.

        Returns:
            E_q[f(w, data)] in nats, shape (), and its gradient in μ, shaped like η.
        """
        function = lambda eta: self.value(family, eta, data, key)
        return value_and_dual_gradient(family, function, eta)


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
        """The user's function of μ and the data, see `Expectation.value`."""
        del key
        return self.function(family.mean(eta), data)

    def value_and_gradient(self, family, eta, data, key):
        """The user's function and its gradient in μ, by differentiating in μ itself."""
        del key
        return jax.value_and_grad(self.function)(family.mean(eta), data)
