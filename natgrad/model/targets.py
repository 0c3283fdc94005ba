"""Labels of a batch: their shape, and what becomes of impossible ones.

Impossible labels raise where their values are known. Under jit they are not, and what
is impossible there makes NaN.
"""

from __future__ import annotations

from typing import Any

import jax
import jax.core
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, Shaped

from natgrad.eager import note_impossible
from natgrad.families.base import Family
from natgrad.model import weights as weighting
from natgrad.model.batch import Example
from natgrad.typing import Array, ArrayLike


def check_targets(
    family: Family, z: Any, targets: ArrayLike | None, count: int
) -> Shaped[Array, "N ..."]:
    """The labels as an array, after a look at their shape.

    Args:
        family: of the law.
        z: outputs [N, ...], or their `jax.ShapeDtypeStruct`.
        targets: the labels.
        count: N.

    Returns:
        y [N, ...].

    Raises:
        ValueError: there are none, or of a shape that the family does not have.
    """
    if targets is None:
        raise ValueError("targets are needed here: pass the labels y [N, ...].")
    with jax.ensure_compile_time_eval():  # values known now stay known under jit
        y = jnp.asarray(targets)
    shapes = [(count, *shape) for shape in family.label_shapes(z.shape[1:])]
    if y.shape in shapes or (not shapes and y.shape[:1] == (count,)):
        return y
    named = " or ".join(map(str, shapes or [(count, "...")]))
    raise ValueError(
        f"targets must have shape {named} for outputs z of shape {z.shape} under "
        f"{family}, got {y.shape}.{_cure(y.shape, z.shape, shapes)}"
    )


def _cure(y_shape: tuple, z_shape: tuple, shapes: list[tuple]) -> str:
    """What to do about an axis of size 1 too many, if it is that."""

    def first(name: str, ndim: int) -> str:
        return f"{name}[{', '.join([':'] * (ndim - 1))}, 0]"

    if y_shape[-1:] == (1,) and y_shape[:-1] in shapes:
        return f" Pass {first('y', len(y_shape))}."
    if z_shape[-1:] == (1,) and (*y_shape, 1) in shapes:
        return f" Let apply return {first('z', len(z_shape))}, or pass y[..., None]."
    return ""


def check_support(
    family: Family,
    z: Any,
    y: Shaped[Array, "N ..."],
    weights: Float[Array, " N *factors"] | None,
) -> None:
    """Raise for impossible labels where values are known: not under jit.

    Args:
        family: of the law.
        z: outputs [N, ...], or their `jax.ShapeDtypeStruct`; values do not count.
        y: the labels.
        weights: a label of weight 0 may be anything; None for no weights.

    Raises:
        ValueError: a label is impossible.
    """
    with jax.ensure_compile_time_eval():
        parameters = jnp.zeros(z.shape[1:], z.dtype)
        inside = jax.vmap(family.in_support, (None, 0))(parameters, y)
        if weights is not None:
            inside = jnp.all(inside.reshape((*weights.shape, -1)), axis=-1)
            inside = inside | (weights == 0)
        known = not isinstance(inside, jax.core.Tracer)
        if known and bool(jnp.all(inside)):
            return
    if not known:
        note_impossible(~jnp.all(inside))
        return
    labels, bad = np.asarray(y), np.argwhere(~np.asarray(inside)).tolist()
    named = [f"targets{place} = {labels[tuple(place)]}" for place in bad[:3]]
    more = f" and {len(bad) - 3} more" if len(bad) > 3 else ""
    raise ValueError(
        f"Some targets are impossible under {family} with outputs z of shape "
        f"{z.shape}: {', '.join(named)}{more}. If such labels mark examples to ignore, "
        "give these weight 0: Model(apply, family, weights=lambda inputs: "
        'inputs["mask"]) with inputs {"x": x, "mask": y >= 0}; labels of weight 0 may '
        "be anything."
    )


def check_parameters(
    family: Family, z: Float[Array, "N ..."], log_probs: Float[Array, " N"]
) -> None:
    """Raise for outputs that belong to no law where values are known: not under jit.

    Args:
        family: of the law.
        z: outputs.
        log_probs: of each example's labels, which are possible.

    Raises:
        ValueError: of finite outputs one is NaN.
    """
    if isinstance(log_probs, jax.core.Tracer):
        return
    finite = np.isfinite(np.asarray(z)).reshape(len(log_probs), -1).all(1)
    bad = np.flatnonzero(np.isnan(np.asarray(log_probs)) & finite)
    if not len(bad):
        return
    expected = family.domain or "parameters of a law, whose log_prob is finite"
    raise ValueError(
        f"{family} has no law at the outputs of {len(bad)} of {len(log_probs)} "
        f"examples: z[{bad[0]}] = {np.asarray(z[bad[0]])}; expected {expected}. Let "
        "apply map what it computes to there, or take a family that takes any z."
    )


def safe_example(family: Family, z: Array, example: Example, masked: bool) -> Example:
    """The example with labels that cannot do harm unseen.

    A label outside the support cannot raise under jit, so it turns the weight of its
    factor, hence the loss, its gradient and the empirical Fisher, into NaN. Where the
    weight is 0 the label is replaced by 0, and what that gives has weight 0.

    Args:
        family: of the law.
        z: the output of one example, [factors..., parameters...].
        example: one with a target.
        masked: whether weights can be 0.
    """
    y, weights = example.target, example.weights
    assert y is not None
    inside = family.in_support(z, y)
    inside = jnp.all(inside.reshape((*weights.shape, -1)), axis=-1)
    if masked:
        out = (weights == 0) & ~inside
        y = jnp.where(weighting.trailing(out, y), jnp.zeros_like(y), y)
        inside = inside | out
    return example._replace(target=y, weights=weighting.nan_unless(inside, weights))
