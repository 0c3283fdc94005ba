"""A density known up to its constant: z = log p̃(x) at the example x itself.

For models of x rather than of labels given x, such as wave functions, z = 2 log ψ(x).
Examples must be draws from the model, made elsewhere, or weigh as much as it says.
Go with `natgrad.curvature.Centred` labels, which take the scores less their mean: log Z
need never be known.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import jax.numpy as jnp

from natgrad.families.base import Family
from natgrad.typing import Array, Key


@dataclasses.dataclass(frozen=True)
class Unnormalized(Family):
    """log p(x) = z − log Z with unknown Z: z is one number an example; no labels."""

    parameter_ndim: ClassVar[int] = 0

    def log_prob(self, z: Array, y: Array) -> Array:
        """Σ z, which lacks log Z: compare it only at fixed parameters."""
        del y
        return jnp.sum(z)

    def sample(self, key: Key, z: Array) -> Array:
        """Raises: a number at one x does not say how to draw another."""
        del key, z
        raise ValueError(
            "Unnormalized() has no draws of its own: sample x from exp(z(x)) by Monte "
            "Carlo and pass the draws as inputs, with Centred() labels."
        )

    def kl(self, z: Array, z2: Array) -> Array:
        """Raises: it needs log Z, an integral over all x."""
        del z, z2
        raise ValueError(
            "Unnormalized() has no KL divergence of one example: it needs log Z. Use "
            "Centred() labels, whose metric is the divergence's Hessian."
        )

    def in_support(self, z: Array, y: Array) -> Array:
        """Yes."""
        del z
        return jnp.ones(jnp.shape(y), bool)
