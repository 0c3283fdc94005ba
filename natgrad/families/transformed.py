"""A family under a bijection of its sample space.

    ng.families.Transformed(ng.families.Normal(), jnp.exp, jnp.log)

is the law of y = e^x with x normal: the log-normal family. The parameters are those of
x, and so are the divergence, the score and the Fisher information: a bijection of the
sample space is a sufficient statistic. Only the density changes, by the logarithm of
|dx/dy|. An exponential family stays one, with T(x(y)) and that term in h.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable

import jax
import jax.numpy as jnp

from natgrad.families.base import ExponentialFamily, Family
from natgrad.typing import Array, Key


@dataclasses.dataclass(frozen=True)
class Transformed(Family):
    """The law of forward(x), x of the family `family`.

    Attributes:
        family: the family of x, whose parameters are kept.
        forward: x -> y, elementwise for scalar labels, else of one factor's label.
        inverse: y -> x, likewise; outside of the image it must be NaN, or outside of
            the support of x.
        log_derivative: y -> log |dx/dy|, likewise (for vectors the log-determinant,
            shape ()). None: by automatic differentiation of `inverse`.
    """

    family: Family
    forward: Callable[[Array], Array]
    inverse: Callable[[Array], Array]
    log_derivative: Callable[[Array], Array] | None = None

    def __new__(cls, family: Family | None = None, *_: object, **__: object):
        """A transformed exponential family is an `ExponentialTransformed`."""
        if cls is Transformed and isinstance(family, ExponentialFamily):
            return object.__new__(ExponentialTransformed)
        return object.__new__(cls)

    def __post_init__(self):
        if not isinstance(self.family, Family):
            raise ValueError(
                f"Transformed: family is {self.family!r}; expected a family, such as "
                "Normal()."
            )
        for name in ("forward", "inverse"):
            if not callable(getattr(self, name)):
                raise ValueError(
                    f"Transformed: {name} is {getattr(self, name)!r}; expected a "
                    "function of labels, such as jnp.exp and jnp.log."
                )

    @property
    def parameter_ndim(self) -> int | None:
        """That of the family of x."""
        return self.family.parameter_ndim

    @property
    def label_ndim(self) -> int:
        """That of the family of x."""
        return self.family.label_ndim

    @property
    def domain(self) -> str:
        """That of the family of x."""
        return self.family.domain

    @property
    def provenance(self) -> dict[str, str]:
        """That of the family of x."""
        return self.family.provenance

    def log_prob(self, z: Array, y: Array) -> Array:
        """log p(x(y)) + Σ log |dx/dy|, shape ()."""
        y = jnp.asarray(y)
        density = self.family.log_prob(z, self._inverse(y))
        return density + self._log_derivatives(y).astype(z.dtype)

    def kl(self, z: Array, z2: Array) -> Array:
        """That of the laws of x."""
        return self.family.kl(z, z2)

    def kl_under(self, key: Key | None, z: Array, z2: Array) -> Array:
        """That of the laws of x."""
        return self.family.kl_under(key, z, z2)

    def score(self, z: Array, y: Array) -> Array:
        """That of x(y)."""
        return self.family.score(z, self._inverse(jnp.asarray(y)))

    def fisher(self, z: Array) -> Array:
        """That of the law of x."""
        return self.family.fisher(z)

    def fisher_product(self, z: Array, v: Array) -> Array:
        """That of the law of x."""
        return self.family.fisher_product(z, v)

    def score_nodes(self, z: Array) -> tuple[Array, Array]:
        """The images of the nodes of x."""
        xs, weights = self.family.score_nodes(z)
        return jax.vmap(self.forward)(xs), weights

    def columns(self, key: Key | None, z: Array) -> tuple[Array, Array]:
        """Those of the law of x, whose scores are the same."""
        return self.family.columns(key, z)

    def fisher_root_product(self, z: Array, v: Array) -> Array:
        """That of the law of x."""
        return self.family.fisher_root_product(z, v)

    def has_fisher_root(self, z: Array) -> bool:
        """As the law of x."""
        return self.family.has_fisher_root(z)

    def has_score_nodes(self, z: Array) -> bool:
        """As the law of x."""
        return self.family.has_score_nodes(z)

    def drawn(self, z: Array) -> bool:
        """Whether the law of x is."""
        return self.family.drawn(z)

    def sample(self, key: Key, z: Array) -> Array:
        """The image of a draw of x."""
        return self._per_label(self.forward, self.family.sample(key, z))

    def in_support(self, z: Array, y: Array) -> Array:
        """Whether x(y) is in the support."""
        return self.family.in_support(z, self._inverse(jnp.asarray(y)))

    def label_shape(self, z_shape: tuple[int, ...]) -> tuple[int, ...] | None:
        """That of the family of x."""
        return self.family.label_shape(z_shape)

    def _inverse(self, y: Array) -> Array:
        return self._per_label(self.inverse, y)

    def _per_label(self, function: Callable[[Array], Array], y: Array) -> Array:
        """Of each factor's label; functions of scalars are elementwise."""
        if self.label_ndim == 0:
            return function(y)
        for _ in range(y.ndim - self.label_ndim):
            function = jax.vmap(function)
        return function(y)

    def _log_derivatives(self, y: Array) -> Array:
        """Σ log |dx/dy| over factors, shape ()."""
        if self.log_derivative is not None:
            return jnp.sum(self._per_label(self.log_derivative, y))
        y = y.astype(jnp.result_type(y, float))
        if self.label_ndim == 0:
            slopes = jax.jvp(self.inverse, (y,), (jnp.ones_like(y),))[1]
            return jnp.sum(jnp.log(jnp.abs(slopes)))

        def determinant(y):
            matrix = jax.jacfwd(self.inverse)(y).reshape(y.size, y.size)
            return jnp.linalg.slogdet(matrix)[1]

        return jnp.sum(self._per_label(determinant, y))


@dataclasses.dataclass(frozen=True)
class ExponentialTransformed(Transformed, ExponentialFamily):
    """A transformed exponential family; made by `Transformed`."""

    family: ExponentialFamily

    fisher = ExponentialFamily.fisher  # pyright: ignore[reportAssignmentType]
    fisher_product = ExponentialFamily.fisher_product  # pyright: ignore[reportAssignmentType]

    def log_normalizer(self, eta: Array) -> Array:
        """That of the family of x."""
        return self.family.log_normalizer(eta)

    def sufficient_statistics(self, y: Array) -> Array:
        """T(x(y))."""
        return self.family.sufficient_statistics(self._inverse(jnp.asarray(y)))

    def log_base_measure(self, y: Array) -> Array:
        """h(x(y)) + Σ log |dx/dy|."""
        y = jnp.asarray(y)
        base = self.family.log_base_measure(self._inverse(y))
        return base + self._log_derivatives(y)

    def mean(self, eta: Array) -> Array:
        """That of the family of x."""
        return self.family.mean(eta)

    def natural(self, mu: Array) -> Array:
        """That of the family of x."""
        return self.family.natural(mu)
