"""Families from distributions of other libraries.

    ng.families.from_distribution(lambda z: distrax.Normal(z[0], jnp.exp(z[1])))

The factory reads the parameters z of ONE factor.
"""

from __future__ import annotations

import dataclasses
import inspect
import sys
from collections.abc import Callable
from typing import Any, ClassVar

import jax
import jax.numpy as jnp

from natgrad.families import expectations
from natgrad.families.base import Family
from natgrad.families.custom import Supported, check_numbers, constant, in_precision_of
from natgrad.families.custom_checks import has_kink
from natgrad.families.provenance import described
from natgrad.families.supports import support_of
from natgrad.typing import Array, ArrayLike, Key

# An object with log_prob and sample, and perhaps kl_divergence.
Distribution = Any


def from_distribution(
    factory: Callable[[Array], Distribution],
    *,
    support: ArrayLike | None = None,
    parameter_ndim: int | None = None,
    samples: int = 256,
    example: Array | None = None,
) -> Family:
    """The family of the laws `factory(z)`: of distrax, numpyro, TFP or like theirs.

    The object needs `log_prob(y)` and `sample(seed=key)` or `sample(key)`. For the
    divergence its `kl_divergence(other)` is called, or numpyro's registry if it is one
    of numpyro's. One with a kink at equal laws, which has no Hessian, is left aside.

    The Fisher information is a sum over all labels, where `support` or the library
    tells that they are finitely many: numpyro's `enumerate_support`; of the others
    Bernoulli, Categorical, OneHotCategorical, FiniteDiscrete, Binomial and
    BetaBinomial; at most 1,024 labels, or as many as z has entries. Otherwise it is
    the Hessian of the divergence. Without both, it and the divergence are estimates
    from draws: see `natgrad.curvature.Exact`.

    Args:
        factory: z of one factor -> distribution. A batch of independent distributions
            is one law, whose log-probability is the sum.
        support: all labels of one factor, [K, ...], where the library does not tell
            them. Their probabilities must sum to 1 at every z: where they do not,
            there is an error, or a NaN under `jax.jit`.
        parameter_ndim: trailing axes of z that `factory` reads; any axes before them
            are independent factors. None: it reads an example's whole z.
        samples: labels drawn to estimate what is not given.
        example: the parameters of one factor. With them it is found out now whether
            there are a divergence and finitely many labels, and `provenance` states it;
            without, it is found out at each call, and `provenance` states both.

    Returns:
        The family.

    Raises:
        ValueError: for impossible arguments; with `example`, else when used, for a
            support that does not have all labels.
    """
    is_distribution = hasattr(factory, "log_prob") and not isinstance(factory, type)
    if is_distribution or not callable(factory):
        raise ValueError(
            f"from_distribution: factory is {factory!r}; expected a function from z to "
            "a distribution, such as lambda z: distrax.Categorical(logits=z)."
        )
    check_numbers("from_distribution", parameter_ndim, samples)
    family = _FromDistribution(
        parameter_ndim=parameter_ndim,
        monte_carlo_samples=samples,
        given_support=constant("from_distribution", support),
        factory=factory,
        has_divergence=None,
        is_finite=None if support is None else True,
    )
    if example is None:
        return family
    example = jnp.asarray(example)
    labels = family.support(example)
    given = family._kl_is_given(example)
    return dataclasses.replace(
        family, has_divergence=given, is_finite=labels is not None
    )


@dataclasses.dataclass(frozen=True, kw_only=True)
class _FromDistribution(Supported):
    made_by: ClassVar[str] = "from_distribution"

    factory: Callable[[Array], Distribution]
    # Whether the distributions have a divergence, and finitely many labels; None where
    # that is not known yet.
    has_divergence: bool | None
    is_finite: bool | None

    def log_prob(self, z: Array, y: Array) -> Array:
        log_prob = lambda z, y: jnp.sum(_made(self.factory, z).log_prob(y))
        return jnp.sum(self._map(log_prob, z, jnp.asarray(y))).astype(z.dtype)

    def sample(self, key: Key, z: Array) -> Array:
        draw = lambda z, key: in_precision_of(z, _sample(_made(self.factory, z), key))
        return self._map(draw, z, self._keys(key, z))

    def support(self, z: Array) -> Array | None:
        if self.given_support is not None or self.is_finite is False:
            return super().support(z)
        return support_of(self.factory(z), z.size)

    def kl(self, z: Array, z2: Array) -> Array:
        return self.kl_under(jax.random.PRNGKey(0), z, z2)

    def kl_under(self, key: Key | None, z: Array, z2: Array) -> Array:
        if not self._kl_is_given(self._one_factor(z)):
            return expectations.divergence(self, key, z, z2)
        return jnp.sum(self._map(self._divergence, z, z2)).astype(z.dtype)

    def _divergence(self, z: Array, z2: Array) -> Array:
        return _divergence(self.factory(z), self.factory(z2))

    def _kl_is_given(self, one: Array | jax.ShapeDtypeStruct) -> bool:
        if self.has_divergence is not None:
            return self.has_divergence
        return self._once("kl", one, self._has_divergence)

    def _has_divergence(self, one: Array) -> bool:
        try:
            jax.eval_shape(self._divergence, one, one)
        except NotImplementedError:
            return False
        return not has_kink(self._divergence, one)

    @property
    def _otherwise(self) -> str:
        if self.is_finite is None:
            found = "sum over the labels where these are finitely many"
            return f"{found}, else {super()._otherwise}"
        return "sum over support" if self.is_finite else super()._otherwise

    @property
    def provenance(self) -> dict[str, str]:
        kl = columns = self._otherwise
        if self.has_divergence:
            kl = "given"
        elif self.has_divergence is None:
            kl = f"given where the distributions have a divergence, else {kl}"
        if self.is_finite is None:
            columns = f"{columns}, or root of fisher where kl is given"
        elif self.has_divergence and not self.is_finite:
            columns = "root of fisher"
        return described(self, kl, columns)


def _made(factory: Callable[[Array], Distribution], z: Array) -> Distribution:
    distribution = factory(z)
    for name in ("log_prob", "sample"):
        if not callable(getattr(distribution, name, None)):
            raise ValueError(
                f"from_distribution: factory(z) is a {type(distribution).__name__} and "
                f"has no {name}; expected a distribution of distrax, numpyro, TFP, "
                "or one like theirs with log_prob(y) and sample(seed=key)."
            )
    return distribution


def _sample(distribution: Distribution, key: Key) -> Array:
    parameters = list(inspect.signature(distribution.sample).parameters)
    if "seed" in parameters:
        return distribution.sample(seed=key)
    if parameters[:1] and parameters[0] in {"sample_shape", "shape", "size"}:
        raise ValueError(
            f"from_distribution: {type(distribution).__name__}.sample takes "
            f"{', '.join(parameters)}; expected sample(seed=key) or sample(key). Wrap "
            "it in a function sample(key, z) and use from_log_prob."
        )
    return distribution.sample(key)


def _divergence(p: Distribution, q: Distribution) -> Array:
    """KL(p ‖ q), summed over a batch; NotImplementedError where there is none."""
    if callable(getattr(p, "kl_divergence", None)):
        return jnp.sum(p.kl_divergence(q))
    # An object of numpyro's is proof that its registry is imported.
    registry = sys.modules.get("numpyro.distributions.kl")
    roots = {base.__module__.partition(".")[0] for base in type(p).__mro__}
    if registry is None or "numpyro" not in roots:
        raise NotImplementedError
    return jnp.sum(registry.kl_divergence(p, q))
