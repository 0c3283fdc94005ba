"""`ExponentialFamily`, a law whose z is its natural parameter η.

    log p(y | η) = ⟨η, T(y)⟩ − A(η) + h(y),      mean(η) = ∇A(η),   F_η = ∇²A(η).

Source: Amari, Information Geometry and Its Applications (2016), chapters 1 and 2.
"""

from __future__ import annotations

import abc
from typing import final

import jax
import jax.numpy as jnp
from jaxtyping import Float, Shaped

from natgrad.families import expectations
from natgrad.families.family import Family
from natgrad.families.numerics.checks import without_lost
from natgrad.families.numerics.remainders import root, taylor_remainder
from natgrad.typing import Array

__all__ = ["ExponentialFamily", "Family"]


class ExponentialFamily(Family):
    """A family whose z is the natural parameter η; A, T and h define it.

    A subclass gives `log_normalizer`, `sufficient_statistics`, `natural`, `sample` and,
    where h is not 0, `log_base_measure`. `mean`, `kl` and `entropy` may be overridden
    by forms that are accurate near a boundary, and must agree with the derived ones.

    Where a mean rounds to the boundary of its domain (a Bernoulli's p to 1), `mean` no
    longer determines η. Families for which that matters have two more methods, both
    factor by factor: `mean_complement(eta)`, the distance that was lost (1 − p), and
    `natural_from_complement(mu, complement)`, the η of both; NaN where there is none.
    """

    @abc.abstractmethod
    def log_normalizer(self, eta: Float[Array, "..."]) -> Float[Array, ""]:
        """A(η) in nats, shape (): summed over the factors of one example."""

    @abc.abstractmethod
    def sufficient_statistics(self, y: Shaped[Array, "..."]) -> Shaped[Array, "..."]:
        """T(y), shaped like η."""

    @abc.abstractmethod
    def natural(self, mu: Float[Array, "..."]) -> Float[Array, "..."]:
        """η with mean(η) = μ: the inverse of `mean`.

        Args:
            mu: expectation parameters of all factors, shaped like η.

        Returns:
            η, shaped like μ. NaN where μ is not the mean of any law of the family;
            where such a μ is on the boundary, η may be the infinite limit instead.
        """

    def log_base_measure(self, y: Shaped[Array, "..."]) -> Float[Array, ""]:
        """h(y) in nats, shape (): summed over factors; 0 unless overridden."""
        del y
        return jnp.zeros(())

    def expected_log_base_measure(self, eta: Float[Array, "..."]) -> Float[Array, ""]:
        """E[h(y)] in nats, shape (): 0 where h is, else estimated from samples."""
        if type(self).log_base_measure is ExponentialFamily.log_base_measure:
            return jnp.zeros((), eta.dtype)
        ys, weights = expectations.draws(self, jax.random.PRNGKey(0), eta)
        return jnp.sum(weights * jax.vmap(self.log_base_measure)(ys))

    def entropy(self, eta: Float[Array, "..."]) -> Float[Array, ""]:
        """A(η) − ⟨η, μ⟩ − E[h(y)] in nats, shape (); overridden where that cancels."""
        inner = jnp.vdot(eta, self.mean(eta), precision="highest")
        return self.log_normalizer(eta) - inner - self.expected_log_base_measure(eta)

    def mean(self, eta: Float[Array, "..."]) -> Float[Array, "..."]:
        """The expectation parameter μ = E[T(y)] = ∇A(η), shaped like η."""
        return jax.grad(self.log_normalizer)(eta)

    def log_prob(
        self, z: Float[Array, "..."], y: Shaped[Array, "..."]
    ) -> Float[Array, ""]:
        """⟨η, T(y)⟩ − A(η) + h(y); in the inner product 0 · ∞ is 0.

        For a T(y) that is no label's but a mean of such it is minus the cross-entropy,
        the mean of log p, but for h, which is taken at y.
        """
        statistics = self.sufficient_statistics(y).astype(z.dtype)
        inner = jnp.vdot(without_lost(z, statistics), statistics, precision="highest")
        base = self.log_base_measure(y).astype(z.dtype)
        return inner - self.log_normalizer(z) + base

    @final
    def conjugate(self, mu: Float[Array, "..."]) -> Float[Array, ""]:
        """A*(μ) = ⟨η(μ), μ⟩ − A(η(μ)), the Legendre conjugate of A, shape ()."""
        eta = self.natural(mu)
        return jnp.sum(eta * mu) - self.log_normalizer(eta)

    @final
    def bregman(
        self, eta: Float[Array, "..."], eta2: Float[Array, "..."]
    ) -> Float[Array, ""]:
        """A's Bregman divergence D_A(η, η2) = KL(p_η2 ‖ p_η).

        It is A(η) − A(η2) − ⟨η − η2, ∇A(η2)⟩, by that difference.

        Args:
            eta: natural parameters of the one law.
            eta2: of the law that labels are averaged under, shaped like `eta`.

        Returns:
            The divergence in nats, summed over factors, shape ().
        """
        inner = jnp.sum((eta - eta2) * self.mean(eta2))
        return self.log_normalizer(eta) - self.log_normalizer(eta2) - inner

    def kl(self, z: Float[Array, "..."], z2: Float[Array, "..."]) -> Float[Array, ""]:
        """KL(p_z ‖ p_z2) = D_A(z2, z): the arguments swap.

        Where that difference cancels it is ∫₀¹ (1 − t) dᵀ∇²A(z + t d) d dt, d = z2 − z.
        """
        bregman, d = self.bregman(z2, z), z2 - z
        scale = jnp.abs(self.log_normalizer(z)) + jnp.abs(self.log_normalizer(z2))
        near = bregman < jnp.finfo(z.dtype).eps ** 0.4 * scale
        along = lambda t: jnp.sum(d * self.fisher_product(z + t * d, d))
        return jnp.where(near, taylor_remainder(along, z.dtype), bregman)

    def score(
        self, z: Float[Array, "..."], y: Shaped[Array, "..."]
    ) -> Float[Array, "..."]:
        """T(y) − mean(η), shaped like η."""
        return self.sufficient_statistics(y).astype(z.dtype) - self.mean(z)

    @final
    def fisher(self, z: Float[Array, "..."]) -> Float[Array, "..."]:
        """∇²A(η), of shape η.shape + η.shape."""
        return jax.jacfwd(self.mean)(z)

    @final
    def fisher_product(
        self, z: Float[Array, "..."], v: Float[Array, "..."]
    ) -> Float[Array, "..."]:
        """∇²A(η) v by one forward derivative of `mean`, shaped like η."""
        return jax.jvp(self.mean, (z,), (v,))[1]

    def fisher_root_product(
        self, z: Float[Array, "..."], v: Float[Array, "..."]
    ) -> Float[Array, "..."]:
        """√A''(η) v where a factor is one number; else as `Family` has it."""
        if z.ndim == self.parameter_ndim == 0:
            return root(self.fisher_product(z, jnp.ones_like(z))) * v
        return super().fisher_root_product(z, v)
