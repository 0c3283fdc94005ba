"""Complex leaves as pairs of reals, inside of what differentiates by real parameters.

A complex parameter w = x + i y is two real ones, x and y. A function of pairs has the
derivatives ∂/∂x and ∂/∂y, which as one complex number are ∂/∂x + i ∂/∂y: the gradient
that optax descends along, and the conjugate of what `jax.grad` gives. So gradients come
to a transformation, and updates go; its state has the pairs.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from natgrad.typing import Array

# Extra arguments of `update` that are trees like the parameters.
_TREES = ("grad", "model_params")


class Pair(NamedTuple):
    """A complex array as two real ones of its shape.

    Attributes:
        real: x.
        imag: y.
    """

    real: Array
    imag: Array


def has_complex(tree: Any) -> bool:
    """Is some leaf of the tree a complex array?"""
    return any(map(jnp.iscomplexobj, jax.tree.leaves(tree)))


def split_complex(tree: Any) -> Any:
    """The tree with a `Pair` in the place of each complex leaf.

    Args:
        tree: a tree of arrays.
    """

    def split(leaf):
        if not jnp.iscomplexobj(leaf):
            return leaf
        return Pair(jnp.real(leaf), jnp.imag(leaf))

    return jax.tree.map(split, tree)


def join_complex(tree: Any) -> Any:
    """The tree with a complex leaf in the place of each `Pair`: undoes `split_complex`.

    Args:
        tree: a tree of arrays.
    """

    def is_pair(node):
        return isinstance(node, Pair)

    def join(node):
        return jax.lax.complex(*node) if is_pair(node) else node

    return jax.tree.map(join, tree, is_leaf=is_pair)


def of_pairs(init: Callable, update: Callable) -> tuple[Callable, Callable]:
    """(init, update) of a transformation of real parameters, for complex ones too.

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
        given = {name: extra_args[name] for name in _TREES if name in extra_args}
        extra_args |= split_complex(given)
        pairs = split_complex(updates), state, split_complex(params)
        updates, state = update(*pairs, **extra_args)
        return join_complex(updates), state

    return init_pairs, update_pairs
