"""Weights that balance the groups of `natgrad.least_squares`, from the current batch.

They enter by the batch, {"weights": w, ...}, and are constants of the steps that are
made with them, so that loss, gradient and Gauss-Newton matrix belong together. A new
choice every hundred steps or so is usual, averaged with the last one:
`optax.incremental_update(new, old, 0.1)`.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Float

from natgrad import tree
from natgrad.curvature import Diagonal
from natgrad.model import LeastSquares, least_squares
from natgrad.model.residuals import WEIGHTS
from natgrad.typing import Array, Inputs, Params

GroupWeights = dict[str, Float[Array, ""]]


def balance_traces(model: LeastSquares, params: Params, inputs: Inputs) -> GroupWeights:
    """w_g = Σ_h T_h / T_g, T_g the trace of (1/N_g) J_gᵀ J_g: equal shares of F.

    The trace is also that of group g's neural tangent kernel (1/N_g) J_g J_gᵀ, the mean
    rate at which gradient flow lowers its residuals. Exact, from one pass over all
    residuals; weights of model and batch do not count.

    Args:
        model: of groups of residuals.
        params: θ.
        inputs: a batch.

    Returns:
        name -> w_g; 1 where T_g is 0.

    Raises:
        ValueError: as `natgrad.least_squares` says.

    Source: Wang, Yu & Perdikaris (2022), When and why PINNs fail to train: a neural
    tangent kernel perspective, of mean instead of summed squares, as in Wang, Sankaran,
    Wang & Perdikaris (2023), An expert's guide to training physics-informed neural
    networks.
    """
    traces = {}
    for name, residual in model.residuals.functions.items():
        alone = least_squares({name: residual}, chunk_size=model.chunk_size)
        diagonal = Diagonal(alone).at(params, {name: inputs[name]}).diagonal()
        traces[name] = sum(map(jnp.sum, jax.tree.leaves(diagonal)))
    return _shares(traces)


def balance_gradients(
    model: LeastSquares, params: Params, inputs: Inputs
) -> GroupWeights:
    """w_g = Σ_h |∇L_h| / |∇L_g|, L_g = ½ mean |r_g|²: gradients of equal length.

    Args:
        model: of groups of residuals.
        params: θ.
        inputs: a batch; its weights and the model's do not count.

    Returns:
        name -> w_g; 1 where the gradient is 0.

    Raises:
        ValueError: as `natgrad.least_squares` says.

    Source: Wang, Teng & Perdikaris (2021), Understanding and mitigating gradient flow
    pathologies in physics-informed neural networks, with norms for the largest and the
    mean entry, as in Wang, Sankaran, Wang & Perdikaris (2023), An expert's guide to
    training physics-informed neural networks.
    """
    points = {name: leaf for name, leaf in inputs.items() if name != WEIGHTS}
    gradients = jax.jacrev(lambda params: model.losses(params, points))(params)
    return _shares({n: jnp.sqrt(tree.inner(g, g)) for n, g in gradients.items()})


def _shares(sizes: dict[str, Array]) -> GroupWeights:
    total = sum(sizes.values())
    return {
        name: jnp.where(size > 0, total / jnp.where(size > 0, size, 1), 1)
        for name, size in sizes.items()
    }
