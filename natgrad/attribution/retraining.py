"""Training as a function of the weights of its examples: derivatives, and the truth.

    θ(w) = the parameters after T steps on (1/N) Σ_n w_n ℓ_n(θ),     w = 1 for the data

The metagradient −∂L(θ(w))/∂w_n is the linear part of L(θ(w − e_n)) − L(θ(w)), for the
training as it is, however far from convergence.

Source: Maclaurin, Duvenaud & Adams (2015), Gradient-based hyperparameter optimization
through reversible learning; Engstrom et al. (2025), Optimizing ML training with
metagradient descent, for data weights.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import optax
from jaxtyping import Float

from natgrad.model import Model
from natgrad.model.weights import trailing
from natgrad.typing import Array, ArrayLike, Inputs, Params

# weights [N] -> what was trained, and -> what is measured of it: losses in nats
Trained = Callable[[Array], Params]
Measure = Callable[[Params], Array]


def training(
    optimizer: Callable[[Model], optax.GradientTransformation],
    model: Model,
    start: Params,
    train: tuple[Inputs, ArrayLike],
    num_steps: int,
) -> Trained:
    """Full-batch training as a function of its examples' weights.

    Steps are rematerialised in a backward pass: its memory is a carry (parameters and
    optimizer's state) a step, and the work of one step. For batches and schedules write
    a loop of your own: any function of the weights will do below.

    Args:
        optimizer: weighted model, of inputs (x, w) -> optimizer, say
            `lambda model: ng.natural_gradient(0.3, model)`. The derivative through
            labels that are drawn (`Sampled`) is right on average only.
        model: the model.
        start: the parameters before the first step.
        train: inputs and labels of N examples.
        num_steps: T.

    Returns:
        weights [N] -> the parameters after T steps.
    """
    x, y = train

    def weights_of(inputs):
        own = jnp.ones(()) if model.weights is None else model.weights(inputs[0])
        return own * trailing(inputs[1], own)

    weighted = dataclasses.replace(
        model,
        apply=lambda params, inputs: model.apply(params, inputs[0]),
        example_inputs=(x, jnp.ones(jnp.shape(y)[0])),
        weights=weights_of,
        in_axes=(model.in_axes, 0),
    )
    tx = optax.with_extra_args_support(optimizer(weighted))

    def trained(weights: Array) -> Params:
        def loss(params):
            total = model.examples(params, x)[1]
            return -jnp.sum(weights * model.log_prob(params, x, y)) / total

        @jax.checkpoint
        def step(carry, _):
            params, state = carry
            batch = {"inputs": (x, weights), "targets": y}
            gradient = jax.tree.map(jnp.conj, jax.grad(loss)(params))  # as optax has it
            updates, state = tx.update(gradient, state, params, **batch)
            return (optax.apply_updates(params, updates), state), None

        carry: Any = (start, tx.init(start))
        return jax.lax.scan(step, carry, length=num_steps)[0][0]

    return trained


def metagradient(
    trained: Trained, measure: Measure, weights: Float[Array, " N"]
) -> Float[Array, "*losses N"]:
    """−∂(losses after training)/∂w_n, by one backward pass a loss.

    Args:
        trained: weights [N] -> the parameters after training.
        measure: parameters -> losses in nats: `lambda p: model.loss(p, x, y)`, or
            `lambda p: -model.log_prob(p, x, y)` for those of each query.
        weights: w, ones for the data as they are.

    Returns:
        [losses..., N], in nats.
    """
    return -jax.jacrev(lambda weights: measure(trained(weights)))(weights)


def retrained(
    trained: Trained, measure: Measure, weights: Float[Array, "K N"], chunk: int = 64
) -> Float[Array, "*losses K"]:
    """What each of K trainings adds to the losses, over the training on all examples.

    Args:
        trained: as for `metagradient`.
        measure: as for `metagradient`.
        weights: of the examples in each training, `1 - jnp.eye(N)` to leave one out.
            To first order the result is `scores @ (1 - weights).T`.
        chunk: how many are trained at once, by `vmap`.

    Returns:
        [losses..., K], in nats.
    """
    rows = jnp.concatenate([jnp.ones_like(weights[:1]), weights])
    after = jax.lax.map(lambda row: measure(trained(row)), rows, batch_size=chunk)
    return jnp.moveaxis(after[1:] - after[:1], 0, -1)


def rank_correlation(
    a: Float[Array, "*lead N"], b: Float[Array, "*lead N"]
) -> Float[Array, "*lead"]:
    """Spearman's correlation along the last axis; ties have the mean of their ranks.

    Args:
        a: scores.
        b: others of the same shape.

    Returns:
        [lead...], in [−1, 1]; NaN where all scores of a row are equal.

    Raises:
        ValueError: the shapes differ, or there are fewer than two scores.
    """
    shapes = jnp.shape(a), jnp.shape(b)
    if shapes[0] != shapes[1] or not shapes[0] or shapes[0][-1] < 2:
        raise ValueError(
            "A rank correlation is of two arrays of one shape [..., N], N >= 2; got "
            f"the shapes {shapes[0]} and {shapes[1]}."
        )
    ranks = (jax.scipy.stats.rankdata(scores, axis=-1) for scores in (a, b))
    a, b = (rank - jnp.mean(rank, axis=-1, keepdims=True) for rank in ranks)
    norms = jnp.sqrt(jnp.sum(a**2, axis=-1) * jnp.sum(b**2, axis=-1))
    return jnp.sum(a * b, axis=-1) / norms
