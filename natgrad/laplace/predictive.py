"""What a normal law of the parameters says of outputs and labels at new inputs.

    z_n ~ N(z_n(θ), J_n (F + Δ/N)⁻¹ J_nᵀ / N),     J_n = ∂z_n/∂θ

which is exact for models that are linear in their parameters, and for others the law
of the model linearised at θ, whose curvature the generalised Gauss-Newton matrix is.
Each row of J_n is solved as a tree like the parameters, so that Kronecker factors stay
factors.

Source: Immer, Korzepa & Bauer (2021), Improving predictions of Bayesian neural nets via
local linearization; MacKay (1992), The evidence framework applied to classification
networks, for probit.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import final

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from natgrad.families import Bernoulli, Categorical
from natgrad.families.base import ExponentialFamily, Family
from natgrad.model import Model, batch
from natgrad.tree import metric_pytree
from natgrad.typing import Array, ArrayLike, Inputs, Key, Params


@final
@metric_pytree("family")
class Outputs:
    """Normal laws of the outputs z_n of some examples, and the law of labels on them.

    Attributes:
        family: p(y | z).
        mean: z_n(θ), [N, ...].
        covariance: over the C numbers of each z_n, [N, C, C].
    """

    family: Family
    mean: Float[Array, "N ..."]
    covariance: Float[Array, "N C C"]

    def sample(self, key: Key, num_draws: int) -> Float[Array, "draws N ..."]:
        """Draws of z.

        Args:
            key: a random key.
            num_draws: how many.
        """
        values, vectors = jnp.linalg.eigh(self.covariance)
        roots = vectors * jnp.sqrt(jnp.maximum(values, 0))[:, None, :]
        shape = (num_draws, *roots.shape[:2])
        noise = jax.random.normal(key, shape, roots.dtype)
        away = jnp.einsum("nij,dnj->dni", roots, noise)
        return self.mean[None] + away.reshape(num_draws, *self.mean.shape)

    def log_prob(
        self, targets: ArrayLike, key: Key, num_draws: int = 256
    ) -> Float[Array, " N"]:
        """log E_z[p(y_n | z_n)] by draws, in nats.

        Args:
            targets: labels y, [N, ...] as the family has them.
            key: a random key.
            num_draws: how many z.
        """
        draws, y = self.sample(key, num_draws), jnp.asarray(targets)
        terms = jax.vmap(lambda z: jax.vmap(self.family.log_prob)(z, y))(draws)
        return jax.nn.logsumexp(terms, axis=0) - jnp.log(num_draws)

    def probabilities(self, key: Key, num_draws: int = 256) -> Float[Array, "N ..."]:
        """E_z of the mean of the labels by draws: for classes their probabilities.

        Args:
            key: a random key.
            num_draws: how many z.

        Returns:
            `family.mean` of z, averaged: [N, K] of `Categorical`, P(y = 1) of
            `Bernoulli`, means of the sufficient statistics of other families.

        Raises:
            ValueError: the family has no such mean.
        """
        if not isinstance(self.family, ExponentialFamily):
            raise ValueError(
                "probabilities(key) needs a family with a mean, such as "
                f"families.Categorical, got {self.family!r}: take sample or log_prob."
            )
        mean = jax.vmap(jax.vmap(self.family.mean))
        return jnp.mean(mean(self.sample(key, num_draws)), axis=0)

    def probit(self) -> Float[Array, "N ..."]:
        """The probabilities at z_n / √(1 + π v_n/8), v_n the variances: no draws.

        Returns:
            [N, K] of `Categorical`, P(y = 1) of `Bernoulli`.

        Raises:
            ValueError: the family is neither of them.
        """
        if not isinstance(self.family, Categorical | Bernoulli):
            raise ValueError(
                "probit() is for families.Categorical and families.Bernoulli, got "
                f"{self.family!r}: take probabilities(key) or log_prob(y, key)."
            )
        variance = jnp.diagonal(self.covariance, axis1=1, axis2=2)
        scale = jnp.sqrt(1 + np.pi / 8 * variance).reshape(self.mean.shape)
        return jax.vmap(self.family.mean)(self.mean / scale)


def linearised(
    model: Model,
    params: Params,
    covariance: Callable[[Params], Params],
    inputs: Inputs,
) -> Outputs:
    """The law of the outputs, one example after another.

    Args:
        model: whose outputs.
        params: θ.
        covariance: v -> C v, of the parameters.
        inputs: a batch of inputs.
    """
    batched, rebuild = batch.split_inputs(inputs, model.in_axes)

    def of_one(example):
        def outputs(params):
            return model.outputs(params, rebuild(example))[0]

        z, pull_back = jax.vjp(outputs, params)
        units = jnp.eye(z.size, dtype=z.dtype).reshape(-1, *z.shape)
        (rows,) = jax.vmap(pull_back)(units)  # leaves [C, ...]
        solved = jax.vmap(covariance)(rows)
        products = jax.tree.map(
            lambda a, b: jnp.matmul(
                a.reshape(z.size, -1),
                b.reshape(z.size, -1).T,
                precision=jax.lax.Precision.HIGHEST,
            ),
            rows,
            solved,
        )
        total = functools.reduce(jnp.add, jax.tree.leaves(products))
        return z, (total + total.T) / 2

    mean, found = jax.lax.map(of_one, batched)
    return Outputs(model.family, mean, found)
