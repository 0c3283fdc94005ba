"""What `update` of `scale_by_curvature` and its kin may be given, checked."""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from natgrad import tree
from natgrad.curvature.base import Curvature
from natgrad.model import placeholders
from natgrad.transforms.state import ScaleByCurvatureState
from natgrad.tree import Layout
from natgrad.typing import Inputs, Params

# The default of `inputs=`, which may be None for a model without inputs.
MISSING: Any = object()


def transformation(
    init: Callable, update: Callable
) -> optax.GradientTransformationExtraArgs:
    """The transformation; of no parameters it changes nothing, not even its state.

    Numbers among the parameters are arrays of shape ().
    """

    def made(params):
        return init(_arrays(params))

    def of(updates, state, params=None, **extra_args):
        if not jax.tree.leaves((updates, params)):
            return updates, state
        return update(_arrays(updates), state, _arrays(params), **extra_args)

    return optax.GradientTransformationExtraArgs(made, of)


def _arrays(params: Any) -> Any:
    array = lambda leaf: leaf if hasattr(leaf, "dtype") else jnp.asarray(leaf)
    return jax.tree.map(array, params)


def validate_update(
    curvature: Curvature,
    updates: Params,
    state: ScaleByCurvatureState,
    params: Params | None,
    inputs: Inputs,
    statistics: Any,
    model_params: Params | None,
) -> Curvature:
    """The curvature for these parameters; raises where an argument of update is bad."""
    if params is None:
        raise ValueError(
            "A curvature is computed at the parameters: call "
            "update(gradient, state, params, inputs=x)."
        )
    here = restrict_to_subtree(curvature, params, model_params)
    Layout.of(params).check(updates, "The gradient")
    if not isinstance(state.owner, dict):
        raise ValueError(
            "The state is that of init for a tree without arrays, and now there are "
            "parameters: make it by init(params) with these."
        )
    _check_arguments(here, state, params, inputs, statistics)
    return here


def _check_arguments(curvature, state, params, inputs, statistics) -> None:
    """Raise where neither the batch, nor statistics, nor an observation is there.

    Under jit only the running program knows whether the state was observed, so there
    the same error is raised when it runs. A batch that was seen but not finite is no
    reason to raise: that step is skipped.
    """
    if statistics is not None and not same_shapes(statistics, state.statistics):
        raise ValueError(
            f"statistics must be what {type(curvature).__name__}'s value_and_grad or "
            f"estimate gives at these params. Expected {_shapes(state.statistics)}, "
            f"got {_shapes(statistics)}."
        )
    if inputs is not MISSING:
        return
    if curvature.requires_batch:
        raise ValueError(
            f"{type(curvature).__name__} is computed from the current batch: call "
            "update(gradient, state, params, inputs=x)."
        )
    if statistics is not None:
        return
    tree.check_kept(state.statistics, jax.eval_shape(curvature.init, params))
    unobserved = (state.estimates == 0) & ~state.health.skipped
    if isinstance(unobserved, jax.core.Tracer):
        jax.lax.cond(
            unobserved,
            lambda: jax.debug.callback(_raise_if_unobserved, unobserved),
            lambda: None,
        )
    else:
        _raise_if_unobserved(unobserved)


def _raise_if_unobserved(unobserved) -> None:
    if np.any(unobserved):
        raise ValueError(
            "update needs the batch: call update(gradient, state, params, inputs=x), "
            "and targets=y too for Empirical labels. Code that cannot pass inputs "
            "calls natgrad.observe(tx, state, params, inputs=x) first."
        )


def same_shapes(statistics: Any, expected: Any) -> bool:
    """Are these trees of equal structure, shapes and dtypes?"""
    return jax.tree.structure(statistics) == jax.tree.structure(expected) and (
        _shapes(statistics) == _shapes(expected)
    )


def _shapes(statistics) -> Any:
    """'float32[3, 3]' and the like in place of each leaf."""
    describe = lambda leaf: f"{jnp.result_type(leaf)}{list(jnp.shape(leaf))}"
    return jax.tree.map(describe, statistics)


def restrict_to_subtree(
    curvature: Curvature, params: Params, model_params: Params | None
) -> Curvature:
    """The curvature for the parameters seen here, the others held at model_params."""
    if placeholders.has_placeholders(model_params):
        raise ValueError(
            "model_params must be the model's whole parameter tree; a part of it is "
            "masked. With optax.masked(mask_compatible_extra_args=True) they are "
            "masked as the params are: leave it False."
        )
    if model_params is not None:
        return curvature.with_frozen(model_params).specialize(params)
    if placeholders.has_placeholders(params):
        raise ValueError(
            "This transformation sees a part of the parameters only (optax.masked or "
            "optax.multi_transform). Its model needs all of them: pass the whole tree "
            "as update(..., model_params=params)."
        )
    return curvature.specialize(params)
