"""Complex leaves as pairs of reals, inside of what differentiates by real parameters.

A complex parameter w = x + i y is two real ones, x and y. A function of pairs has the
derivatives ∂/∂x and ∂/∂y, which as one complex number are ∂/∂x + i ∂/∂y: the gradient
that optax descends along, and the conjugate of what `jax.grad` gives.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from natgrad.typing import Array


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
