"""The loss of one batch before and after a step, and how much of its fall is rounding.

Two losses that are close cancel, and what is left is the rounding of terms that have
nothing to do with the step, such as log σ + ½ log 2π of a normal law. Where their
difference is within rounding and the loss is the model's own, the fall is the line
integral of the score instead, in which no constant takes part:

    loss(θ) − loss(θ') = (1/N) Σ_n ∫₀¹ ⟨s(z_n + t (z'_n − z_n), y_n), z'_n − z_n⟩ dt
"""

from __future__ import annotations

import dataclasses
import functools
import inspect
import operator
from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float

from natgrad import tree
from natgrad.control_flow import any_over_vmap
from natgrad.model import Model, placeholders
from natgrad.typing import Array, Params

# Gauss-Legendre on [−1, 1]: exact for polynomials of degree 5.
NODES, WEIGHTS = np.polynomial.legendre.leggauss(3)


class Comparison(NamedTuple):
    """Of a loss before and after a step; scalars, in nats.

    Attributes:
        after: the loss after the step.
        fall: by how much it is lower than before.
        rounding: a fall or rise that is not larger may be rounding.
    """

    after: Float[Array, ""]
    fall: Float[Array, ""]
    rounding: Float[Array, ""]


@dataclasses.dataclass(frozen=True)
class BatchLoss:
    """One batch: its loss and gradient at θ, and the same loss at other parameters.

    Attributes:
        model: the statistical model of the parameters seen here.
        params: θ.
        gradient: g, the loss's gradient at θ.
        value: the loss at θ, in nats.
        finite: are gradient and value finite?
        value_fn: (params, ...) -> the loss, with extra arguments of its own choice.
        arguments: the extra arguments of `update`, `inputs` among them, by name.
        is_models_own: is `value_fn` the model's loss? Then no constant of the law
            disturbs a comparison.
    """

    model: Model
    params: Params
    gradient: Params
    value: Float[Array, ""]
    finite: Bool[Array, ""]
    value_fn: Callable[..., Array]
    arguments: Mapping[str, Any]
    is_models_own: bool

    def at(self, params: Params) -> Float[Array, ""]:
        """The loss at these parameters, in nats."""
        model_params = self.arguments.get("model_params")
        if model_params is not None:
            params = placeholders.fill_placeholders(params, model_params)
        loss = call_with_known(self.value_fn, params, self.arguments)
        return jnp.asarray(loss, self.value.dtype)

    def compare(self, ahead: Params) -> Comparison:
        """The loss at `ahead` beside that at θ."""
        after = self.at(ahead)
        fall, rounding = self.value - after, self.rounding
        if not self.is_models_own:
            return Comparison(after, fall, rounding)
        close = jnp.abs(fall) <= rounding

        def compare_by_scores():
            integral, uncertainty = self._integrate_scores(ahead)
            better = close & jnp.isfinite(integral) & (uncertainty < rounding)
            return (
                jnp.where(better, integral, fall).astype(fall.dtype),
                jnp.where(better, uncertainty, rounding).astype(fall.dtype),
            )

        return Comparison(
            after,
            *jax.lax.cond(
                any_over_vmap(close), compare_by_scores, lambda: (fall, rounding)
            ),
        )

    @property
    def rounding(self) -> Float[Array, ""]:
        """8 ε |loss|, or ε |loss| with the ε of parameters of a lower precision."""
        epsilon = 8 * float(jnp.finfo(self.value.dtype).eps)
        return max(epsilon, _largest_epsilon(self.params)) * jnp.abs(self.value)

    def _integrate_scores(self, ahead: Params) -> tuple[Array, Array]:
        """loss(θ) − loss(θ') by the score, and what the rounding of z makes of it."""
        model, batch = self.model, self.arguments
        outputs, examples, total = model.whole(
            self.params, batch["inputs"], batch.get("targets")
        )
        z, z_ahead = outputs(self.params), outputs(ahead)
        score = model.family.score

        def gain(z, d, y):
            terms = [
                w / 2 * jnp.sum(score(z + (1 + t) / 2 * d, y) * d)
                for t, w in zip(NODES, WEIGHTS, strict=True)
            ]
            return functools.reduce(operator.add, terms)

        def size(z, y):
            return jnp.sum(jnp.abs(score(z, y) * z))

        weights, y = examples.weights, examples.target
        gains = jax.vmap(model.factor_sum(gain))(weights, z, z_ahead - z, y)
        sizes = jax.vmap(model.factor_sum(size))(weights, z, y)
        # Each z_n is rounded on its own.
        rounding = (
            4 * _largest_epsilon(self.params) * jnp.max(sizes) * len(sizes) ** 0.5
        )
        return jnp.sum(gains) / total, rounding / total


def _largest_epsilon(params: Params) -> float:
    """ε of the least precise parameters."""
    return max(float(jnp.finfo(leaf.dtype).eps) for leaf in jax.tree.leaves(params))


def call_with_known(
    value_fn: Callable[..., Array], params: Params, known: Mapping[str, Any]
) -> Array:
    """value_fn(params, ...) with those of the known arguments it has parameters for.

    Args:
        value_fn: a loss; its first parameter takes the params.
        params: θ.
        known: arguments by name.

    Returns:
        What `value_fn` returns, of shape ().

    Raises:
        ValueError: for a function with other arguments, or another result.
    """
    signature = inspect.signature(value_fn)
    names = list(signature.parameters)[1:]
    params = tree.join_complex(params)
    given = {name: known[name] for name in names if name in known}
    try:
        signature.bind(params, **given)
    except TypeError as error:
        missing = [name for name in known if known[name] is not None]
        raise ValueError(
            f"value_fn{signature} is called with the parameters and, by name, with "
            f"arguments of update, here {', '.join(missing)}: {error}. Pass "
            "value_fn=lambda params: loss(params, x, y), or name its arguments so."
        ) from error
    loss = value_fn(params, **given)
    shapes = jax.tree.map(jnp.shape, loss)
    if shapes != ():
        raise ValueError(
            "value_fn must return the loss alone, a number of shape (); got the shapes "
            f"{shapes}. Of a loss with auxiliary results, pass the loss: "
            "value_fn=lambda params: loss(params, x, y)[0]."
        )
    return loss


def with_signature_of(
    value_fn: Callable[..., Array], names: Mapping[str, Any]
) -> Callable[..., Array]:
    """value_fn with all these names as parameters: line searches of optax want that.

    Args:
        value_fn: a loss; its first parameter takes the params.
        names: the parameters, the keys of this mapping.

    Returns:
        (params, ...) -> the loss, which hands on what `value_fn` has parameters for.
    """

    def value_of(params, **arguments):
        return call_with_known(value_fn, params, arguments)

    kinds = inspect.Parameter
    value_of.__signature__ = inspect.Signature(
        [
            kinds("params", kinds.POSITIONAL_ONLY),
            *(kinds(name, kinds.KEYWORD_ONLY) for name in names),
        ]
    )
    return value_of
