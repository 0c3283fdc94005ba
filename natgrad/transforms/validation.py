"""What `update` of `scale_by_curvature` and its kin may be given, checked."""

from __future__ import annotations

from collections.abc import Callable, Mapping
from typing import Any, NamedTuple

import jax
import jax.core
import jax.numpy as jnp
import numpy as np
import optax

from natgrad import tree
from natgrad.curvature.base import Curvature
from natgrad.eager import call, note_impossible, note_read
from natgrad.layers.compiled import compiled
from natgrad.model.batch import Batch
from natgrad.solvers.damping import DampingLike, damping_of_step
from natgrad.transforms.state import ScaleByCurvatureState
from natgrad.tree import Layout
from natgrad.typing import Array, Inputs, Params, Statistics

# The default of `inputs=`, which may be None for a model without inputs.
MISSING: Any = object()


class Step(NamedTuple):
    """The valid arguments of one update.

    Attributes:
        curvature: the approximation of F, specialized for these parameters.
        layout: of the parameters.
        batch: parameters, inputs and labels, and the key to draw with, which the state
            is to keep. The inputs are None where no batch was given.
        has_batch: was a batch given?
        statistics: of this batch, where the caller computed them; else None.
        anchor: what the solution is drawn to, like the parameters; None for 0.
        rows: the gradient as rows of each layer, for solvers that use them; or None.
        gradient: g, like the parameters.
        damping: λ as given, shape (); what else `resolve_damping` gives.
        safe_damping: the same; 1 where the step cannot be taken.
        finite: is the gradient finite? Shape ().
        damped: is λ finite and at least 0? Shape ().
        usable: both? Shape ().
    """

    curvature: Curvature
    layout: Layout
    batch: Batch
    has_batch: bool
    statistics: Statistics | None
    anchor: Params | None
    rows: Any
    gradient: Params
    damping: Any
    safe_damping: Any
    finite: Array
    damped: Array
    usable: Array


def transformation(
    init: Callable, update: Callable
) -> optax.GradientTransformationExtraArgs:
    """The transformation; of no parameters it changes nothing, not even its state.

    Outside of `jax.jit` it runs as compiled programs (`natgrad.layers.compiled`).

    Args:
        init: params -> state. Numbers among the parameters reach it as arrays of
            shape ().
        update: (updates, state, params, **extra_args) -> (updates, state), likewise.
    """
    compiled_init, compiled_update = compiled(init), compiled(update)

    def init_arrays(params):
        return compiled_init(_arrays(params))

    def update_arrays(updates, state, params=None, **extra_args):
        if not jax.tree.leaves((updates, params)):
            return updates, state
        return compiled_update(_arrays(updates), state, _arrays(params), **extra_args)

    return optax.GradientTransformationExtraArgs(init_arrays, update_arrays)


def _arrays(params: Any) -> Any:
    """The tree with numbers as arrays of shape ()."""
    return jax.tree.map(
        lambda leaf: leaf if hasattr(leaf, "dtype") else jnp.asarray(leaf), params
    )


def validate_step(
    curvature: Curvature,
    damping_rule: Callable[[Array], DampingLike],
    updates: Params,
    state: ScaleByCurvatureState,
    params: Params | None,
    extra_args: Mapping[str, Any],
) -> Step:
    """The arguments of an update of `scale_by_curvature` as one value.

    Args:
        curvature: as the transformation was given it.
        damping_rule: count -> damping.
        updates: the gradient, like the parameters.
        state: of the transformation.
        params: θ.
        extra_args: of `update`: `inputs`, `targets`, `statistics`, `rows`,
            `model_params`, `damping` and `anchor`. Others belong to others.

    Raises:
        ValueError: an argument is missing, or does not fit the others.
    """
    inputs = extra_args.get("inputs", MISSING)
    statistics, rows = extra_args.get("statistics"), extra_args.get("rows")
    specialized = validate_update(
        curvature,
        updates,
        state,
        params,
        inputs,
        statistics,
        extra_args.get("model_params"),
    )
    layout = Layout.of(params)
    key = tree.next_key(state.key)
    own, given = call(damping_rule, state.count), extra_args.get("damping")
    damping = damping_of_step(own, given, layout)
    finite = tree.all_finite(updates)
    (numbers,) = jax.tree.leaves(damping)
    damped = (numbers >= 0) & jnp.isfinite(numbers)
    damped = jnp.all(damped) if damped.ndim else damped
    usable, has_batch = finite & damped, inputs is not MISSING
    return Step(
        curvature=specialized,
        layout=layout,
        batch=Batch(
            params, inputs if has_batch else None, extra_args.get("targets"), key
        ),
        has_batch=has_batch,
        statistics=statistics,
        anchor=extra_args.get("anchor"),
        rows=rows,
        gradient=updates,
        damping=damping,
        safe_damping=jax.tree.map(lambda own: jnp.where(usable, own, 1), damping),
        finite=finite,
        damped=damped,
        usable=usable,
    )


def check_state(state: Any, kind: type) -> None:
    """Raise a ValueError unless a state is of the kind that `init` makes."""
    if not isinstance(state, kind):
        raise ValueError(
            f"The state of this optimizer has a {kind.__name__} where a "
            f"{type(state).__name__} was given: pass the one of tx.init(params), or of "
            "the update before. A checkpoint of bare containers or leaves becomes one "
            "by jax.tree.unflatten(jax.tree.structure(tx.init(params)), leaves)."
        )


def validate_update(
    curvature: Curvature,
    updates: Params,
    state: ScaleByCurvatureState,
    params: Params | None,
    inputs: Inputs,
    statistics: Any,
    model_params: Params | None,
) -> Curvature:
    """The curvature for these parameters.

    Args:
        curvature: as the transformation was given it.
        updates: the gradient.
        state: of the transformation.
        params: θ.
        inputs: the batch, or MISSING.
        statistics: of the batch, where the caller computed them.
        model_params: the whole parameter tree, where `params` is a part of it.

    Raises:
        ValueError: an argument is missing, or does not fit the others.
    """
    if params is None:
        raise ValueError(
            "A curvature is computed at the parameters: call "
            "update(gradient, state, params, inputs=x)."
        )
    model = curvature.model
    whole = params if model_params is None else model_params
    whole = tree.join_complex(whole)
    read = model.example_inputs if inputs is MISSING else inputs
    if inputs is not MISSING or read is not None:  # else nothing applies the model
        note_read(model.apply, whole, read)
    specialized = restrict_to_subtree(curvature, params, model_params)
    Layout.of(params).check(updates, "The gradient")
    check_state(state, ScaleByCurvatureState)
    if not isinstance(state.owner, dict):
        raise ValueError(
            "The state is that of init for a tree without arrays, and now there are "
            "parameters: make it by init(params) with these."
        )
    _check_arguments(specialized, state, params, inputs, statistics)
    return specialized


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
        if note_impossible(unobserved):
            return
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
    return jax.tree.map(
        lambda leaf: f"{jnp.result_type(leaf)}{list(jnp.shape(leaf))}", statistics
    )


def restrict_to_subtree(
    curvature: Curvature, params: Params, model_params: Params | None
) -> Curvature:
    """The curvature as a function of a part of the parameters.

    Args:
        curvature: of the whole model.
        params: what the transformation sees; `optax.MaskedNode` in place of the rest.
        model_params: the whole parameter tree, at which the rest is held; None where
            `params` is the whole tree.

    Raises:
        ValueError: some part of the parameters is not known.
    """
    if tree.has_placeholders(model_params):
        raise ValueError(
            "model_params must be the model's whole parameter tree; a part of it is "
            "masked. With optax.masked(mask_compatible_extra_args=True) they are "
            "masked as the params are: leave it False."
        )
    if model_params is not None:
        return curvature.with_frozen(model_params).specialize(params)
    if tree.has_placeholders(params):
        raise ValueError(
            "This transformation sees a part of the parameters only (optax.masked or "
            "optax.multi_transform). Its model needs all of them: pass the whole tree "
            "as update(..., model_params=params)."
        )
    return curvature.specialize(params)
