"""Scores of an unnormalised log-density, or of a wave function, less their mean."""

from __future__ import annotations

import dataclasses

import jax.numpy as jnp

from natgrad.curvature.labels import Labels, ScoreColumns
from natgrad.families.unnormalized import Unnormalized, is_amplitude
from natgrad.model import Model
from natgrad.model.batch import Example
from natgrad.model.weights import trailing
from natgrad.typing import Array


@dataclasses.dataclass(frozen=True)
class Centred(Labels):
    """An unnormalised log-density at its own draws, whose scores are centred.

    z_n = log p̃(x_n) with log p(x) = z − log Z, Z unknown, and examples x_n drawn from
    p: the score of x_n is J_n − E[J], so that

        F = (1/N) Σ_n (J_n − J̄)(J_n − J̄)ᵀ,      J̄ = (1/N) Σ_n J_n.

    With weights ω_n ∝ p(x_n) over all x it is exact. For a wave function z = log ψ,
    complex or as (log |ψ|, phase), and examples drawn from |ψ|² it is

        F = S = Re⟨(O − Ō)* (O − Ō)ᵀ⟩,      O = ∂ log ψ/∂θ,

    two columns an example, each less its mean: the real part of the quantum geometric
    tensor. See `natgrad.families.Unnormalized` for the factor of 4 between them.

    Source: Sorella (1998), Green function Monte Carlo with stochastic reconfiguration.
    """

    def columns(self, model: Model, z: Array, example: Example) -> ScoreColumns:
        """∂z/∂z, the identity, before the means are taken off."""
        amplitude = is_amplitude(z) and isinstance(model.family, Unnormalized)
        if z.ndim and not amplitude:
            raise ValueError(
                "Centred() labels are for models of one number an example: an "
                "unnormalised log-density z [N] or, with families.Unnormalized(), log "
                "ψ, complex [N] or real [N, 2]; got z of shape "
                f"[N, {', '.join(map(str, z.shape))}] with {model.family}."
            )
        count = max(z.size, 1)
        scores = jnp.eye(count, dtype=z.dtype).reshape((count, *z.shape))
        return ScoreColumns(scores, jnp.broadcast_to(example.weights, (count,)))

    def products(
        self, model: Model, z: Array, examples: Example, total: Array, v: Array
    ) -> Array:
        """ω_n (v_n − v̄), [N] or [N, 2]."""
        each = super().products(model, z, examples, total, v)
        mean = jnp.sum(each, axis=0) / total
        return each - trailing(examples.weights, each) * mean[None]

    def mean_divergence(
        self, model: Model, z: Array, examples: Example, total: Array, z2: Array
    ) -> Array:
        """Half the variance of z2 − z, of both its columns where it has two."""
        whole = super().mean_divergence(model, z, examples, total, z2)
        weights = trailing(examples.weights, z)
        mean = jnp.sum(weights * (z2 - z), axis=0) / total
        return whole - 0.5 * jnp.sum(mean**2)

    @property
    def centred(self) -> bool:
        """Yes."""
        return True
