"""Families from the user's own functions.

    ng.families.from_log_prob(log_prob, sample)

Both functions read the parameters z of ONE factor. What is not given is derived: the
score by autodiff; the divergence and the score columns as sums over the labels, where
these are finitely many and known, else from samples. `provenance` says which.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Hashable
from typing import Any, ClassVar

import jax
import jax.numpy as jnp
from jax.core import Tracer

from natgrad.families.base import Family
from natgrad.families.custom_checks import check_sum, has_kink
from natgrad.typing import Array, ArrayLike, Key


def from_log_prob(
    log_prob: Callable[[Array, Array], Array],
    sample: Callable[[Key, Array], Array],
    *,
    kl: Callable[[Array, Array], Array] | None = None,
    support: ArrayLike | None = None,
    parameter_ndim: int | None = None,
    samples: int = 256,
) -> Family:
    """The family with this log-probability and this sampler.

    Fisher information and divergence are exact where `support` or `kl` is given.
    Without both they are estimates from draws: see `natgrad.curvature.Exact`.

    Args:
        log_prob: `log_prob(z, y)`, the log-probability of one label, shape ().
        sample: `sample(key, z)`, one label.
        kl: `kl(z, z2)`, the divergence of the law at z from that at z2, shape (). It is
            differentiated twice in z2 for the Fisher information, so a kink at z2 = z
            (an absolute value of the difference) is not admissible: leave it out then.
        support: all labels of one factor, [K, ...], where these are finitely many, such
            as `jnp.arange(classes)`. Their probabilities must sum to 1 at every z:
            where they do not, there is an error, or a NaN under `jax.jit`.
        parameter_ndim: trailing axes of z that the functions read; any axes before them
            are independent factors. None: the functions read an example's whole z.
        samples: labels drawn to estimate what is not given.

    Returns:
        The family.

    Raises:
        ValueError: for impossible arguments; when used, for a support that does not
            have all labels.
    """
    for name, function in (("log_prob", log_prob), ("sample", sample)):
        if not callable(function):
            raise ValueError(
                f"from_log_prob: {name} is {function!r}; expected a function, "
                "log_prob(z, y) or sample(key, z)."
            )
    check_numbers("from_log_prob", parameter_ndim, samples)
    given = {
        "parameter_ndim": parameter_ndim,
        "monte_carlo_samples": samples,
        "given_support": constant("from_log_prob", support),
        "given_log_prob": log_prob,
        "given_sample": sample,
    }
    if kl is None:
        return _FromFunctions(**given)
    return _FromFunctionsWithKL(**given, given_kl=kl)


def constant(function: str, support: ArrayLike | None) -> Constant | None:
    """The labels of one factor, [K, ...], as a constant; None for None.

    Raises:
        ValueError: unless there is a first axis of at least one label.
    """
    if support is None:
        return None
    labels = jnp.asarray(support)
    if labels.ndim == 0 or labels.shape[0] == 0:
        raise ValueError(
            f"{function}: support has shape {labels.shape}; expected all labels of one "
            "factor along its first axis, [K, ...], such as jnp.arange(10)."
        )
    return Constant(labels)


def check_numbers(function: str, parameter_ndim: int | None, samples: int) -> None:
    """Check two arguments of `function`, whose name is for the error.

    Raises:
        ValueError: unless parameter_ndim is None or at least 0, and samples positive.
    """
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


@dataclasses.dataclass(frozen=True, eq=False)
class Constant:
    """An array that is compared by identity, so that its family can be hashed."""

    value: Array


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
class Supported(OfOneFactor):
    """A family that may have been given its labels, and perhaps its divergence."""

    made_by: ClassVar[str]

    given_support: Constant | None

    def support(self, z: Array) -> Array | None:
        """The given labels, if their probabilities sum to 1."""
        if self.given_support is None:
            return None
        labels = self.given_support.value
        check = lambda z: check_sum(self.made_by, self.log_prob, z, labels)
        if isinstance(z, Tracer):
            self._once("sum", z, check)
        else:
            check(z)
        return labels

    @property
    def _otherwise(self) -> str:
        if self.given_support is not None:
            return "sum over support"
        return f"estimated from {self.monte_carlo_samples} samples"

    def _once(self, what: Hashable, z: Any, find: Callable[[Any], Any]) -> Any:
        """find(z), which depends on the shape and dtype of z alone."""
        answers = vars(self).setdefault("_answers", {})
        question = what, z.shape, z.dtype
        if question not in answers:
            answers[question] = find(z)
        return answers[question]


@dataclasses.dataclass(frozen=True, kw_only=True)
class _FromFunctions(Supported):
    made_by: ClassVar[str] = "from_log_prob"

    given_log_prob: Callable[[Array, Array], Array]
    given_sample: Callable[[Key, Array], Array]

    def log_prob(self, z: Array, y: Array) -> Array:
        log_probs = self._map(self.given_log_prob, z, jnp.asarray(y))
        return jnp.sum(log_probs).astype(z.dtype)

    def sample(self, key: Key, z: Array) -> Array:
        draw = lambda z, key: in_precision_of(z, self.given_sample(key, z))
        return self._map(draw, z, self._keys(key, z))


@dataclasses.dataclass(frozen=True, kw_only=True)
class _FromFunctionsWithKL(_FromFunctions):
    given_kl: Callable[[Array, Array], Array]

    def kl(self, z: Array, z2: Array) -> Array:
        return jnp.sum(self._map(self.given_kl, z, z2)).astype(z.dtype)

    def _kl_is_given(self, one: Array | jax.ShapeDtypeStruct) -> bool:
        if self._once("kink", one, lambda one: has_kink(self.kl, one)):
            raise ValueError(
                "from_log_prob: kl(z, z2) has a kink at z2 = z: its Hessian there, the "
                "Fisher information, is not the curvature of its values. Expected a "
                "divergence that is twice differentiable; leave kl out otherwise."
            )
        return True


def in_precision_of(z: Array, y: Array) -> Array:
    """Real labels in the precision of z, others as they are."""
    y = jnp.asarray(y)
    return y.astype(z.dtype) if jnp.issubdtype(y.dtype, jnp.floating) else y
