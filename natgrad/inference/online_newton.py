"""IVON: natural-gradient inference with a diagonal Gaussian, for neural networks.

The weights w have the law q = N(m, σ²), m the params of optax, and the loss ℓ is a mean
over examples in nats, of which there are λ (`ess`). With δ the weight decay, a prior
N(0, 1/(λ δ)), and g the gradient at a draw w of q,

    h_t   = g (w − m)/σ²,    σ² = 1/(λ (h + δ)),    E[h_t] = E_q[∇²ℓ] (Stein's identity)
    g'    = β₁ g' + (1 − β₁) g
    s'    = s (1 − u + u²/2),   u = (1 − β₂)(h − h_t)/s,   s = h + δ
    m'    = m − α (g'/(1 − β₁ᵗ) + δ m)/s'.

Without the second-order term h' = β₂ h + (1 − β₂) h_t, the learning rule's step in the
precision; with it s' ≥ s/2 > 0 for any h_t: the step cannot leave the domain.

    tx = ng.inference.ivon(0.1, ess=60_000)
    state = tx.init(params)
    weights = ng.inference.draw_weights(key, params, state)
    grads = jax.grad(loss)(weights)                         # at the draw
    updates, state = tx.update(grads, state, params, weights=weights)

The u²/2 lifts the stationary s by about (1 − β₂) Var(h_t)/(2 s), which vanishes as
β₂ -> 1.

Source: Lin, Schmidt & Khan (2020), Handling the positive-definite constraint in the
Bayesian learning rule; Shen et al. (2024), Variational learning is effective for large
deep networks, algorithm 1.
"""

from __future__ import annotations

import functools
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from natgrad import tree
from natgrad.arguments import check_in, is_positive
from natgrad.model import placeholders
from natgrad.transforms.validation import transformation
from natgrad.typing import Array, ArrayLike, Key, Params


class IvonState(NamedTuple):
    """The law of the weights, but for its mean, which are the params.

    Attributes:
        count: steps taken.
        momentum: g', shaped like the params.
        precision: s = h + δ, the precision of an example's share; positive.
        ess: λ, so that σ² = 1/(λ s).
    """

    count: Array
    momentum: Params
    precision: Params
    ess: Array


def ivon(
    learning_rate: optax.ScalarOrSchedule,
    ess: ArrayLike,
    *,
    weight_decay: ArrayLike = 1e-4,
    initial_hessian: ArrayLike = 1.0,
    b1: ArrayLike = 0.9,
    b2: ArrayLike = 0.99999,
) -> optax.GradientTransformationExtraArgs:
    """The learning rule for a diagonal Gaussian law of the weights.

    `update(grads, state, params, weights=w)` wants the gradient at a draw w of
    `draw_weights(key, params, state)`. The mean of several draws' gradients is not the
    gradient of one draw: take a step for each.

    Args:
        learning_rate: α, or an optax schedule.
        ess: λ, the effective number of examples; fewer make the law wider.
        weight_decay: δ > 0; the prior's precision over λ.
        initial_hessian: h at the start, at least 0.
        b1: β₁ of the gradient's average.
        b2: β₂ of the Hessian's average.

    Returns:
        The optimizer; its update is to be added to the parameters as it is.

    Raises:
        ValueError: for impossible numbers; in `update`, where `params` or `weights` is
            missing.
    """
    check_in("ess", ess, is_positive, "be positive")
    check_in("weight_decay", weight_decay, is_positive, "be positive")
    check_in("initial_hessian", initial_hessian, lambda h: h >= 0, "be at least 0")
    for name, beta in (("b1", b1), ("b2", b2)):
        check_in(name, beta, lambda beta: 0 <= beta < 1, "lie in [0, 1)")
    averages = _Averages(b1, b2, weight_decay)

    def init(params):
        tree.check_params(params)
        zeros = jax.tree.map(
            lambda p: jnp.zeros(p.shape, tree.working_dtype(p)), params
        )
        precision = jax.tree.map(
            lambda z: jnp.full_like(z, initial_hessian + weight_decay), zeros
        )
        ess_array = jnp.asarray(ess, tree.working_dtype(params))
        return IvonState(jnp.zeros((), jnp.int32), zeros, precision, ess_array)

    def update(updates, state, params=None, *, weights=None, **extra_args):
        del extra_args
        if params is None or weights is None:
            missing = "params" if params is None else "weights"
            raise ValueError(
                f"ivon: update was called without {missing}; expected update(grads, "
                "state, params, weights=w) with w = draw_weights(key, params, state) "
                "and grads the gradient at w."
            )
        count = tree.increment(state.count)
        alpha = learning_rate(state.count) if callable(learning_rate) else learning_rate
        weights = placeholders.masked_like(weights, params)
        steps = jax.tree.map(
            functools.partial(averages.step, alpha, count, state.ess),
            updates,
            state.momentum,
            state.precision,
            params,
            weights,
        )
        moves, momentum, precision = jax.tree.transpose(
            jax.tree.structure(updates), jax.tree.structure((0, 0, 0)), steps
        )
        return moves, IvonState(count, momentum, precision, state.ess)

    return transformation(init, update)


class _Averages(NamedTuple):
    """β₁, β₂ and δ: numbers, or traced scalars."""

    b1: Any
    b2: Any
    weight_decay: Any

    def step(self, alpha, count, ess, gradient, momentum, s, mean, weights):
        """(m' − m, g', s') of one array of the parameters, as the module says."""
        b1, b2, decay = self
        dtype = s.dtype
        gradient, m, w = (jnp.asarray(a, dtype) for a in (gradient, mean, weights))
        estimate = gradient * (w - m) * ess.astype(dtype) * s
        u = (1 - b2) * (s - decay - estimate) / s
        s = s * (1 - u + u**2 / 2)
        momentum = b1 * momentum + (1 - b1) * gradient
        average = momentum / (1 - jnp.asarray(b1, dtype) ** count.astype(dtype))
        move = -alpha * (average + decay * m) / s
        return move.astype(mean.dtype), momentum, s


def draw_weights(key: Key, params: Params, state: IvonState) -> Params:
    """Weights w ~ N(m, 1/(λ s)), reparameterised.

    They have at least float32, also where the params are bfloat16 or float16: a
    standard deviation is often below the spacing of such numbers, and the gradient must
    be that at w, not at w rounded. So compute the loss in float32, or with sums in it.

    Args:
        key: a random key.
        params: m.
        state: of `ivon`, with λ and s.

    Returns:
        w, shaped like the params.
    """
    leaves, treedef = jax.tree.flatten(params)
    keys = jax.tree.unflatten(treedef, list(jax.random.split(key, len(leaves))))

    def leaf(key, m, s):
        m = jnp.asarray(m)
        scale = jax.lax.rsqrt(state.ess.astype(s.dtype) * s)
        noise = jax.random.normal(key, m.shape, s.dtype)
        return m.astype(s.dtype) + scale * noise

    return jax.tree.map(leaf, keys, params, state.precision)
