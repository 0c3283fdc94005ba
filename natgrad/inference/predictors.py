"""Expectations along linear predictors x_n·w of Gaussian laws: one dimension each.

`LinearPredictors` uses the trapezoidal rule of `quadrature`, which says how accurate it
is; take more points for wider laws. `ClosedPredictors` takes the user's own formula.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from natgrad.families import MultivariateNormal, MultivariateNormalDiag
from natgrad.families.base import ExponentialFamily
from natgrad.inference.dual import diagonal_moments
from natgrad.inference.expectations import Expectation, LogDensity
from natgrad.inference.quadrature import standard_normal_rule
from natgrad.typing import Array


class Linear(NamedTuple):
    """The data of `LinearPredictors` and `ClosedPredictors`.

    Attributes:
        x: [N, d], the rows x_n.
        y: a tree of arrays [N, ...], what f reads of example n.
        variance: [N] or None: of a further independent normal term in the predictor,
            such as what inducing points leave of a Gaussian process.
    """

    x: Array
    y: Any
    variance: Array | None = None


@dataclasses.dataclass(frozen=True)
class LinearPredictors(Expectation):
    """Σ_n E[f(x_n·w, y_n)] for a Gaussian q; data is a `Linear`.

    Attributes:
        log_likelihood: f(predictor (), y_n) -> nats, shape ().
        points: of the trapezoidal rule for each example.
    """

    log_likelihood: LogDensity
    points: int = 129

    def __post_init__(self):
        if not isinstance(self.points, int) or self.points < 3:
            raise ValueError(
                f"LinearPredictors: points is {self.points!r}; expected an integer of "
                "at least 3."
            )

    def value(self, family, eta, data, key):
        """Σ_n Σ_k weight_k f(m_n + s_n z_k, y_n)."""
        del key
        m, v = _moments(self, family, eta, data)
        rule = standard_normal_rule(self.points)
        z, weights = (jnp.asarray(array, eta.dtype) for array in rule)

        def example(m, v, y):
            predictors = m + jnp.sqrt(v) * z
            values = jax.vmap(lambda f: self.log_likelihood(f, y))(predictors)
            _check_scalars(self, values, predictors)
            return jnp.vdot(weights, values, precision="highest")

        return jnp.sum(jax.vmap(example)(m, v, data.y))


@dataclasses.dataclass(frozen=True)
class ClosedPredictors(Expectation):
    """Σ_n E[f(x_n·w, y_n)] for a Gaussian q, in closed form; data is a `Linear`.

    For counts with y log λ − λ, λ = e^f: (m, v, y) -> y m − exp(m + v/2).

    Attributes:
        expected: (m (), v (), y_n) -> E[f] in nats, shape (), for a predictor of mean m
            and variance v.
    """

    expected: Callable[[Array, Array, Any], Array]

    def value(self, family, eta, data, key):
        """Σ_n expected(m_n, v_n, y_n)."""
        del key
        m, v = _moments(self, family, eta, data)
        values = jax.vmap(self.expected)(m, v, data.y)
        _check_scalars(self, values, m)
        return jnp.sum(values)


def _moments(rule: Expectation, family, eta: Array, data: Any) -> tuple[Array, Array]:
    """Means and variances [N] of the predictors."""
    if not isinstance(data, Linear):
        raise ValueError(
            f"{type(rule).__name__}: data is a {type(data).__name__}; expected "
            "inference.Linear(x, y)."
        )
    m, v = predictor_law(family, eta, data.x)
    given = {"y": data.y, "variance": data.variance}
    for name, leaves in ((n, jax.tree.leaves(tree)) for n, tree in given.items()):
        for shape in map(jnp.shape, leaves):
            if shape[:1] != m.shape or (name == "variance" and len(shape) > 1):
                raise ValueError(
                    f"Linear: {name} has shape {shape}; expected one entry for each of "
                    f"the {len(m)} rows of x."
                )
    return m, v if data.variance is None else v + data.variance


def _check_scalars(rule: Expectation, values: Array, like: Array) -> None:
    if values.shape != like.shape:
        raise ValueError(
            f"{type(rule).__name__}: the log-density of an example has shape "
            f"{values.shape[1:]}; expected (), in nats. Has a leaf of y an axis "
            "too many?"
        )


def _check_rows(x: Array, mean: Array) -> None:
    if jnp.ndim(x) != 2 or jnp.shape(x)[1:] != mean.shape:
        raise ValueError(
            f"Linear: x has shape {jnp.shape(x)}; expected [N, {mean.size}], for the "
            f"law of {mean.size} weights that is given."
        )


@functools.singledispatch
def predictor_law(
    family: ExponentialFamily, eta: Array, x: Array
) -> tuple[Array, Array]:
    """The law of each predictor x_n·w under a Gaussian law of w.

    Args:
        family: `MultivariateNormal` or `MultivariateNormalDiag`.
        eta: natural parameters of the law of w.
        x: the rows x_n, [N, d].

    Returns:
        (means [N], variances [N]).

    Raises:
        ValueError: for any other family, or another d.
    """
    del eta, x
    raise ValueError(
        f"The law of x·w is known for MultivariateNormal and MultivariateNormalDiag, "
        f"not for {family!r}: use Quadrature or Sampling."
    )


@predictor_law.register
def _full(family: MultivariateNormal, eta, x):
    m, covariance = family.mean_and_covariance(eta)
    _check_rows(x, m)
    products = jnp.matmul(x, covariance, precision="highest")
    return jnp.matmul(x, m, precision="highest"), jnp.sum(products * x, axis=-1)


@predictor_law.register
def _diagonal(family: MultivariateNormalDiag, eta, x):
    m, v = diagonal_moments(family, eta)
    _check_rows(x, m)
    means = jnp.matmul(x, m, precision="highest")
    return means, jnp.matmul(x**2, v, precision="highest")
