"""A normal law over parameters, its samples, and the evidence of what it rests on.

Source: MacKay (1992), A practical Bayesian framework for backpropagation networks, and
Bayesian interpolation, for priors by the evidence; Ritter, Botev & Barber (2018), A
scalable Laplace approximation for neural networks, for Kronecker factors; Immer et al.
(2021), Scalable marginal likelihood estimation for model selection in deep learning.
"""

from __future__ import annotations

import dataclasses
from typing import final

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Float

from natgrad.arguments import check_count, check_in, check_number, is_positive
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
        """Δ/N, with which the covariance is (F + Δ/N)⁻¹/N.

        Raises:
            ValueError: here and so in all methods: θ is not what the metric is of; N or
                a precision is known and not positive.
        """
        self.metric.layout.check(self.params, "params")
        check_in("examples", self.examples, is_positive, "be positive")
        for own in jax.tree.leaves(self.prior_precision):
            check_in("prior_precision", own, is_positive, "be positive")
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
        check_number("loss", loss)
        layout, damping = self.metric.layout, self.damping
        precisions = by_leaf(resolve_damping(self.prior_precision, layout), self.params)
        weighted = jax.tree.map(lambda d, p: d * p, precisions, self.params)
        log_prior = sum(
            size * jnp.log(own)
            for size, own in zip(layout.sizes, jax.tree.leaves(precisions), strict=True)
        )
        examples = jnp.asarray(self.examples, layout.dtype)
        logdet = layout.size * jnp.log(examples) + self.metric.logdet(damping)
        fit = -examples * loss - inner(self.params, weighted) / 2
        return fit + (log_prior - logdet) / 2

    def outputs(self, inputs: Inputs) -> predictive.Outputs:
        """The normal law of z at new inputs, with the model linear in its parameters.

        Args:
            inputs: a batch of inputs.

        Returns:
            Means and covariances of the outputs; see `Outputs`.
        """
        damping = self.damping  # refused, if it is, before the model meets θ

        def covariance(row):
            solved = self.metric.solve(row, damping)
            return jax.tree.map(lambda leaf: leaf / self.examples, solved)

        return predictive.linearised(self.model, self.params, covariance, inputs)


def fit_prior(
    posterior: Posterior,
    loss: ArrayLike,
    optimizer: optax.GradientTransformation | None = None,
    num_steps: int = 100,
) -> tuple[Posterior, Float[Array, " steps"]]:
    """The posterior with the prior precisions that maximise its evidence, θ fixed.

    By steps in log δ, so that each precision stays positive; one number for all, or as
    many as `posterior.prior_precision` has.

    Args:
        posterior: where to start, with a precision > 0 for each part.
        loss: `model.loss` at θ over all training data, in nats an example.
        optimizer: of optax, on log δ; None for `optax.adam(0.1)`.
        num_steps: how many.

    Returns:
        The posterior, and the log evidence before each step.

    Raises:
        ValueError: `loss` is not one number, or `num_steps` no integer of at least 0.
    """
    check_number("loss", loss)
    check_count("num_steps", num_steps, least=0)
    optimizer = optimizer or optax.adam(0.1)

    def with_logs(logs):
        precision = jax.tree.map(jnp.exp, logs)
        return dataclasses.replace(posterior, prior_precision=precision)

    def negative(logs):
        return -with_logs(logs).log_evidence(loss)

    def step(carry, _):
        logs, state = carry
        value, gradient = jax.value_and_grad(negative)(logs)
        updates, state = optimizer.update(gradient, state, logs)
        return (optax.apply_updates(logs, updates), state), -value

    dtype = posterior.metric.layout.dtype
    logs = jax.tree.map(
        lambda own: jnp.log(jnp.asarray(own, dtype)), posterior.prior_precision
    )
    start = logs, optimizer.init(logs)
    (logs, _), evidence = jax.lax.scan(step, start, length=num_steps)
    return with_logs(logs), evidence
