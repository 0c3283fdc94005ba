"""Families from the user's own functions, or from another library's distributions.

    ng.families.from_log_prob(log_prob, sample)
    ng.families.from_distribution(lambda z: distrax.Normal(z[0], jnp.exp(z[1])))

Both read the parameters z of ONE factor. What is not given is derived: the score by
autodiff, the divergence and the nodes from samples; `provenance` says which.
"""

from __future__ import annotations

import dataclasses
import inspect
import sys
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from natgrad.families.base import Family
from natgrad.typing import Array, Key

# An object with log_prob and sample, and perhaps kl_divergence.
Distribution = Any


def from_log_prob(
    log_prob: Callable[[Array, Array], Array],
    sample: Callable[[Key, Array], Array],
    *,
    kl: Callable[[Array, Array], Array] | None = None,
    parameter_ndim: int | None = None,
    samples: int = 256,
) -> Family:
    """The family with this log-probability and this sampler.

    Args:
        log_prob: `log_prob(z, y)`, the log-probability of one label, shape ().
        sample: `sample(key, z)`, one label.
        kl: `kl(z, z2)`, the divergence of the law at z from that at z2, shape (). It is
            differentiated twice in z2 for the Fisher information, so a kink at z2 = z
            (an absolute value of the difference) is not admissible: leave it out then.
        parameter_ndim: trailing axes of z that the functions read; any axes before them
            are independent factors. None: the functions read an example's whole z.
        samples: labels drawn to estimate what is not given.
    """
    for name, function in (("log_prob", log_prob), ("sample", sample)):
        if not callable(function):
            raise ValueError(
                f"from_log_prob: {name} is {function!r}; expected a function, "
                "log_prob(z, y) or sample(key, z)."
            )
    _check_numbers("from_log_prob", parameter_ndim, samples)
    given = {
        "parameter_ndim": parameter_ndim,
        "monte_carlo_samples": samples,
        "given_log_prob": log_prob,
        "given_sample": sample,
    }
    if kl is None:
        return _FromFunctions(**given)
    return _FromFunctionsWithKL(**given, given_kl=kl)


def from_distribution(
    factory: Callable[[Array], Distribution],
    *,
    parameter_ndim: int | None = None,
    samples: int = 256,
    example: Array | None = None,
) -> Family:
    """The family of the laws `factory(z)`: of distrax, numpyro, TFP or like theirs.

    The object needs `log_prob(y)` and `sample(seed=key)` or `sample(key)`. For the
    divergence its `kl_divergence(other)` is called, or numpyro's registry if it is one
    of numpyro's; where that raises NotImplementedError, the divergence is estimated
    from samples instead.

    Args:
        factory: z of one factor -> distribution. A batch of independent distributions
            is one law, whose log-probability is the sum.
        parameter_ndim: trailing axes of z that `factory` reads; any axes before them
            are independent factors. None: it reads an example's whole z.
        samples: labels drawn to estimate what is not given.
        example: the parameters of one factor. With them it is found out now whether
            there is a divergence, and `provenance` states it; without, it is found out
            at each call, and `provenance` states both.
    """
    is_distribution = hasattr(factory, "log_prob") and not isinstance(factory, type)
    if is_distribution or not callable(factory):
        raise ValueError(
            f"from_distribution: factory is {factory!r}; expected a function from z to "
            "a distribution, such as lambda z: distrax.Categorical(logits=z)."
        )
    _check_numbers("from_distribution", parameter_ndim, samples)
    known = None
    if example is not None:
        known = _has_divergence(factory, jnp.asarray(example))
    return _FromDistribution(
        parameter_ndim=parameter_ndim,
        monte_carlo_samples=samples,
        factory=factory,
        has_divergence=known,
    )


def _check_numbers(function: str, parameter_ndim: int | None, samples: int) -> None:
    if parameter_ndim is not None and (
        not isinstance(parameter_ndim, int) or parameter_ndim < 0
    ):
        raise ValueError(
            f"{function}: parameter_ndim is {parameter_ndim!r}; expected 0, 1, … or "
            "None for a law that reads an example's whole z."
        )
    if not isinstance(samples, int) or samples < 1:
        raise ValueError(
            f"{function}: samples is {samples!r}; expected a positive integer, the "
            "number of labels that estimate what is not given."
        )


@dataclasses.dataclass(frozen=True, kw_only=True)
class OfOneFactor(Family):
    """A family whose functions read one factor, mapped over any further axes."""

    parameter_ndim: int | None
    monte_carlo_samples: int

    def _map(self, function: Callable[..., Array], z: Array, *others: Array) -> Array:
        """`function` of the arguments' entries at each factor, axes kept in place."""
        if self.parameter_ndim is None or z.ndim <= self.parameter_ndim:
            return function(z, *others)
        factors = z.shape[: z.ndim - self.parameter_ndim]
        flat = [a.reshape((-1, *a.shape[len(factors) :])) for a in (z, *others)]
        out = jax.vmap(function)(*flat)
        return out.reshape(factors + out.shape[1:])

    def _keys(self, key: Key, z: Array) -> Key:
        if self.parameter_ndim is None or z.ndim <= self.parameter_ndim:
            return key
        return jax.random.split(key, z.shape[: z.ndim - self.parameter_ndim])


@dataclasses.dataclass(frozen=True, kw_only=True)
class _FromFunctions(OfOneFactor):
    given_log_prob: Callable[[Array, Array], Array]
    given_sample: Callable[[Key, Array], Array]

    def log_prob(self, z: Array, y: Array) -> Array:
        log_probs = self._map(self.given_log_prob, z, jnp.asarray(y))
        return jnp.sum(log_probs).astype(z.dtype)

    def sample(self, key: Key, z: Array) -> Array:
        draw = lambda z, key: _in_precision_of(z, self.given_sample(key, z))
        return self._map(draw, z, self._keys(key, z))


@dataclasses.dataclass(frozen=True, kw_only=True)
class _FromFunctionsWithKL(_FromFunctions):
    given_kl: Callable[[Array, Array], Array]

    def kl(self, z: Array, z2: Array) -> Array:
        return jnp.sum(self._map(self.given_kl, z, z2)).astype(z.dtype)


@dataclasses.dataclass(frozen=True, kw_only=True)
class _FromDistribution(OfOneFactor):
    factory: Callable[[Array], Distribution]
    # Whether the distributions have a divergence; None where that is not known yet.
    has_divergence: bool | None

    def log_prob(self, z: Array, y: Array) -> Array:
        log_prob = lambda z, y: jnp.sum(_made(self.factory, z).log_prob(y))
        return jnp.sum(self._map(log_prob, z, jnp.asarray(y))).astype(z.dtype)

    def sample(self, key: Key, z: Array) -> Array:
        draw = lambda z, key: _in_precision_of(z, _sample(_made(self.factory, z), key))
        return self._map(draw, z, self._keys(key, z))

    def kl(self, z: Array, z2: Array) -> Array:
        if self.has_divergence is False:
            return super().kl(z, z2)
        divergence = lambda z, z2: _divergence(self.factory(z), self.factory(z2))
        try:
            return jnp.sum(self._map(divergence, z, z2)).astype(z.dtype)
        except NotImplementedError:
            if self.has_divergence:
                raise
            return super().kl(z, z2)

    @property
    def provenance(self) -> dict[str, str]:
        kl = self._estimated
        if self.has_divergence is None:
            kl = f"given where the distributions have a divergence, else {kl}"
        return self._provenance("given" if self.has_divergence else kl)


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


def _in_precision_of(z: Array, y: Array) -> Array:
    """Real labels in the precision of z, others as they are."""
    y = jnp.asarray(y)
    return y.astype(z.dtype) if jnp.issubdtype(y.dtype, jnp.floating) else y


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


def _has_divergence(factory: Callable[[Array], Distribution], example: Array) -> bool:
    try:
        jax.eval_shape(lambda z: _divergence(factory(z), factory(z)), example)
    except NotImplementedError:
        return False
    return True
