"""Roots with the derivative of the implicit function theorem.

Both go through `lax.custom_root`: the derivative is that of the root, not of the
iterations, forward and reverse and of any order, and costs one linear solve.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Float

from natgrad.typing import Array, ArrayLike


def bracketed_root(
    function: Callable[[Array], Array],
    lower: ArrayLike,
    upper: ArrayLike,
    max_iterations: int = 100,
) -> Float[Array, ""]:
    """The root in [lower, upper] of a scalar function that is positive before it.

    It is found by Newton's method, with bisection where that leaves the bracket or does
    not halve the last step. The function counts as negative where it is NaN.

    Args:
        function: positive below its root, negative or NaN above it; shape () to shape
            ().
        lower: where the search starts; not evaluated.
        upper: where it ends; not evaluated.
        max_iterations: evaluations of the function at most.

    Returns:
        The root, shape (), with the derivative of the implicit function theorem.
    """

    def solve(f, x0):
        # Ended by the iterates themselves: XLA may compute a step twice, differently.
        rounding = lambda x: 4 * jnp.finfo(x.dtype).eps * jnp.maximum(jnp.abs(x), 1)

        def advance(state):
            low, high, x, previous, k = state
            value, slope = jax.jvp(f, (x,), (jnp.ones_like(x),))
            before = value > 0
            low, high = jnp.where(before, x, low), jnp.where(before, high, x)
            newton = x - value / slope
            near = rounding(x)
            inside = (newton >= low - near) & (newton <= high + near)
            last = jnp.abs(x - previous)
            shrinks = jnp.abs(newton - x) <= jnp.maximum(last / 2, near)
            middle = low + (high - low) / 2
            new = jnp.where(inside & shrinks, jnp.clip(newton, low, high), middle)
            return low, high, jnp.where(value == 0, x, new), x, k + 1

        def unfinished(state):
            _, _, x, previous, k = state
            return (jnp.abs(x - previous) > rounding(x)) & (k < max_iterations)

        low = jnp.asarray(lower, x0.dtype)
        high = jnp.asarray(upper, x0.dtype)
        start = (low, high, x0, x0 + (high - low), jnp.array(0))
        return jax.lax.while_loop(unfinished, advance, start)[2]

    middle = (jnp.asarray(lower) + jnp.asarray(upper)) / 2
    tangent_solve = lambda g, y: y / g(jnp.ones_like(y))
    return jax.lax.custom_root(function, middle, solve, tangent_solve)


class _Search(NamedTuple):
    """Newton's method at x: the next trial is x − share · step.

    Attributes:
        x: the last iterate whose residual fell, or the start.
        residual: there; infinite as long as none was finite.
        step: J⁻¹ residual there.
        share: of the step that is tried next.
        ended: whether nothing is left to try.
        evaluations: of the residual and its Jacobian.
    """

    x: Array
    residual: Array
    step: Array
    share: Array
    ended: Array
    evaluations: Array


def newton_root(
    residual: Callable[[Array], Array],
    start: Float[Array, " n"],
    max_evaluations: int = 100,
) -> tuple[Float[Array, " n"], Float[Array, ""]]:
    """A root by Newton's method from `start`, and the norm of the residual there.

    The start is halved until its residual is finite, a step until the norm of the
    residual falls; the iteration ends when that or the step is at rounding. The caller
    judges the norm, which is infinite where no finite residual was found.

    Args:
        residual: [n] -> [n].
        start: [n]; no derivative is taken with respect to it.
        max_evaluations: of the residual and its Jacobian at most.

    Returns:
        x [n] with residual(x) = 0, and |residual(x)|, shape ().
    """

    def solve(f, x0):
        epsilon = jnp.finfo(x0.dtype).eps
        norm = jnp.linalg.norm

        def advance(s: _Search) -> _Search:
            # One copy of f in the program, whose compilation is most of the cost.
            x = s.x - s.share * s.step
            with_value = lambda x: 2 * (f(x),)
            jacobian, r = jax.jacfwd(with_value, has_aux=True)(x)
            step = jnp.linalg.solve(jacobian, r)
            begun = jnp.isfinite(norm(s.residual))
            falls = norm(r) < norm(s.residual)
            length = s.share * norm(s.step)
            # So near a root the residual of a whole step falls, but for rounding.
            near = length <= epsilon ** (2 / 3) * norm(s.x)
            at_rounding = length <= epsilon * norm(x)
            missed = jnp.where(begun, s.share / 2, s.share)
            return _Search(
                jnp.where(falls, x, jnp.where(begun, s.x, s.x / 2)),
                jnp.where(falls, r, s.residual),
                jnp.where(falls, step, s.step),
                jnp.where(falls, jnp.minimum(2 * s.share, 1), missed),
                begun & jnp.where(falls, at_rounding, near),
                s.evaluations + 1,
            )

        def unfinished(s: _Search):
            return ~s.ended & (s.evaluations < max_evaluations)

        far, whole = jnp.full_like(x0, jnp.inf), jnp.ones((), x0.dtype)
        start = _Search(
            x0, far, jnp.zeros_like(x0), whole, jnp.array(False), jnp.array(0)
        )
        end = jax.lax.while_loop(unfinished, advance, start)
        return end.x, norm(end.residual)

    tangent_solve = lambda g, y: jnp.linalg.solve(jax.jacfwd(g)(jnp.zeros_like(y)), y)
    return jax.lax.custom_root(residual, start, solve, tangent_solve, has_aux=True)
