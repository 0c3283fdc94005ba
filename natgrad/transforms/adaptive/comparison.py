"""By how much a step lowers the loss of a batch, and how much of that is rounding.

Two losses that are close cancel, and what is left is the rounding of terms that have
nothing to do with the step, such as log σ + ½ log 2π of a normal law. Where their
difference is within rounding and the loss is the model's own, the fall is the line
integral of the score instead, in which no constant takes part:

    loss(θ) − loss(θ') = (1/N) Σ_n ∫₀¹ ⟨s(z_n + t (z'_n − z_n), y_n), z'_n − z_n⟩ dt
"""

from __future__ import annotations

import inspect
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from natgrad.control_flow import any_over_vmap
from natgrad.model import Model
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

    after: Array
    fall: Array
    rounding: Array


def compared(
    model: Model | None,
    loss: Callable[[Params], Array],
    before: Array,
    params: Params,
    ahead: Params,
    batch: dict[str, Any],
) -> Comparison:
    """The loss of a batch at `ahead`, compared with that at `params`.

    Args:
        model: the model whose own loss it is, compared without constants; None else.
        loss: (params) -> loss.
        before: `loss` at `params`.
        params: θ.
        ahead: θ'.
        batch: `inputs` and `targets`, by name.
    """
    after = loss(ahead)
    fall, rounding = before - after, rounding_of(before, params)
    if model is None or "targets" not in batch:
        return Comparison(after, fall, rounding)
    close = jnp.abs(fall) <= rounding

    def finely():
        integral, uncertain = _integral(model, params, ahead, batch)
        known = close & jnp.isfinite(integral) & (uncertain < rounding)
        either = lambda a, b: jnp.where(known, a, b).astype(fall.dtype)
        return either(integral, fall), either(uncertain, rounding)

    return Comparison(
        after, *jax.lax.cond(any_over_vmap(close), finely, lambda: (fall, rounding))
    )


def rounding_of(loss: Array, params: Params) -> Array:
    """8 ε |loss|, or ε |loss| with the ε of parameters of a lower precision."""
    epsilon = 8 * float(jnp.finfo(loss.dtype).eps)
    return max(epsilon, _lowest_epsilon(params)) * jnp.abs(loss)


def _integral(model, params, ahead, batch) -> tuple[Array, Array]:
    """loss(θ) − loss(θ') by the score, and what the rounding of z makes of it."""
    outputs, examples, total = model.whole(params, batch["inputs"], batch["targets"])
    z, moved = outputs(params), outputs(ahead)
    score = model.family.score

    def gain(z, d, y):
        nodes = zip(NODES, WEIGHTS, strict=True)
        return sum(w / 2 * jnp.sum(score(z + (1 + t) / 2 * d, y) * d) for t, w in nodes)

    size = lambda z, y: jnp.sum(jnp.abs(score(z, y) * z))
    weights, y = examples.weights, examples.target
    gains = jax.vmap(model.factor_sum(gain))(weights, z, moved - z, y)
    sizes = jax.vmap(model.factor_sum(size))(weights, z, y)
    # Each z_n is rounded on its own.
    rounding = 4 * _lowest_epsilon(params) * jnp.max(sizes) * len(sizes) ** 0.5
    return jnp.sum(gains) / total, rounding / total


def _lowest_epsilon(params: Params) -> float:
    """ε of the least precise parameters."""
    return max(float(jnp.finfo(leaf.dtype).eps) for leaf in jax.tree.leaves(params))


def called(value_fn: Callable, params: Any, known: dict[str, Any]) -> Array:
    """value_fn(params), with the extra arguments it has parameters for."""
    names = list(inspect.signature(value_fn).parameters)[1:]
    return value_fn(params, **{name: known[name] for name in names if name in known})


def taking_all(value_fn: Callable, known: dict[str, Any]) -> Callable:
    """value_fn with all these as parameters; optax's line searches refuse others."""

    def of(params, **given):
        return called(value_fn, params, given)

    kinds = inspect.Parameter
    of.__signature__ = inspect.Signature(
        [
            kinds("params", kinds.POSITIONAL_ONLY),
            *(kinds(name, kinds.KEYWORD_ONLY) for name in known),
        ]
    )
    return of
