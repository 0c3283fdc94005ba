"""Does an approximation notice a change of the network's coordinates?

With Φ = L⁻¹ W in every layer (`natgrad.layers.Recombined`), θ = T φ with T linear, the
Fisher information at φ is Tᵀ F T, and the natural step is the same step. How much an
approximation A fails in this is

    ‖A_φ − Tᵀ A T‖_F / ‖Tᵀ A T‖_F             the invariance defect
    |T d_φ − d_θ| / |d_θ|                     that of the damped step

Damping by λI is not a tensor, so that the second is above 0 even for F itself. The L
are random rotations times scales between ½ and 2.
"""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np

from natgrad import layers
from natgrad.compare.figures import Budget, captured, ratio, vector
from natgrad.compare.matrix_free_figures import root_of_ratio
from natgrad.layers import Recombined
from natgrad.metrics.base import Metric
from natgrad.model import Model
from natgrad.typing import Array, Inputs, Key, Params


def recombination(
    model: Model, params: Params, inputs: Inputs, key: Key
) -> Recombined | None:
    """Random other coordinates; None where no layer can be recombined."""
    read = captured(model, params, inputs)
    if read is None or not (blocks := layers.recombinable(read)):
        return None
    draw = np.random.default_rng(np.asarray(jax.random.key_data(key)).tolist())
    matrices = {block.name: _regular(block.inputs, draw) for block in blocks}
    return Recombined(model.apply_real, matrices, read.blocks, model.in_axes)


def _regular(size: int, draw: np.random.Generator) -> Array:
    """Q₁ diag(e) Q₂, e between ½ and 2."""
    left, right = (np.linalg.qr(draw.normal(size=(size, size)))[0] for _ in range(2))
    scales = np.exp2(draw.uniform(-1, 1, size))
    return jnp.asarray((left * scales) @ right)


def defect(
    metric: Metric, there: Metric, chart: Recombined, key: Key, budget: Budget
) -> tuple[float, float]:
    """‖A_φ − TᵀAT‖ / ‖TᵀAT‖ and its standard error, 0 where matrices are formed.

    For θ = T φ, A = `metric` at θ and A_φ = `there` at φ.
    """
    if metric.layout.size <= budget.matrices:
        difference, size = _formed(metric, there, chart)
        return ratio(float(difference), float(size)), 0.0
    keys = jax.random.split(key, budget.probes)
    squares = [_probed(metric, there, chart, key) for key in keys]
    return root_of_ratio(squares)


def step_defect(step: Params, there: Params, chart: Recombined) -> float:
    """|T d_φ − d_θ| / |d_θ|."""
    own, back = vector(step), vector(_to_original(chart, there))
    return ratio(np.linalg.norm(back - own), np.linalg.norm(own))


@functools.partial(jax.jit, static_argnames="chart")
def _to_original(chart: Recombined, params: Params) -> Params:
    return chart.to_original(params)


@functools.partial(jax.jit, static_argnames="chart")
def _formed(metric: Metric, there: Metric, chart: Recombined) -> tuple[Array, Array]:
    layout = metric.layout
    pulled = jax.vmap(lambda v: layout.ravel(chart.transposed(layout.split(v))))
    # Rows, then columns: Tᵀ (Tᵀ A)ᵀ.
    expected = pulled(pulled(metric.dense().T).T)
    return jnp.linalg.norm(there.dense() - expected), jnp.linalg.norm(expected)


@functools.partial(jax.jit, static_argnames="chart")
def _probed(
    metric: Metric, there: Metric, chart: Recombined, key: Key
) -> tuple[Array, Array]:
    layout = metric.layout
    v = layout.unravel(jax.random.rademacher(key, (layout.size,), layout.dtype))
    expected = layout.ravel(chart.transposed(metric.mv(chart.to_original(v))))
    difference = layout.ravel(there.mv(v)) - expected
    return jnp.sum(difference**2), jnp.sum(expected**2)
