"""Scores of an unnormalised log-density at its own draws, less their mean."""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp

from natgrad.curvature.labels import Labels, ScoreColumns
from natgrad.model import Model
from natgrad.model.batch import Example
from natgrad.typing import Array


@dataclasses.dataclass(frozen=True)
class Centred(Labels):
    """An unnormalised log-density at its own draws, whose scores are centred.

    z_n = log p̃(x_n) with log p(x) = z − log Z, Z unknown, and examples x_n drawn from
    p: the score of x_n is J_n − E[J], so that

        F = (1/N) Σ_n (J_n − J̄)(J_n − J̄)ᵀ,      J̄ = (1/N) Σ_n J_n.

    With weights ω_n ∝ p(x_n) over all x it is exact. Four times this is the quantum
    geometric tensor's real part for log ψ = z/2 (stochastic reconfiguration). For
    models of one scalar an example; see `natgrad.families.Unnormalized`.

    Source: Sorella (1998), Green function Monte Carlo with stochastic reconfiguration.
    """

    def columns(self, model: Model, z: Array, example: Example) -> ScoreColumns:
        """∂z/∂z = 1, before the mean is taken off."""
        del model
        if z.ndim:
            raise ValueError(
                "Centred() labels are for models of one number an example, the "
                "unnormalised log-density z [N]; got z of shape "
                f"[N, {', '.join(map(str, z.shape))}]."
            )
        return ScoreColumns(jnp.ones((1,), z.dtype), example.weights[None])

    def products(
        self, model: Model, z: Array, examples: Example, total: Array, v: Array
    ) -> Array:
        """ω_n (v_n − v̄), [N]."""
        each = super().products(model, z, examples, total, v)
        return each - examples.weights * jnp.sum(each) / total

    def mean_divergence(
        self, model: Model, z: Array, examples: Example, total: Array, z2: Array
    ) -> Array:
        """Half the variance of z2 − z."""
        whole = super().mean_divergence(model, z, examples, total, z2)
        mean = jnp.sum(examples.weights * (z2 - z)) / total
        return whole - 0.5 * mean**2

    @property
    def centred(self) -> bool:
        """Yes."""
        return True
