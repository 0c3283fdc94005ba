"""Trees with `optax.MaskedNode` in place of what a transformation does not see.

`optax.masked` and `optax.multi_transform` leave it behind in parameters and gradients.
"""

from __future__ import annotations

from typing import Any

import jax

from natgrad.tree import is_placeholder
from natgrad.typing import Params


def fill_placeholders(params: Params, model_params: Params) -> Params:
    """`params` with each `optax.MaskedNode` replaced by its part of `model_params`.

    Args:
        params: a tree of arrays and of placeholders.
        model_params: the whole tree of parameters, without placeholders.

    Raises:
        ValueError: the trees do not fit each other.
    """
    try:
        return jax.tree.map(
            lambda node, full: full if is_placeholder(node) else node,
            params,
            model_params,
            is_leaf=is_placeholder,
        )
    except ValueError as error:
        raise ValueError(
            "model_params must be the model's whole parameter tree, of which the "
            f"params seen by this transformation are a part: {error}"
        ) from error


def masked_like(model_tree: Any, params: Params) -> Any:
    """A tree like the model's parameters with a placeholder wherever `params` has one.

    Inside `optax.masked` extra arguments of an update come as they are, unlike params
    and gradient.

    Args:
        model_tree: a tree shaped like the whole tree of parameters.
        params: a tree of arrays and of placeholders.
    """
    return jax.tree.map(
        lambda node, full: node if is_placeholder(node) else full,
        params,
        model_tree,
        is_leaf=is_placeholder,
    )
