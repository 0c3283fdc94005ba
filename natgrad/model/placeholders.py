"""Trees with `optax.MaskedNode` in place of what a transformation does not see.

`optax.masked` and `optax.multi_transform` leave it behind in parameters and gradients.
"""

from __future__ import annotations

from typing import Any

import jax
import optax

from natgrad.typing import Params


def fill_placeholders(params: Params, model_params: Params) -> Params:
    """`params` with each `optax.MaskedNode` replaced by its part of `model_params`."""
    try:
        return jax.tree.map(
            lambda node, full: full if _is_placeholder(node) else node,
            params,
            model_params,
            is_leaf=_is_placeholder,
        )
    except ValueError as error:
        raise ValueError(
            "model_params must be the model's whole parameter tree, of which the "
            f"params seen by this transformation are a part: {error}"
        ) from error


def masked_like(whole: Any, params: Params) -> Any:
    """`whole` with a placeholder wherever `params` has one.

    Inside `optax.masked` extra arguments of an update come as they are, unlike params
    and gradient.
    """
    return jax.tree.map(
        lambda node, of_it: node if _is_placeholder(node) else of_it,
        params,
        whole,
        is_leaf=_is_placeholder,
    )


def has_placeholders(params: Params) -> bool:
    """Is some part of `params` an `optax.MaskedNode`?"""
    nodes = jax.tree.leaves(params, is_leaf=_is_placeholder)
    return any(_is_placeholder(node) for node in nodes)


def _is_placeholder(node: Any) -> bool:
    return isinstance(node, optax.MaskedNode)
