"""Could the data's labels have come from the model? The information-matrix test.

At the law that made the labels the empirical Fisher E_n and the Fisher F have the same
mean, so their difference says how far the empirical Fisher tells of the model's errors
instead of its geometry. The indicator is the trace,

    T(y) = tr E_n(y) = (1/N) Σ_n |J_nᵀ s(y_n)|²,    E[T] = tr F for y_n ~ p(· | x_n, θ)

or, without matrices, Σ_j ⟨u_j, E_n u_j⟩ along some random directions u_j, of which the
trace is the mean. Its law under the null hypothesis, that the labels were drawn from
the model at this θ, is known by drawing labels from it, for any N and any family:

    z = (T(y) − E[T]) / sd T,     p = 2 min(rank from below, rank from above)/(R + 1)

with R draws. θ is taken as given, so after fitting many parameters to few data the test
asks less than it could, and z far below 0 says that the labels are predicted better
than the model itself expects. So it says of soft labels, which are means and vary less
than draws: draw labels from them first.

Source: White (1982), Maximum likelihood estimation of misspecified models, section 4;
Davidson & MacKinnon (1992), A new form of the information matrix test, for its bad size
with asymptotic critical values, which draws avoid.
"""

from __future__ import annotations

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp
import numpy as np

from natgrad.compare.figures import Budget, ratio
from natgrad.curvature.labels import Empirical, Exact
from natgrad.curvature.visits import visits
from natgrad.model import Model, batch
from natgrad.tree import Layout
from natgrad.typing import Array, Inputs, Key, Params

# Below this p-value the labels are called misspecified.
LEVEL = 0.02


@dataclasses.dataclass(frozen=True)
class Misspecification:
    """The verdict.

    Attributes:
        trace_ratio: tr E / tr F of empirical and true Fisher: how many times too large
            the empirical one is.
        z: (T − E[T]) / sd T under the null hypothesis; NaN where T cannot vary.
        p_value: two-sided, from ranks; at least 2/(draws + 1).
        draws: R.
        directions: along which T was taken; 0 for the trace itself.
    """

    trace_ratio: float
    z: float
    p_value: float
    draws: int
    directions: int

    @property
    def verdict(self) -> str:
        """One sentence."""
        if math.isnan(self.z):
            return "the empirical Fisher does not depend on the labels here"
        times = f"the empirical Fisher is {self.trace_ratio:.3g} times the true one"
        numbers = f"({times} in trace, z = {self.z:.1f}, p = {self.p_value:.2g})"
        if self.p_value > LEVEL:
            return f"they could have come from the model at these parameters {numbers}"
        if self.z > 0:
            return (
                f"the model is misspecified or not yet fitted: its errors are larger "
                f"than it expects {numbers}"
            )
        return (
            "they are predicted better than the model expects, or are soft labels, "
            f"which vary less than draws {numbers}"
        )


def information_matrix_test(
    model: Model,
    params: Params,
    inputs: Inputs,
    targets: Array,
    key: Key,
    budget: Budget,
) -> Misspecification:
    """The test at θ on a batch; `key` is that of the draws and directions."""
    layout = Layout.of(params)
    directions = 0 if layout.size <= budget.matrices else budget.probes
    how = (jax.random.split(key), budget.draws, directions)
    statistics = _statistics(model, params, inputs, targets, *how)
    observed, expected, drawn = (np.asarray(x, float) for x in statistics)
    # Rounding aside: T of a family whose scores have one length does not vary.
    noise = float(jnp.finfo(layout.dtype).eps) ** 0.5 * expected
    spread = drawn.std(ddof=1)
    varies = spread > noise or abs(observed - expected) > noise
    tail = min(np.sum(drawn >= observed), np.sum(drawn <= observed)) + 1
    return Misspecification(
        trace_ratio=ratio(observed, expected),
        z=float((observed - expected) / max(spread, noise)) if varies else math.nan,
        p_value=min(1.0, float(2 * tail / (len(drawn) + 1))) if varies else 1.0,
        draws=len(drawn),
        directions=directions,
    )


@functools.partial(jax.jit, static_argnames=("model", "count", "directions"))
def _statistics(model, params, inputs, targets, keys, count, directions):
    """T of the labels, E[T], and T of `count` label sets, [count]."""
    outputs, examples, total = model.whole(params, inputs, targets)
    z = outputs(params)
    if directions:
        pushed = _pushed(model, params, inputs, keys[1], directions)
        pushed = jnp.broadcast_to(pushed, (directions, *z.shape))
        quadratic = functools.partial(_along, pushed)
        expected = _expected_along(model, z, examples, total, pushed)
    else:
        quadratic = functools.partial(_exact, _grams(model, params, inputs))
        expected = _mean(quadratic, model, Exact(), z, examples, total)
    empirical = functools.partial(_mean, quadratic, model, Empirical(), z)

    def drawn(key):
        keys = batch.example_keys(key, z.shape[0])
        labels = jax.vmap(model.family.sample)(keys, z)
        return empirical(examples._replace(target=labels), total)

    observed = empirical(examples, total)
    return observed, expected, jax.lax.map(drawn, jax.random.split(keys[0], count))


def _mean(quadratic, model, labels, z, examples, total) -> Array:
    """Σ_n Σ_k w_nk quadratic(s_nk)/Σ_n ω_n."""
    columns = jax.vmap(lambda z, e: labels.columns(model, z, e))(z, examples)
    flat = columns.scores.reshape(*columns.weights.shape, -1)
    return jnp.sum(columns.weights * quadratic(flat)) / total


def _grams(model: Model, params: Params, inputs: Inputs) -> Array:
    """J_n J_nᵀ, [N, C, C]."""

    def visit(z, pull, example):
        del example
        basis = jnp.eye(z.size, dtype=z.dtype).reshape(-1, *z.shape)
        rows = Layout.of(params).ravel(jax.vmap(pull)(basis), lead=1)
        return jnp.matmul(rows, rows.T, precision=jax.lax.Precision.HIGHEST)

    return visits(model, Exact(), batch.Batch(params, inputs)).stack(visit)


def _exact(grams: Array, scores: Array) -> Array:
    """|J_nᵀ s_nk|², [N, K]."""
    half = jnp.einsum("nkc,ncd->nkd", scores, grams, precision="highest")
    return jnp.sum(half * scores, axis=-1)


def _pushed(
    model: Model, params: Params, inputs: Inputs, key: Key, count: int
) -> Array:
    """J_n u for some directions u of random signs, [m, N, ...]."""
    layout = Layout.of(params)
    outputs = lambda params: model.outputs(params, inputs)

    def push(key):
        signs = jax.random.rademacher(key, (layout.size,), layout.dtype)
        return jax.jvp(outputs, (params,), (layout.unravel(signs),))[1]

    return jax.lax.map(push, jax.random.split(key, count))


def _along(pushed: Array, scores: Array) -> Array:
    """The mean over directions of ⟨s_nk, J_n u⟩², [N, K]."""
    flat = pushed.reshape(*pushed.shape[:2], -1)
    inner = jnp.einsum("nkc,mnc->mnk", scores, flat, precision="highest")
    return jnp.mean(inner**2, axis=0)


def _expected_along(model, z, examples, total, pushed) -> Array:
    """The mean over directions of ⟨u, F u⟩."""
    each = lambda v: jnp.sum(v * Exact().products(model, z, examples, total, v))
    return jnp.mean(jax.lax.map(each, pushed)) / total
