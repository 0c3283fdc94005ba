"""The expected logarithms of a Dirichlet law's proportions, and what they lose."""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jax.scipy.special import logsumexp

from natgrad.families.numerics.remainders import quotient
from natgrad.families.numerics.special import log_minus_digamma
from natgrad.typing import Array


def mean_log(a: Array) -> Array:
    """ψ(a) − ψ(a₀) over the last axis, accurate also where a is near a₀."""
    total = jnp.sum(a, axis=-1, keepdims=True)
    return _log_share(a) - (log_minus_digamma(a) - log_minus_digamma(total))


@jax.custom_jvp
def _log_share(a: Array) -> Array:
    """log(a/a₀), from the others' share where that is the smaller."""
    total, others = jnp.sum(a, axis=-1, keepdims=True), _others(a)
    small = others < 0.5 * total
    share = jnp.where(small, others, 0.0) / total
    return jnp.where(small, jnp.log1p(-share), jnp.log(a / total))


@_log_share.defjvp
def _log_share_jvp(
    primals: tuple[Array], tangents: tuple[Array]
) -> tuple[Array, Array]:
    """(o/a₀) da/a − do/a₀ with o = a₀ − a."""
    (a,), (da,) = primals, tangents
    total = jnp.broadcast_to(jnp.sum(a, axis=-1, keepdims=True), a.shape)
    own = quotient(_others(a), total) * quotient(da, a)
    return _log_share(a), own - quotient(_others(da), total)


def _others(a: Array) -> Array:
    """a₀ − a over the last axis, without subtraction."""
    zero = jnp.zeros_like(a[..., :1])
    before = jnp.concatenate([zero, jnp.cumsum(a[..., :-1], axis=-1)], axis=-1)
    after = jnp.cumsum(a[..., :0:-1], axis=-1)[..., ::-1]
    return before + jnp.concatenate([after, zero], axis=-1)


def mean_log_complement(a: Array) -> Array:
    """−log Σ e^{ψ(a_i) − ψ(a₀)}, over the last axis."""
    total = jnp.sum(a, axis=-1, keepdims=True)
    gaps = log_minus_digamma(total) - log_minus_digamma(a)
    mean = jnp.sum(a / total * jnp.expm1(gaps), axis=-1)
    near = mean > -0.5
    far = logsumexp(jnp.log(a / total) + gaps, axis=-1)
    return -jnp.where(near, jnp.log1p(jnp.where(near, mean, 0.0)), far)
