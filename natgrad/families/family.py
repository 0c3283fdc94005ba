"""`Family`, a law p(y | z): what every curvature asks of the law of a model's labels.

A family reads the model's output z for one example and is a law over its label y.
The score is s(z, y) = ∂ log p(y | z)/∂z, and the Fisher information in z is

    F_z = E_y[s sᵀ] = ∂²/∂z'² KL(p(· | z) ‖ p(· | z'))  at z' = z.

Factors. A law reads the last `parameter_ndim` axes of z, and those before them are
independent factors of one example (positions of a sequence, pixels): log-probabilities
and divergences sum over them, samples and scores keep their shape. In shapes, [...]
stands for the axes of z, or of y, of one example.

Source: Amari, Information Geometry and Its Applications (2016), chapters 1 and 2.
"""

from __future__ import annotations

import abc
from typing import ClassVar

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float, Shaped

from natgrad.families import expectations
from natgrad.families.provenance import described
from natgrad.typing import Array, Key


class Family(abc.ABC):
    """A law p(y | z) over the labels of ONE example; callers vmap over examples.

    A subclass must give `log_prob` and `sample`. Everything else has a default, which
    is exact where autodiff can make it so (`score`), or where `support` gives finitely
    many labels to sum over, and a Monte-Carlo estimate where neither can (`kl`,
    `score_nodes`, `columns`); `provenance` says which is which.

    Attributes:
        parameter_ndim: trailing axes of z that one factor reads; None means that the
            whole of an example's z belongs to one factor.
        label_ndim: trailing axes of y that belong to one factor.
        monte_carlo_samples: labels drawn by the estimated defaults.
        domain: which z are parameters of a law, in words; empty where all are.
    """

    parameter_ndim: ClassVar[int | None] = None
    label_ndim: ClassVar[int] = 0
    monte_carlo_samples: ClassVar[int] = 256
    domain: ClassVar[str] = ""

    @abc.abstractmethod
    def log_prob(
        self, z: Float[Array, "..."], y: Shaped[Array, "..."]
    ) -> Float[Array, ""]:
        """The log-probability of y in nats, summed over factors.

        Args:
            z: the parameters of all factors of one example.
            y: their labels.

        Returns:
            log p(y | z), shape (), in the precision of z.
        """

    @abc.abstractmethod
    def sample(self, key: Key, z: Float[Array, "..."]) -> Shaped[Array, "..."]:
        """Draw labels y ~ p(· | z).

        Args:
            key: a random key.
            z: the parameters of all factors.

        Returns:
            One label for each factor, of shape `label_shape(z.shape)`.
        """

    def support(self, z: Float[Array, "..."]) -> Shaped[Array, "K ..."] | None:
        """All labels of ONE factor.

        Args:
            z: the parameters of that factor, of which only the shape may matter.

        Returns:
            The labels [K, ...]; None where these are not known or not finitely many.
        """
        del z
        return None

    def kl(self, z: Float[Array, "..."], z2: Float[Array, "..."]) -> Float[Array, ""]:
        """KL(p(· | z) ‖ p(· | z2)); here a sum over `support`.

        Without one it is a Monte-Carlo estimate under one fixed key: see `kl_under`.

        Args:
            z: the parameters of the law that labels are averaged under.
            z2: those of the other law, shaped like z.

        Returns:
            The divergence in nats, summed over factors, shape ().
        """
        return expectations.divergence(self, jax.random.PRNGKey(0), z, z2)

    def kl_under(
        self, key: Key | None, z: Float[Array, "..."], z2: Float[Array, "..."]
    ) -> Float[Array, ""]:
        """`kl`; where that is an estimate (`drawn`), one under this key.

        The mean of r − 1 − log r, r = p(y | z2)/p(y | z): no term is negative, and the
        Hessian at z2 = z is that of `columns`. Its variance grows quickly with the
        distance of the two laws.

        Args:
            key: a random key; None will do where `drawn` is false.
            z: as in `kl`.
            z2: as in `kl`.

        Returns:
            The divergence in nats, summed over factors, shape ().
        """
        given = self._gives("kl")
        return self.kl(z, z2) if given else expectations.divergence(self, key, z, z2)

    def score_nodes(
        self, z: Float[Array, "..."]
    ) -> tuple[Shaped[Array, "K ..."], Float[Array, " K"]]:
        """Points y_k and weights w_k with Σ_k w_k s_k s_kᵀ = F_z, s_k = s(z, y_k).

        They serve scores alone: the points of a quadrature may lie outside of the
        support, such as a count of 1.3. Here they are the labels of `support`, else
        draws under one fixed key, a Monte-Carlo estimate.

        Args:
            z: the parameters of ONE factor.

        Returns:
            The points [K, ...] and their positive weights [K], which sum to 1.
        """
        labels = self.support(z)
        if labels is None:
            return expectations.draws(self, jax.random.PRNGKey(0), z)
        return labels, expectations.probabilities(self.log_prob, z, labels)

    def columns(
        self, key: Key | None, z: Float[Array, "..."]
    ) -> tuple[Float[Array, "K ..."], Float[Array, " K"]]:
        """Scores s_k and weights w_k with Σ_k w_k s_k s_kᵀ = F_z.

        They are exact where the family gives `score_nodes`, `support`, `fisher` or
        `kl`, the last two by a root of F_z. Otherwise they are the scores of
        `monte_carlo_samples` labels drawn under the key.

        Args:
            key: a random key; None will do where `drawn` is false.
            z: the parameters of ONE factor.

        Returns:
            The scores [K, *z.shape] and the weights [K].

        Raises:
            ValueError: for a key that is None where draws are needed.
        """
        if self.has_score_nodes(z):
            ys, weights = self.score_nodes(z)
        elif self.has_fisher_root(z):
            matrix = self.fisher(z).reshape(z.size, z.size)
            scores, weights = expectations.root_columns(matrix)
            return scores.reshape(-1, *z.shape), weights
        elif key is None:
            raise ValueError(
                f"columns: key is None, and the Fisher information of {self!r} is "
                "estimated from draws; expected a random key, as jax.random.key(0)."
            )
        else:
            ys, weights = expectations.draws(self, key, z)
        return jax.vmap(self.score, (None, 0))(z, ys), weights

    def has_score_nodes(self, z: Float[Array, "..."]) -> bool:
        """Are `columns` of ONE factor the scores of `score_nodes`?"""
        return self._gives("score_nodes") or self.support(z) is not None

    def has_fisher_root(self, z: Float[Array, "..."]) -> bool:
        """Do the `columns` of ONE factor need no draws?"""
        known = self._gives("fisher") or self.has_score_nodes(z)
        return known or not self.drawn(z)

    def drawn(self, z: Float[Array, "..."] | jax.ShapeDtypeStruct) -> bool:
        """Does the divergence of laws whose parameters are shaped like z need draws?

        Then `kl_under` is an estimate, and so are `columns`, unless `score_nodes` or
        `fisher` is given.
        """
        one = self._one_factor(z)
        return not self._kl_is_given(one) and jax.eval_shape(self.support, one) is None

    def score(
        self, z: Float[Array, "..."], y: Shaped[Array, "..."]
    ) -> Float[Array, "..."]:
        """∂ log p(y | z)/∂z.

        Args:
            z: the parameters of all factors.
            y: their labels.

        Returns:
            The score of each factor, shaped like z.
        """
        return jax.grad(self.log_prob)(z, y)

    def fisher(self, z: Float[Array, "..."]) -> Float[Array, "..."]:
        """F_z: the Hessian of `kl` unless overridden.

        Args:
            z: the parameters of all factors.

        Returns:
            F_z of shape z.shape + z.shape, 0 between factors.
        """
        return jax.hessian(lambda z2: self.kl(z, z2))(z)

    def fisher_product(
        self, z: Float[Array, "..."], v: Float[Array, "..."]
    ) -> Float[Array, "..."]:
        """F_z v.

        Args:
            z: the parameters of all factors.
            v: shaped like z.

        Returns:
            The product, shaped like z.
        """
        return jnp.tensordot(self.fisher(z), v, axes=z.ndim, precision="highest")

    def fisher_root_product(
        self, z: Float[Array, "..."], v: Float[Array, "..."]
    ) -> Float[Array, "..."]:
        """B v with B Bᵀ = F_z, shaped like z.

        Args:
            z: the parameters of ONE factor, where `has_fisher_root` is true.
            v: shaped like z.
        """
        return expectations.root_product(*self.columns(None, z), v)

    def in_support(
        self, z: Float[Array, "..."], y: Shaped[Array, "..."]
    ) -> Bool[Array, "..."]:
        """Is `log_prob` defined at y?

        For an exponential family where T(y) is in the closure of the domain of means:
        also at labels that the law never draws, such as a grey pixel.

        Args:
            z: the parameters of all factors.
            y: their labels.

        Returns:
            A boolean for each factor.
        """
        del z
        axes = tuple(range(y.ndim - self.label_ndim, y.ndim))
        return jnp.all(~jnp.isnan(y), axis=axes)

    def label_shape(self, z_shape: tuple[int, ...]) -> tuple[int, ...] | None:
        """The shape of the labels that go with this shape of z; None if not known."""
        if self.parameter_ndim is None or self.label_ndim:
            return None
        return z_shape[: len(z_shape) - self.parameter_ndim]

    def label_shapes(self, z_shape: tuple[int, ...]) -> tuple[tuple[int, ...], ...]:
        """Every shape that labels may have, that of samples first; () where unknown."""
        return tuple(s for s in [self.label_shape(z_shape)] if s is not None)

    @property
    def provenance(self) -> dict[str, str]:
        """How each derived quantity is computed."""
        own, kl = self._otherwise, self._gives("kl")
        exactly = "estimated" in own and (kl or self._gives("fisher"))
        columns = "root of fisher" if exactly else own
        return described(self, "given" if kl else own, columns)

    @property
    def _otherwise(self) -> str:
        """How labels are averaged over where nothing is given."""
        drawn = f"estimated from {self.monte_carlo_samples} samples"
        return "sum over support" if self._gives("support") else drawn

    def _gives(self, name: str) -> bool:
        return getattr(type(self), name) is not getattr(Family, name)

    def _one_factor(
        self, z: Float[Array, "..."] | jax.ShapeDtypeStruct
    ) -> jax.ShapeDtypeStruct:
        axes = z.ndim if self.parameter_ndim is None else self.parameter_ndim
        return jax.ShapeDtypeStruct(z.shape[z.ndim - axes :], z.dtype)

    def _kl_is_given(self, one: Array | jax.ShapeDtypeStruct) -> bool:
        """For parameters of one factor shaped like these."""
        del one
        return self._gives("kl")
