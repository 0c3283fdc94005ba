"""The evidence lower bound of a specification, and its gradient.

    ELBO(q) = E_q[log p(D | w)] − KL(q ‖ prior) = E_q[log p(D | w) + log p(w)] + H(q)

The first form is for a prior of q's own family, the second for any other.

Source: Khan & Rue (2023), The Bayesian learning rule.
"""

from __future__ import annotations

import dataclasses
from typing import Any

import jax
import jax.numpy as jnp

from natgrad.families.base import ExponentialFamily
from natgrad.inference.dual import value_and_dual_gradient
from natgrad.inference.expectations import Expectation
from natgrad.typing import Array, ArrayLike, Key


@dataclasses.dataclass(frozen=True)
class LearningRule:
    """What is inferred and how: a specification, hashable, without arrays.

    Attributes:
        family: of q.
        log_likelihood: the rule for E_q[log p(D | w)].
        log_prior: the rule for E_q[log p(w)], whose data are the prior's parameters;
            None: the prior is the law of `family` with natural parameters `prior`.
        halvings: of a step at most; 0 takes every step that ends at a finite ELBO.
            Where they do not suffice the shortest step is taken all the same.
    """

    family: ExponentialFamily
    log_likelihood: Expectation
    log_prior: Expectation | None = None
    halvings: int = 1100

    def __post_init__(self):
        if not isinstance(self.family, ExponentialFamily):
            raise ValueError(
                f"LearningRule: family is {self.family!r}; expected an "
                "ExponentialFamily, whose natural parameters the steps are taken in."
            )
        for name in ("log_likelihood", "log_prior"):
            rule = getattr(self, name)
            optional = name == "log_prior" and rule is None
            if not (isinstance(rule, Expectation) or optional):
                raise ValueError(
                    f"LearningRule: {name} is {rule!r}; expected a rule for its "
                    "expectation, such as inference.Quadrature(log_density)."
                )
        if not isinstance(self.halvings, int) or self.halvings < 0:
            raise ValueError(
                f"LearningRule: halvings is {self.halvings!r}; expected an integer of "
                "at least 0."
            )


def elbo(
    rule: LearningRule,
    natural: Array,
    prior: Any,
    data: Any,
    scale: ArrayLike = 1.0,
    key: Key | None = None,
) -> Array:
    """The evidence lower bound of a law.

    Args:
        rule: the specification.
        natural: η of the law.
        prior: natural parameters of the prior, or the data of `rule.log_prior`.
        data: of `rule.log_likelihood`, a batch of it or all.
        scale: N/B, for a batch of B of N examples.
        key: for rules that draw.

    Returns:
        E_q[log p(D | w)] − KL(q ‖ prior) in nats, shape ().

    Raises:
        ValueError: for a prior of another form, and where a rule needs a key.
    """
    family, (key, prior_key) = rule.family, _keys(key)
    expected = rule.log_likelihood.value(family, natural, data, key)
    scaled = jnp.asarray(scale, natural.dtype) * expected
    if rule.log_prior is None:
        return scaled - family.kl(natural, _conjugate(rule, prior, natural))
    log_prior = rule.log_prior.value(family, natural, prior, prior_key)
    return scaled + log_prior + family.entropy(natural)


def elbo_and_gradient(
    rule: LearningRule,
    natural: Array,
    prior: Any,
    data: Any,
    scale: ArrayLike,
    key: Key | None,
) -> tuple[Array, Array]:
    """The evidence lower bound of a law and its gradient in μ.

    Args:
        rule: the specification.
        natural: η of the law.
        prior: natural parameters of the prior, or the data of `rule.log_prior`.
        data: of `rule.log_likelihood`, a batch of it or all.
        scale: N/B, for a batch of B of N examples.
        key: for rules that draw.

    Returns:
        (ELBO in nats, shape (); ∇_μ ELBO, shaped like η).
    """
    family, (key, prior_key) = rule.family, _keys(key)
    expected, gradient = rule.log_likelihood.value_and_gradient(
        family, natural, data, key
    )
    scale = jnp.asarray(scale, natural.dtype)
    if rule.log_prior is None:
        prior = _conjugate(rule, prior, natural)
        value = scale * expected - family.kl(natural, prior)
        return value, scale * gradient + (prior - natural)
    log_prior, prior_gradient = rule.log_prior.value_and_gradient(
        family, natural, prior, prior_key
    )
    # H = A − ⟨η, μ⟩ − E[h] has the gradient −η − ∇_μ E[h].
    _, base_gradient = value_and_dual_gradient(
        family, family.expected_log_base_measure, natural
    )
    value = scale * expected + log_prior + family.entropy(natural)
    return value, scale * gradient + prior_gradient - base_gradient - natural


def _conjugate(rule: LearningRule, prior: Any, natural: Array) -> Array:
    shape = getattr(prior, "shape", None)
    if shape != natural.shape:
        got = f"shape {shape}" if shape is not None else f"a {type(prior).__name__}"
        raise ValueError(
            f"prior: {got} was given; expected the natural parameters of a law of "
            f"{rule.family!r}, of shape {natural.shape}. For a prior of another form "
            "give LearningRule a log_prior."
        )
    return jnp.asarray(prior, natural.dtype)


def _keys(key: Key | None) -> tuple[Key | None, Key | None]:
    if key is None:
        return None, None
    first, second = jax.random.split(key)
    return first, second
