"""Products of the rows that blocks of B are made of, at full precision."""

from __future__ import annotations

import itertools
from collections.abc import Callable

import jax
import jax.numpy as jnp
from jaxtyping import Float

from natgrad import tree
from natgrad.solvers.dense import mirrored
from natgrad.solvers.spectral import HIGHEST
from natgrad.typing import Array

# Block rows of a product of rows with themselves, and from how many rows on.
_BLOCKS, _MANY = 4, 512


def product(subscripts: str, *operands: Array) -> Array:
    """An einsum at full precision, so that TF32 cannot touch a Gram matrix.

    Args:
        subscripts: as those of `jnp.einsum`.
        operands: arrays.
    """
    return jnp.einsum(subscripts, *operands, precision=HIGHEST)


def row_products(x: Array) -> Array:
    """x xᵀ; of many rows in block rows up to the diagonal: ⅝ of the products.

    Args:
        x: the rows.
    """
    size = x.shape[0]
    blocks = _BLOCKS if size >= _MANY else 1
    edges = [size * i // blocks for i in range(blocks + 1)]
    rows = [product("mp,np->mn", x[a:b], x[:b]) for a, b in itertools.pairwise(edges)]
    if blocks == 1:
        return rows[0]
    return mirrored(rows, edges)


def each_layer(function: Callable[..., Array], *stacks: Array) -> Array:
    """function of every layer's matrices at full precision; one layer's own as 2-d.

    Args:
        function: of matrices.
        stacks: matrices with a leading axis of layers.
    """
    with jax.default_matmul_precision("highest"):
        if stacks[0].shape[0] > 1:
            return jax.vmap(function)(*stacks)
        return function(*(stack[0] for stack in stacks))[None]


def over_positions(
    of_position: Callable[..., Array],
    own: tuple[Float[Array, "L N T ..."], Float[Array, "L K N T O"]],
    others: tuple[Float[Array, "L n T ..."], Float[Array, "L K n T O"]],
) -> Array:
    """Σ_lt of_position(((x_lt, y_l), (g_lt, h_l))), one term alive at a time.

    Args:
        of_position: of one layer's x and g at one position, and its y and h at all.
        own: x and g.
        others: y and h.
    """
    layers, positions = own[0].shape[0], own[0].shape[2]

    def one_position(a, axis):
        shape = (layers * positions, *a.shape[1:axis], *a.shape[axis + 1 :])
        return jnp.moveaxis(a, axis, 1).reshape(shape)

    def all_positions(a):
        return jnp.repeat(a, positions, axis=0)

    terms = (
        (one_position(own[0], 2), all_positions(others[0])),
        (one_position(own[1], 3), all_positions(others[1])),
    )
    return tree.sum_over_chunks(
        lambda chunk: of_position(jax.tree.map(lambda a: a[0], chunk)), terms, 1
    )
