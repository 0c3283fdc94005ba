"""Optimizers, each a sentence: a curvature, then a learning rate.

All of them minimise `model.loss` (or it plus what the user adds) and are used as

    tx = natural_gradient(0.1, model)
    state = tx.init(params)
    grads = jax.grad(model.loss)(params, x, y)
    updates, state = tx.update(grads, state, params, inputs=x)
    params = optax.apply_updates(params, updates)

(`empirical_fisher` also needs `targets=y`, and `kfac_adaptive` `value=` and `value_fn=`
besides; `soap` and `kl_shampoo` see gradients alone, and need no model and no extra
argument.) For other labels, solvers or momentum, compose `scale_by_curvature` with
optax's own pieces, as these functions do. They also skip a step that is not finite
after the learning rate. Complex parameters are pairs of real ones; give their gradient
as optax takes it, ∂/∂x + i ∂/∂y, the conjugate of `jax.grad`'s.
"""

from natgrad.optimizers.adaptive import kfac_adaptive
from natgrad.optimizers.approximate import (
    diagonal_fisher,
    ekfac,
    empirical_fisher,
    gram_blocks,
    kfac,
)
from natgrad.optimizers.exact import gram, march, matrix_free, natural_gradient, spring
from natgrad.optimizers.gradient_only import kl_shampoo, soap

__all__ = [
    "diagonal_fisher",
    "ekfac",
    "empirical_fisher",
    "gram",
    "gram_blocks",
    "kfac",
    "kfac_adaptive",
    "kl_shampoo",
    "march",
    "matrix_free",
    "natural_gradient",
    "soap",
    "spring",
]
