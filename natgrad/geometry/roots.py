"""Roots with the derivative of the implicit function theorem.

Both go through `lax.custom_root`: the derivative is that of the root, not of the
iterations, forward and reverse and of any order, and costs one linear solve.
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp

from natgrad.typing import Array, ArrayLike


def bracketed_root(
    function: Callable[[Array], Array],
    lower: ArrayLike,
    upper: ArrayLike,
    max_iterations: int = 100,
) -> Array:
    """The root in [lower, upper] of a scalar function that is positive before it.

    Newton's method, with bisection where it leaves the bracket or does not halve the
    last step. The function counts as negative where it is NaN.

    Args:
        function: positive below its root, negative or NaN above it.
        lower: where the search starts; not evaluated.
        upper: where it ends; not evaluated.
        max_iterations: evaluations of the function at most.
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


def newton_root(
    residual: Callable[[Array], Array],
    start: Array,
    max_iterations: int = 50,
) -> tuple[Array, Array]:
    """(x with residual(x) = 0, |residual(x)|) by Newton's method from `start`.

    The start is halved until its residual is finite, a step until the residual r(x)
    becomes (1 − t) r(x) but for t/2 |r(x)|, t the share of it that is left. A residual
    that only falls is not enough: the iterates must stay near the path of the exact
    flow, x' = −J⁻¹ r, or where they end is decided by rounding. The iteration ends where
    no step does, or where the step is at rounding. The caller judges the norm.

    Args:
        residual: [n] -> [n].
        start: [n]; no derivative is taken with respect to it.
        max_iterations: Newton steps at most.

    Source: Deuflhard (2011), Newton Methods for Nonlinear Problems, sections 3.1 and
    3.2: the Newton path and its monotonicity tests.
    """

    def solve(f, x0):
        epsilon = jnp.finfo(x0.dtype).eps
        infinity, whole = jnp.array([jnp.inf, 1], x0.dtype)
        norm = lambda r: jnp.where(
            jnp.all(jnp.isfinite(r)), jnp.linalg.norm(r), infinity
        )

        def advance(state):
            x, _, share, _, k = state
            with_value = lambda x: 2 * (f(x),)
            jacobian, r = jax.jacfwd(with_value, has_aux=True)(x)
            step = jnp.linalg.solve(jacobian, r)

            def attempt(search):
                t, _, i = search
                t = t / 2
                new = f(x - t * step)
                follows = norm(new - (1 - t) * r) <= t / 2 * norm(r)
                return t, jnp.where(follows, norm(new), infinity), i + 1

            def searching(search):
                t, least, i = search
                # As near as this, only rounding can bend the path.
                far = t * norm(step) > epsilon ** (2 / 3) * norm(x)
                return jnp.isinf(least) & ((i == 0) | (far & (i < 40)))

            begin = (jnp.minimum(4 * share, 2), infinity, 0)
            t, least, _ = jax.lax.while_loop(searching, attempt, begin)
            moved = jnp.isfinite(least)
            new = jnp.where(moved, x - t * step, x)
            small = norm(new - x) <= epsilon * norm(x)
            return new, jnp.where(moved, least, norm(r)), t, small, k + 1

        def unfinished(state):
            return ~state[3] & (state[4] < max_iterations)

        start, _ = jax.lax.while_loop(
            lambda c: ~jnp.isfinite(norm(f(c[0]))) & (c[1] < 30),
            lambda c: (c[0] / 2, c[1] + 1),
            (x0, 0),
        )
        begin = (start, infinity, whole, jnp.array(False), jnp.array(0))
        return jax.lax.while_loop(unfinished, advance, begin)[:2]

    tangent_solve = lambda g, y: jnp.linalg.solve(jax.jacfwd(g)(jnp.zeros_like(y)), y)
    return jax.lax.custom_root(residual, start, solve, tangent_solve, has_aux=True)
