"""Categorical law of a label in 0 … C − 1, parametrised by its C logits.

    A(η) = log Σ_c e^{η_c},   T(y) = e_y,   mean p = softmax(η),   F_η = diag(p) − p pᵀ.

The parametrisation is overcomplete: adding a constant to all logits changes nothing,
and F has that direction in its null space.

KL(p ‖ q) = log Σ p e^{d − Σ p d} with d = η_q − η_p.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar

import jax
import jax.numpy as jnp

from natgrad.families.base import ExponentialFamily
from natgrad.families.expectations import FEW_DRAWS
from natgrad.families.numerics.checks import without_lost
from natgrad.families.numerics.remainders import log_mean_exp, root, softmax
from natgrad.typing import Array, Key


@dataclasses.dataclass(frozen=True)
class Categorical(ExponentialFamily):
    """p(y = c | z) = softmax(z)_c: z holds C logits in its last axis, y is an integer.

    A label shaped like z holds probabilities q instead of a class: smoothed labels,
    those of a teacher, mixtures of two examples, one-hot vectors. Then `log_prob` is
    Σ_c q_c log softmax(z)_c, minus the cross-entropy. The shape alone tells the two
    apart, not the dtype: an index has no axis of classes.

    Attributes:
        num_classes: C. Only `sufficient_statistics` needs it, which cannot read it from
            the labels; where given, z must agree.
    """

    num_classes: int | None = None

    parameter_ndim: ClassVar[int] = 1

    def __post_init__(self):
        given = self.num_classes
        if given is not None and (given != int(given) or given < 2):
            raise ValueError(
                f"Categorical: num_classes is {given!r}; expected an integer of "
                "at least 2, or None to read it from the logits."
            )

    def log_prob(self, z: Array, y: Array) -> Array:
        """Σ log softmax(z)_y, or Σ q log softmax(z) with 0 · (−∞) = 0."""
        y = jnp.asarray(y)
        log_p = jax.nn.log_softmax(self._checked(z), axis=-1)
        if y.shape == z.shape:
            q = y.astype(z.dtype)
            return jnp.vdot(q, without_lost(log_p, q), precision="highest")
        index = jnp.clip(y, 0, z.shape[-1] - 1).astype(jnp.int32)
        return jnp.sum(jnp.take_along_axis(log_p, index[..., None], axis=-1))

    def log_normalizer(self, eta: Array) -> Array:
        """Σ log Σ_c e^{η_c}."""
        return jnp.sum(jax.nn.logsumexp(self._checked(eta), axis=-1))

    def sufficient_statistics(self, y: Array) -> Array:
        """The one-hot vector e_y of a class."""
        if self.num_classes is None:
            raise ValueError(
                "Categorical: num_classes is None, and the statistic e_y has one "
                "entry a class; construct Categorical(num_classes=C)."
            )
        return jax.nn.one_hot(jnp.asarray(y, jnp.int32), self.num_classes)

    def mean(self, eta: Array) -> Array:
        """The probabilities softmax(η)."""
        return softmax(self._checked(eta))

    def natural(self, mu: Array) -> Array:
        """The normalised logits log μ: η up to a constant.

        μ is read up to a factor; NaN where an entry is negative, −∞ where it is 0.
        """
        return jnp.log(mu)

    def entropy(self, eta: Array) -> Array:
        """−Σ p log p."""
        log_p = jax.nn.log_softmax(self._checked(eta), axis=-1)
        log_p = jnp.maximum(log_p, jnp.finfo(eta.dtype).min)
        return -jnp.sum(self.mean(eta) * log_p)

    def kl(self, z: Array, z2: Array) -> Array:
        """Σ log Σ p e^{d − Σ p d} with d = z2 − z, for near and far points."""
        return jnp.sum(_divergence(self._checked(z), self._checked(z2)))

    def score(self, z: Array, y: Array) -> Array:
        """e_y − softmax(z), or q − softmax(z) Σ q."""
        y = jnp.asarray(y)
        if y.shape == z.shape:
            q = y.astype(z.dtype)
            return q - self.mean(z) * jnp.sum(q, axis=-1, keepdims=True)
        index = y.astype(jnp.int32)
        return jax.nn.one_hot(index, z.shape[-1], dtype=z.dtype) - self.mean(z)

    def score_nodes(self, z: Array) -> tuple[Array, Array]:
        """Every class, with its probability."""
        return jnp.arange(z.shape[-1], dtype=jnp.int32), self.mean(z)

    def fisher_root_product(self, z: Array, v: Array) -> Array:
        """√p v − p Σ √p v."""
        p = self.mean(z)
        each = root(p) * v
        return each - p * jnp.sum(each, axis=-1, keepdims=True)

    def sample(self, key: Key, z: Array) -> Array:
        """A class for each factor, an integer array of shape z.shape[:-1]."""
        z = self._checked(z)
        shape = (*z.shape[:-1], max(z.shape[-1], FEW_DRAWS))
        noise = jax.random.gumbel(key, shape, z.dtype)
        # Else its logarithms are unrolled in the search of the largest.
        noise = jax.lax.optimization_barrier(noise)[..., : z.shape[-1]]
        return jnp.argmax(z + noise, axis=-1).astype(jnp.int32)

    def in_support(self, z: Array, y: Array) -> Array:
        """Whether y is one of 0 … C − 1, or is >= 0 and sums to 1 within 0.001.

        Beside the 0.001 there is room for the rounding of labels in half precision.
        """
        y = jnp.asarray(y)
        if y.shape == z.shape:
            eps = jnp.finfo(y.dtype).eps if jnp.issubdtype(y.dtype, jnp.inexact) else 0
            error = jnp.abs(jnp.sum(y, axis=-1, dtype=z.dtype) - 1)
            return jnp.all(y >= 0, axis=-1) & (error <= 1e-3 + 4 * eps)
        return (y >= 0) & (y < z.shape[-1]) & (y == jnp.floor(y))

    def label_shapes(self, z_shape: tuple[int, ...]) -> tuple[tuple[int, ...], ...]:
        """z_shape[:-1], of classes, and z_shape, of probabilities."""
        return (z_shape[:-1], z_shape)

    def _checked(self, z: Array) -> Array:
        if z.ndim == 0 or z.shape[-1] < 2:
            raise ValueError(
                f"Categorical: z has shape {z.shape}; expected at least two logits in "
                "the last axis. For a binary label with one logit use Bernoulli()."
            )
        if self.num_classes is not None and z.shape[-1] != self.num_classes:
            raise ValueError(
                f"Categorical: z has {z.shape[-1]} logits in its last axis; expected "
                f"num_classes={self.num_classes}. Change one of the two."
            )
        return z


@jax.custom_jvp
def _divergence(z: Array, z2: Array) -> Array:
    """KL of each factor; 0 · −∞ is 0, and it is infinite where only q is 0."""
    return _parts(z, z2)[0]


@_divergence.defjvp
def _divergence_jvp(
    primals: tuple[Array, Array], tangents: tuple[Array, Array]
) -> tuple[Array, Array]:
    """−p c dz + (q − p) dz2 with c = d − Σ p d and q − p = p (e^{c − KL} − 1)."""
    (z, z2), (dz, dz2) = primals, tangents
    kl, p, c = _parts(z, z2)
    move = jnp.where(p > 0, c - kl[..., None], 0.0)
    near = (jnp.abs(move) < 1) & (jnp.abs(c) < 2)
    gap = p * jnp.expm1(jnp.where(near, move, 0.0))
    gap = jnp.where(near & (p > 0), gap, softmax(z2) - p)
    # They sum to 0: that of the likeliest class from the others'.
    places = jax.lax.broadcasted_iota(int, z.shape, z.ndim - 1)
    top = jnp.argmax(z, axis=-1, keepdims=True) == places
    others = jnp.where(top, 0.0, gap)
    gap = jnp.where(top, -jnp.sum(others, axis=-1, keepdims=True), others)
    return _divergence(z, z2), jnp.sum(gap * dz2 - p * c * dz, axis=-1)


def _parts(z: Array, z2: Array) -> tuple[Array, Array, Array]:
    """KL, p and c = d − Σ p d; c is 0 where p is."""
    impossible, lost = z == -jnp.inf, z2 == -jnp.inf
    largest = jax.lax.stop_gradient(jnp.max(z, axis=-1, keepdims=True))
    log_p = jax.nn.log_softmax(z, axis=-1)
    p = jnp.exp(log_p)
    # What is measured from the likeliest class keeps the accuracy of the others. Its
    # entry of z2 is found by a maximum: to look it up takes longer to compile.
    of_top = jnp.where(z == largest, z2, -jnp.inf)
    top = jnp.max(of_top, axis=-1, keepdims=True)
    log_p_top = -jnp.log(jnp.sum(jnp.exp(z - largest), axis=-1, keepdims=True))
    d = jnp.where(impossible | lost, z, z2) - jnp.where(impossible, 0.0, z)
    d = jnp.where(impossible, 0.0, d - jnp.where(top == -jnp.inf, 0.0, top - largest))
    centre = jnp.einsum("...c,...c->...", p, d, precision="highest")[..., None]
    c = jnp.where(impossible, 0.0, d - centre)
    exponents = z2 - top + log_p_top - centre
    exponents = jnp.where(lost, -jnp.inf, exponents)
    kl = log_mean_exp(log_p, c, exponents)
    never = jnp.any(lost & ~impossible, axis=-1)
    return jnp.where(never, jnp.inf, kl), p, c
