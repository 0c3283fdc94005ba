"""A density known up to its constant, or a wave function: z at the example x itself.

    z = log p̃(x), real, [N]                     p(x) ∝ exp z
    z = log ψ(x), complex, [N]                  p(x) ∝ |ψ|² = exp(2 Re z)
    z = (log |ψ(x)|, phase), real, [N, 2]       the same

For models of x rather than of labels given x. Examples must be draws from p, made
elsewhere, or weigh as much as p says. Go with `natgrad.curvature.Centred` labels, which
take ∂z less its mean: neither log Z nor the norm of ψ need be known.

With these F is the covariance of ∂z, whatever z is,

    F = Re⟨(O − Ō)* (O − Ō)ᵀ⟩,      O = ∂z/∂θ.

Of z = log ψ it is the real part S of the quantum geometric tensor, which is NetKet's
(a factor of 1), and a quarter of the Fisher information of |ψ|² where ψ is positive. A
real z = 2 log ψ of a positive ψ gives that Fisher information, F = 4 S: learning rate
and damping are then four times those for S.
"""

from __future__ import annotations

import dataclasses
from typing import Any, ClassVar

import jax.numpy as jnp

from natgrad.families.base import Family
from natgrad.typing import Array, Key


@dataclasses.dataclass(frozen=True)
class Unnormalized(Family):
    """log p(x) = z − log Z with unknown Z, or log ψ(x) = z; no labels.

    z is one real number an example, or one complex number log ψ, which inside is two
    real ones, (log |ψ|, phase); a model may give these itself.
    """

    parameter_ndim: ClassVar[int | None] = None

    def log_prob(self, z: Array, y: Array) -> Array:
        """z, or 2 log |ψ|, which lack log Z: compare it only at fixed parameters."""
        del y
        return 2 * z[0] if is_amplitude(z) else jnp.sum(z)

    def sample(self, key: Key, z: Array) -> Array:
        """Raises: a number at one x does not say how to draw another."""
        del key, z
        raise ValueError(
            "Unnormalized() has no draws of its own: sample x from exp(z(x)), or from "
            "|ψ(x)|², by Monte Carlo and pass the draws as inputs, with Centred() "
            "labels."
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


def is_amplitude(z: Any) -> bool:
    """Is z of ONE example a wave function's, (log |ψ|, phase)?"""
    return z.shape == (2,)


def as_columns(z: Any) -> Any:
    """Outputs [N] that are complex as their real and imaginary parts, [N, 2].

    Args:
        z: what a model gave; it is given back where it is no complex array.
    """
    if not jnp.iscomplexobj(z):
        return z
    return jnp.stack([jnp.real(z), jnp.imag(z)], axis=-1)
