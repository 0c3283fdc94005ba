"""Linear and logistic regression, with their two Fisher matrices in closed form.

With rows x_n, f_n = ⟨x_n, θ⟩ and prior variance v,

    loss        (1/N) Σ_n ℓ(y_n, f_n) + |θ|² / (2 v N)   (nats, constants left out)
    residual    r_n = ∂ℓ/∂f:    f_n − y_n  (linear),    σ(f_n) − y_n  (logistic)
    gradient    g = Xᵀr / N + θ / (v N)
    Fisher      F = Xᵀ diag(w) X / N,   w_n = 1  (linear),   p_n (1 − p_n)  (logistic)
    empirical   E = Xᵀ diag(r²) X / N

Neither matrix contains the prior; `hessian` adds its I / (v N) to F. Probabilities are
clipped to [1e-8, 1 − 1e-8], as published. All are natgrad's `dense` and `empirical`
curvatures of these models, which the tests check; the closed forms run ten thousand
descents at once.

Source: Kunstner, Hennig & Balles (2019), sections 2 and 3, and their published code.
"""

from __future__ import annotations

import abc
import dataclasses
import math

import jax
import jax.numpy as jnp
import numpy as np

from natgrad.typing import Array

_LOWEST_PROBABILITY = 1e-8


@dataclasses.dataclass(frozen=True, eq=False)
class Problem(abc.ABC):
    """A regression; a tree of arrays, so that one compiled function serves all.

    Attributes:
        features: X [N, P].
        targets: y [N].
        pairs: x_ni x_nj for i <= j, [N, P (P + 1) / 2].
        prior_variance: v, a scalar; inf for no prior.
    """

    features: Array
    targets: Array
    pairs: Array
    prior_variance: Array

    @classmethod
    def of(
        cls, features: np.ndarray, targets: np.ndarray, prior_variance: float = math.inf
    ) -> Problem:
        """The problem with these rows and labels."""
        features = np.asarray(features, np.float64)
        first, second = np.triu_indices(features.shape[1])
        return cls(
            features=jnp.asarray(features),
            targets=jnp.asarray(np.asarray(targets, np.float64)),
            pairs=jnp.asarray(features[:, first] * features[:, second]),
            prior_variance=jnp.asarray(prior_variance, float),
        )

    def __init_subclass__(cls):
        names = [field.name for field in dataclasses.fields(cls)]
        jax.tree_util.register_dataclass(cls, data_fields=names, meta_fields=[])

    @property
    def examples(self) -> int:
        """N."""
        return self.features.shape[0]

    @property
    def parameters(self) -> int:
        """P."""
        return self.features.shape[1]

    def take(self, rows: Array | np.ndarray) -> Problem:
        """The problem with some of its rows, in this order."""
        return dataclasses.replace(
            self,
            features=self.features[rows],
            targets=self.targets[rows],
            pairs=self.pairs[rows],
        )

    def loss(self, theta: Array) -> Array:
        """The mean negative log-likelihood and the prior, shape ()."""
        prior = theta @ theta / (2 * self.prior_variance * self.examples)
        return jnp.mean(self.losses(self.features @ theta)) + prior

    def gradient(self, theta: Array) -> Array:
        """g [P]."""
        prior = theta / (self.prior_variance * self.examples)
        return self._residuals(theta) @ self.features / self.examples + prior

    def fisher(self, theta: Array) -> Array:
        """F [P, P], without the prior."""
        return self._weighted(self.weights(self.features @ theta))

    def empirical(self, theta: Array) -> Array:
        """E [P, P], without the prior."""
        return self._weighted(self._residuals(theta) ** 2)

    def hessian(self, theta: Array) -> Array:
        """F + I / (v N): the Hessian of `loss`."""
        prior = jnp.eye(self.parameters) / (self.prior_variance * self.examples)
        return self.fisher(theta) + prior

    @abc.abstractmethod
    def losses(self, f: Array) -> Array:
        """ℓ(y_n, f_n), [N]."""

    @abc.abstractmethod
    def means(self, f: Array) -> Array:
        """E[y_n], [N]."""

    @abc.abstractmethod
    def weights(self, f: Array) -> Array:
        """w_n, [N]."""

    def _residuals(self, theta: Array) -> Array:
        return self.means(self.features @ theta) - self.targets

    def _weighted(self, weights: Array) -> Array:
        """Xᵀ diag(weights) X / N: under vmap one product with `pairs`."""
        upper = weights @ self.pairs / self.examples
        first, second = np.triu_indices(self.parameters)
        where = np.zeros((self.parameters, self.parameters), int)
        where[first, second] = where[second, first] = np.arange(len(first))
        return upper[where]


class Linear(Problem):
    """y ~ N(f, 1), without the constant ½ log 2π in its loss."""

    def losses(self, f: Array) -> Array:
        """(f − y)² / 2."""
        return (f - self.targets) ** 2 / 2

    def means(self, f: Array) -> Array:
        """The outputs themselves."""
        return f

    def weights(self, f: Array) -> Array:
        """Ones."""
        return jnp.ones_like(f)


class Logistic(Problem):
    """y ~ Bernoulli(σ(f)), probabilities clipped."""

    def losses(self, f: Array) -> Array:
        """−log p(y_n | f_n)."""
        yes, no = -jnp.log(_sigmoid(f)), -jnp.log(_sigmoid(-f))
        return yes * self.targets + no * (1 - self.targets)

    def means(self, f: Array) -> Array:
        """P(y = 1)."""
        return _sigmoid(f)

    def weights(self, f: Array) -> Array:
        """p (1 − p)."""
        return _sigmoid(f) * (1 - _sigmoid(f))


def _sigmoid(f: Array) -> Array:
    """σ(f), clipped."""
    return jnp.clip(jax.nn.sigmoid(f), _LOWEST_PROBABILITY, 1 - _LOWEST_PROBABILITY)


def minimiser(problem: Problem, steps: int = 50) -> Array:
    """θ* [P], by Newton's method from 0, halving the steps that go up.

    Raises:
        ValueError: where no minimum is found, as for separable classes.
    """
    halves = 0.5 ** np.arange(30)
    theta, least = np.zeros(problem.parameters), np.inf
    for _ in range(steps):
        trials = theta - halves[:, None] * _newton(problem, theta)
        losses = np.asarray(_losses_at(problem, trials))
        best = np.nanargmin(losses)
        if losses[best] >= least:
            break
        theta, least = trials[best], losses[best]
    # A last full step: the loss no longer tells neighbouring numbers apart.
    last = _newton(problem, theta)
    decrement = float(problem.gradient(jnp.asarray(theta)) @ last)
    if not decrement <= 1e-6 * max(least, 1e-6):
        raise ValueError(
            f"expected a problem with a minimum (separable classes have none); after "
            f"{steps} steps the loss is {least} nats and falls by {decrement / 2} more"
        )
    return jnp.asarray(theta - last)


def _newton(problem: Problem, theta: np.ndarray) -> np.ndarray:
    """H⁻¹g [P]."""
    gradient, hessian = _slopes(problem, theta)
    return np.linalg.solve(np.asarray(hessian), np.asarray(gradient))


_losses_at = jax.jit(lambda problem, thetas: jax.vmap(problem.loss)(thetas))
_slopes = jax.jit(
    lambda problem, theta: (problem.gradient(theta), problem.hessian(theta))
)
