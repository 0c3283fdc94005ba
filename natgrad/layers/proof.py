"""The proof that nothing was missed: Σ over uses of x gᵀ is the gradient.

Every parameter's gradient, put together from the rows of its uses, is compared entry by
entry with the gradient of the untapped function, at random parameters, inputs and
cotangents of the same shapes. It proves that all uses were found and that every view,
role and bias is read rightly. It runs once for each program, never on tracers, and
takes about two compilations of the gradient, which is why it has to be asked for.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from natgrad import tree
from natgrad.layers import jaxprs
from natgrad.layers.declared import DenseBlock, declaration
from natgrad.layers.statistics import Gradient
from natgrad.layers.trials import (
    disagreement,
    draw,
    draw_parameter,
)
from natgrad.layers.views import NotCapturedError


class Proof(NamedTuple):
    """How the uses found of a program were checked.

    Attributes:
        computed: whether by numbers, beside the trace.
        text: how, for people.
    """

    computed: bool
    text: str


TRACED = Proof(False, "by the trace; natgrad.layers.verify computes it")


def prove(captured: Any, apply, params, inputs) -> Proof:
    """Compares the gradient that the uses give with that of JAX.

    Args:
        captured: the `Captured` to check.
        apply: the untapped function.
        params: parameters, for their shapes.
        inputs: inputs, for their shapes.

    Returns:
        How the check went.

    Raises:
        ValueError: a parameter's gradient is not the sum over the uses found.
    """
    run = jax.jit(lambda p, x, g: compare(captured, apply, p, x, g))
    for positive in (False, True):
        arguments = _drawn(apply, params, inputs, positive)
        rebuilt, gradient = run.lower(*arguments).compile()(*arguments)
        if all(np.all(np.isfinite(_wide(g))) for g in gradient):
            worst = _checked(tree.paths(params), rebuilt, gradient, captured.precision)
            return Proof(True, f"checked to {worst:.0e}")
    return Proof(False, "not checked: the gradient at random parameters is not finite")


def _drawn(apply, params, inputs, positive: bool) -> tuple:
    """Random parameters, inputs and cotangents of the right shapes."""
    generator = np.random.default_rng(0)

    def weight(leaf):
        return draw_parameter(generator, jax.typeof(leaf), positive)

    def entry(leaf):
        return draw(generator, jax.typeof(leaf), positive)

    points, trial = jax.tree.map(weight, params), jax.tree.map(entry, inputs)
    _, z = jaxprs.trace(apply, points, trial)
    return points, trial, jax.tree.map(lambda leaf: draw(generator, leaf), z)


def _checked(names, rebuilt, gradient, limit: float) -> float:
    worst = 0.0
    for name, mine, right in zip(names, rebuilt, gradient, strict=True):
        error = disagreement(mine, right)
        worst = max(worst, error)
        if error >= limit:
            raise NotCapturedError(
                f"The uses found of the parameter {name!r} do not account for its "
                f"gradient: they differ by {error:.1e} relative. Declare it instead: "
                f"{declaration([name], DenseBlock)}."
            )
    return worst


def _wide(array) -> np.ndarray:
    array = np.asarray(array)
    return np.zeros(1) if array.dtype == jax.dtypes.float0 else array.astype(complex)


def compare(captured, apply, params, inputs, cotangent) -> tuple[list, list]:
    """The gradient, rebuilt from the uses and by JAX.

    Args:
        captured: the `Captured` to check.
        apply: the untapped function.
        params: the parameters.
        inputs: the inputs.
        cotangent: of apply(params, inputs).

    Returns:
        Both gradients, leaf by leaf.
    """
    _, pullback = captured.pull({"gradient": Gradient()}, params, inputs)
    _, found = pullback(cotangent)
    _, plain = jax.vjp(lambda p: apply(p, inputs), params)
    gradient = jax.tree.leaves(plain(cotangent)[0])
    rebuilt = [jnp.zeros(g.shape, g.dtype) for g in gradient]
    for block in captured.blocks:
        rebuilt = block.from_matrix(found[block.name]["gradient"], rebuilt)
    return rebuilt, gradient
