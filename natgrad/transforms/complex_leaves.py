"""Transformations of real parameters as transformations of complex ones too.

A complex parameter is a pair of real ones inside (`natgrad.tree.split_complex`), in the
state too. Gradients come, and updates go, as optax has them: a gradient of a real loss
is ∂/∂x + i ∂/∂y, the conjugate of what `jax.grad` gives.
"""

from __future__ import annotations

from collections.abc import Callable

from natgrad.tree import has_complex, join_complex, split_complex

# Extra arguments of `update` that are trees like the parameters.
_TREES = ("grad", "model_params")


def of_pairs(init: Callable, update: Callable) -> tuple[Callable, Callable]:
    """(init, update) that hand on a `natgrad.tree.Pair` for each complex leaf.

    Args:
        init: params -> state.
        update: (updates, state, params, **extra_args) -> (updates, state).

    Returns:
        The same of trees with complex leaves; trees of real ones pass as they are.
    """

    def init_pairs(params):
        return init(split_complex(params))

    def update_pairs(updates, state, params=None, **extra_args):
        if not has_complex((updates, params)):
            return update(updates, state, params, **extra_args)
        extra_args |= {
            name: split_complex(extra_args[name])
            for name in _TREES
            if name in extra_args
        }
        pairs = split_complex(updates), state, split_complex(params)
        updates, state = update(*pairs, **extra_args)
        return join_complex(updates), state

    return init_pairs, update_pairs
