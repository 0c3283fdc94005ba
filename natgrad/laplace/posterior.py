"""A normal law over parameters, its samples, and the evidence of what it rests on.

Source: MacKay (1992), A practical Bayesian framework for backpropagation networks;
Ritter, Botev & Barber (2018), A scalable Laplace approximation for neural networks, for
Kronecker factors; Immer et al. (2021), Scalable marginal likelihood estimation for
model selection in deep learning, for the evidence as an objective.
"""

from __future__ import annotations

from typing import final

import jax
import jax.numpy as jnp
from jaxtyping import Float

from natgrad.laplace import predictive
from natgrad.metrics.base import Metric
from natgrad.model import Model
from natgrad.solvers.damping import DampingLike, by_leaf, resolve_damping
from natgrad.tree import inner, metric_pytree
from natgrad.typing import Array, ArrayLike, Inputs, Key, Params


@final
@metric_pytree("model")
class Posterior:
    """N(θ, (N F + Δ)⁻¹), by the curvature of the loss at θ.

        metric = curvature.at(params, x, y)      # of all data
        posterior = ng.laplace.Posterior(model, params, metric, len(x), 1.0)

    θ is where training ended: a minimum of N loss + ½ θᵀΔθ, which is weight decay of
    Δ/N. It is a pytree, so it passes through jit, vmap and grad. For the last layer, or
    any part of the parameters, give `model.with_frozen(params)`, the part (with
    `optax.MaskedNode` in place of what is fixed) and the metric of that model.

    Attributes:
        model: whose loss was minimised. Examples must not depend on each other: give
            the model in evaluation.
        params: θ.
        metric: F at θ, the mean over all training data, in nats.
        examples: N, or the sum of the examples' weights.
        prior_precision: the diagonal of Δ, > 0: a number, or by layer as a damping (see
            `natgrad.solvers.damping`), with the same blocks that the metric has.
    """

    model: Model
    params: Params
    metric: Metric
    examples: ArrayLike
    prior_precision: DampingLike = 1.0

    @property
    def damping(self) -> DampingLike:
        """Δ/N, with which the covariance is (F + Δ/N)⁻¹/N."""
        return jax.tree.map(lambda own: own / self.examples, self.prior_precision)

    def sample(self, key: Key) -> Params:
        """A draw of the parameters.

        Args:
            key: a random key.

        Returns:
            A tree like the parameters, in their dtypes.
        """
        noise = self.metric.sample(key, self.damping)
        scale = jnp.sqrt(jnp.asarray(self.examples, self.metric.layout.dtype))
        return jax.tree.map(
            lambda p, e: p + (e / scale).astype(p.dtype), self.params, noise
        )

    def variance(self) -> Params:
        """The variance of each parameter: a tree like θ, in the working dtype."""
        found = self.metric.inverse_diagonal(self.damping)
        return jax.tree.map(lambda own: own / self.examples, found)

    def log_evidence(self, loss: ArrayLike) -> Float[Array, ""]:
        """log p(data | Δ, model) in nats, to second order around θ.

            −N loss − ½ θᵀΔθ + ½ log det Δ − ½ log det(N F + Δ)

        It is differentiable in Δ, and in all that loss, θ and F were computed from:
        noise and other parameters of the family, the parameters of the network.

        Args:
            loss: `model.loss` at θ over all training data, in nats an example.

        Returns:
            A number, shape ().
        """
        layout = self.metric.layout
        precisions = by_leaf(resolve_damping(self.prior_precision, layout), self.params)
        weighted = jax.tree.map(lambda d, p: d * p, precisions, self.params)
        log_prior = sum(
            size * jnp.log(own)
            for size, own in zip(layout.sizes, jax.tree.leaves(precisions), strict=True)
        )
        examples = jnp.asarray(self.examples, layout.dtype)
        logdet = layout.size * jnp.log(examples) + self.metric.logdet(self.damping)
        fit = -examples * loss - inner(self.params, weighted) / 2
        return fit + (log_prior - logdet) / 2

    def outputs(self, inputs: Inputs) -> predictive.Outputs:
        """The normal law of z at new inputs, with the model linear in its parameters.

        Args:
            inputs: a batch of inputs.

        Returns:
            Means and covariances of the outputs; see `Outputs`.
        """

        def covariance(row):
            solved = self.metric.solve(row, self.damping)
            return jax.tree.map(lambda leaf: leaf / self.examples, solved)

        return predictive.linearised(self.model, self.params, covariance, inputs)
