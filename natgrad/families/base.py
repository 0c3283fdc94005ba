"""Two abstract classes: `Family`, a law p(y | z), and `ExponentialFamily`.

A family reads the model's output z for one example and is a law over its label y.
The score is s(z, y) = ∂ log p(y | z)/∂z, and the Fisher information in z is

    F_z = E_y[s sᵀ] = ∂²/∂z'² KL(p(· | z) ‖ p(· | z'))  at z' = z.

An exponential family has z = η, its natural parameter, and

    log p(y | η) = ⟨η, T(y)⟩ − A(η) + h(y),      mean(η) = ∇A(η),   F_η = ∇²A(η).

Factors. A law reads the last `parameter_ndim` axes of z, and those before them are
independent factors of one example (positions of a sequence, pixels): log-probabilities
and divergences sum over them, samples and scores keep their shape.

Source: Amari, Information Geometry and Its Applications (2016), chapters 1 and 2.
"""

from __future__ import annotations

import abc
from typing import ClassVar, final

import jax
import jax.numpy as jnp

from natgrad.families import expectations
from natgrad.families.numerics.checks import without_lost
from natgrad.families.numerics.remainders import taylor_remainder
from natgrad.typing import Array, Key


class Family(abc.ABC):
    """A law p(y | z) over the labels of ONE example; callers vmap over examples.

    A subclass must give `log_prob` and `sample`. Everything else has a default, which
    is exact where autodiff can make it so (`score`), or where `support` gives finitely
    many labels to sum over, and a Monte-Carlo estimate where neither can (`kl`,
    `nodes`, `columns`); `provenance` says which is which.

    Attributes:
        parameter_ndim: trailing axes of z that one factor reads; None means that the
            whole of an example's z belongs to one factor.
        label_ndim: trailing axes of y that belong to one factor.
        monte_carlo_samples: labels drawn by the estimated defaults.
    """

    parameter_ndim: ClassVar[int | None] = None
    label_ndim: ClassVar[int] = 0
    monte_carlo_samples: ClassVar[int] = 256

    @abc.abstractmethod
    def log_prob(self, z: Array, y: Array) -> Array:
        """The log-probability of y in nats, shape (): summed over factors."""

    @abc.abstractmethod
    def sample(self, key: Key, z: Array) -> Array:
        """A label y ~ p(· | z), one for each factor of z."""

    def support(self, z: Array) -> Array | None:
        """All labels of ONE factor, [K, ...]; None where these are not known or finite.

        They depend on the shape of z, the parameters of that factor, alone.
        """
        del z
        return None

    def kl(self, z: Array, z2: Array) -> Array:
        """KL(p(· | z) ‖ p(· | z2)) in nats, shape (); here a sum over `support`.

        Without one it is a Monte-Carlo estimate under one fixed key: see `kl_under`.
        """
        return expectations.divergence(self, jax.random.PRNGKey(0), z, z2)

    def kl_under(self, key: Key | None, z: Array, z2: Array) -> Array:
        """`kl`; where that is an estimate (`drawn`), one under this key.

        The mean of r − 1 − log r, r = p(y | z2)/p(y | z): no term is negative, and the
        Hessian at z2 = z is that of `columns`. Its variance grows quickly with the
        distance of the two laws.
        """
        given = self._gives("kl")
        return self.kl(z, z2) if given else expectations.divergence(self, key, z, z2)

    def nodes(self, z: Array) -> tuple[Array, Array]:
        """Labels and weights (ys [K, ...], weights [K]) with Σ_k w_k s_k s_kᵀ = F_z.

        z holds the parameters of ONE factor. Weights are positive; labels of a
        quadrature may lie outside of the support, and serve scores alone. Here they are
        those of `support`, else draws under one fixed key, a Monte-Carlo estimate.
        """
        labels = self.support(z)
        if labels is None:
            return expectations.draws(self, jax.random.PRNGKey(0), z)
        return labels, expectations.probabilities(self.log_prob, z, labels)

    def columns(self, key: Key | None, z: Array) -> tuple[Array, Array]:
        """Scores and weights ([K, *z.shape], [K]) with Σ_k w_k s_k s_kᵀ = F_z.

        They are exact where the family gives `nodes`, `support`, `fisher` or `kl`, the
        last two by a root of F_z. Otherwise they are the scores of
        `monte_carlo_samples` labels drawn under the key.

        Args:
            key: a random key; None will do where `drawn` is false.
            z: the parameters of ONE factor.
        """
        if self.has_nodes(z):
            ys, weights = self.nodes(z)
        elif self._gives("fisher") or not self.drawn(z):
            matrix = self.fisher(z).reshape(z.size, z.size)
            scores, weights = expectations.root_columns(matrix)
            return scores.reshape(-1, *z.shape), weights
        else:
            ys, weights = expectations.draws(self, key, z)
        return jax.vmap(self.score, (None, 0))(z, ys), weights

    def has_nodes(self, z: Array) -> bool:
        """Are `columns` the scores of `nodes`, for ONE factor's parameters z?"""
        return self._gives("nodes") or self.support(z) is not None

    def drawn(self, z: Array) -> bool:
        """Does the divergence of laws whose parameters are shaped like z need draws?

        Then `kl_under` and, but for given `nodes` or `fisher`, `columns` are estimates.
        """
        one = self._one_factor(z)
        return not self._kl_is_given(one) and jax.eval_shape(self.support, one) is None

    def score(self, z: Array, y: Array) -> Array:
        """∂ log p(y | z)/∂z, shaped like z."""
        return jax.grad(self.log_prob)(z, y)

    def fisher(self, z: Array) -> Array:
        """F_z, of shape z.shape + z.shape: the Hessian of `kl` unless overridden."""
        return jax.hessian(lambda z2: self.kl(z, z2))(z)

    def fisher_product(self, z: Array, v: Array) -> Array:
        """F_z v, shaped like z."""
        return jnp.tensordot(self.fisher(z), v, axes=z.ndim, precision="highest")

    def in_support(self, z: Array, y: Array) -> Array:
        """Boolean, one entry a factor: is `log_prob` defined at y?

        For an exponential family where T(y) is in the closure of the domain of means:
        also at labels that the law never draws, such as a grey pixel.
        """
        del z
        axes = tuple(range(y.ndim - self.label_ndim, y.ndim))
        return jnp.all(~jnp.isnan(y), axis=axes)

    def label_shape(self, z_shape: tuple[int, ...]) -> tuple[int, ...] | None:
        """The shape of the labels; None where only samples tell."""
        if self.parameter_ndim is None or self.label_ndim != 0:
            return None
        return z_shape[: len(z_shape) - self.parameter_ndim]

    def label_shapes(self, z_shape: tuple[int, ...]) -> tuple[tuple[int, ...], ...]:
        """Every shape that labels may have, that of samples first; () where unknown."""
        shape = self.label_shape(z_shape)
        return () if shape is None else (shape,)

    @property
    def provenance(self) -> dict[str, str]:
        """How each derived quantity is computed: given, exactly, or estimated."""
        own, given = self._otherwise, self._gives("kl")
        exactly = "estimated" in own and (given or self._gives("fisher"))
        kl = "given" if given else own
        return self._provenance(kl, "root of fisher" if exactly else own)

    @property
    def _otherwise(self) -> str:
        """How labels are averaged over where nothing is given."""
        if self._gives("support"):
            return "sum over support"
        return f"estimated from {self.monte_carlo_samples} samples"

    def _provenance(self, kl: str, columns: str) -> dict[str, str]:
        if "estimated" in columns:
            columns += ", drawn for each example and step"
        by_kl = "Hessian of kl" + ("" if kl == "given" else f" ({kl})")
        or_given = lambda name, how: "given" if self._gives(name) else how
        return {
            "kl": kl,
            "nodes": or_given("nodes", self._otherwise),
            "columns": or_given("nodes", columns),
            "score": or_given("score", "autodiff of log_prob"),
            "fisher": or_given("fisher", by_kl),
        }

    def _gives(self, name: str) -> bool:
        return getattr(type(self), name) is not getattr(Family, name)

    def _one_factor(self, z: Array) -> jax.ShapeDtypeStruct:
        axes = z.ndim if self.parameter_ndim is None else self.parameter_ndim
        return jax.ShapeDtypeStruct(z.shape[z.ndim - axes :], z.dtype)

    def _kl_is_given(self, one: Array) -> bool:
        """For parameters of one factor shaped like these."""
        del one
        return self._gives("kl")


class ExponentialFamily(Family):
    """A family whose z is the natural parameter η; A, T and h define it.

    A subclass gives `log_normalizer`, `sufficient_statistics`, `natural`, `sample` and,
    where h is not 0, `log_base_measure`. `mean`, `kl` and `entropy` may be overridden
    by forms that are accurate near a boundary, and must agree with the derived ones.

    Where a mean rounds to the boundary of its domain (a Bernoulli's p to 1), `mean` no
    longer determines η. Families for which that matters have two more methods:
    `mean_complement(eta)`, the distance that was lost (1 − p), and
    `natural_from_complement(mu, complement)`, the η of both.
    """

    @abc.abstractmethod
    def log_normalizer(self, eta: Array) -> Array:
        """A(η) in nats, shape (): summed over the factors of one example."""

    @abc.abstractmethod
    def sufficient_statistics(self, y: Array) -> Array:
        """T(y), shaped like η."""

    @abc.abstractmethod
    def natural(self, mu: Array) -> Array:
        """η with mean(η) = μ, shaped like μ.

        NaN where μ is not the mean of any law of the family; where such a μ is on the
        boundary, η may be the infinite limit instead.
        """

    def log_base_measure(self, y: Array) -> Array:
        """h(y) in nats, shape (): summed over factors; 0 unless overridden."""
        del y
        return jnp.zeros(())

    def expected_log_base_measure(self, eta: Array) -> Array:
        """E[h(y)] in nats, shape (): 0 where h is, else estimated from samples."""
        if type(self).log_base_measure is ExponentialFamily.log_base_measure:
            return jnp.zeros((), eta.dtype)
        ys, weights = expectations.draws(self, jax.random.PRNGKey(0), eta)
        return jnp.sum(weights * jax.vmap(self.log_base_measure)(ys))

    def entropy(self, eta: Array) -> Array:
        """A(η) − ⟨η, μ⟩ − E[h(y)] in nats, shape (); overridden where that cancels."""
        inner = jnp.vdot(eta, self.mean(eta), precision="highest")
        return self.log_normalizer(eta) - inner - self.expected_log_base_measure(eta)

    def mean(self, eta: Array) -> Array:
        """The expectation parameter μ = E[T(y)] = ∇A(η), shaped like η."""
        return jax.grad(self.log_normalizer)(eta)

    def log_prob(self, z: Array, y: Array) -> Array:
        """⟨η, T(y)⟩ − A(η) + h(y), shape (); in the inner product 0 · ∞ is 0.

        For a T(y) that is no label's but a mean of such it is minus the cross-entropy,
        the mean of log p, but for h, which is taken at y.
        """
        statistics = self.sufficient_statistics(y).astype(z.dtype)
        inner = jnp.vdot(without_lost(z, statistics), statistics, precision="highest")
        base = self.log_base_measure(y).astype(z.dtype)
        return inner - self.log_normalizer(z) + base

    @final
    def conjugate(self, mu: Array) -> Array:
        """A*(μ) = ⟨η(μ), μ⟩ − A(η(μ)), the Legendre conjugate of A, shape ()."""
        eta = self.natural(mu)
        return jnp.sum(eta * mu) - self.log_normalizer(eta)

    @final
    def bregman(self, eta: Array, eta2: Array) -> Array:
        """D_A(η, η2) = A(η) − A(η2) − ⟨η − η2, ∇A(η2)⟩ = KL(p_η2 ‖ p_η), shape ()."""
        inner = jnp.sum((eta - eta2) * self.mean(eta2))
        return self.log_normalizer(eta) - self.log_normalizer(eta2) - inner

    def kl(self, z: Array, z2: Array) -> Array:
        """KL(p_z ‖ p_z2) = D_A(z2, z): the arguments swap.

        Where that difference cancels it is ∫₀¹ (1 − t) dᵀ∇²A(z + t d) d dt, d = z2 − z.
        """
        bregman, d = self.bregman(z2, z), z2 - z
        scale = jnp.abs(self.log_normalizer(z)) + jnp.abs(self.log_normalizer(z2))
        near = bregman < jnp.finfo(z.dtype).eps ** 0.4 * scale
        along = lambda t: jnp.sum(d * self.fisher_product(z + t * d, d))
        return jnp.where(near, taylor_remainder(along, z.dtype), bregman)

    def score(self, z: Array, y: Array) -> Array:
        """T(y) − mean(η), shaped like η."""
        return self.sufficient_statistics(y).astype(z.dtype) - self.mean(z)

    @final
    def fisher(self, z: Array) -> Array:
        """∇²A(η), of shape η.shape + η.shape."""
        return jax.jacfwd(self.mean)(z)

    @final
    def fisher_product(self, z: Array, v: Array) -> Array:
        """∇²A(η) v by one forward derivative of `mean`, shaped like η."""
        return jax.jvp(self.mean, (z,), (v,))[1]
