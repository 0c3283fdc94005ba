"""Divided differences of a function, also where points come together.

    f[a] = f(a),     f[a, …, b] = (f[a, …] − f[…, b])/(a − b) = ∫₀¹ ∂ₓf[x, …] dt,

the derivative taken at x = b + t (a − b). The quotient loses the digits that f(a) and
f(b) share, the integral by Gauss's rule those that the rule does not resolve. The
integral is taken wherever the quotient's own rounding cannot tell the two apart, and so
at a = b, where it is the limit f'(a).

Source: Higham (2008), Functions of Matrices, appendix B.16.
"""

from __future__ import annotations

from collections.abc import Callable, Sequence

import jax
import jax.numpy as jnp
import numpy as np

from natgrad.typing import Array

# Of Gauss's rule on [0, 1].
_NODES, _WEIGHTS = (np.polynomial.legendre.leggauss(5) + np.array([[1], [0]])) / 2
# Relative roundings that f(a) − f(b) may be off by.
_ROUNDINGS = 100


def quotient(f: Callable[[Array], Array], a: Array, b: Array) -> Array:
    """(f(a) − f(b))/(a − b), elementwise; f'(a) where a = b.

    Args:
        f: elementwise.
        a: points.
        b: points of the same shape.
    """
    at_a, at_b, gap = f(a), f(b), a - b

    def mean_slope(node, weight):
        x = b + node * gap
        return weight * jax.jvp(f, (x,), (jnp.ones_like(x),))[1]

    nodes = (jnp.asarray(each, gap.dtype) for each in (_NODES, _WEIGHTS))
    mean = jnp.sum(jax.vmap(mean_slope)(*nodes), axis=0)
    size = jnp.maximum(jnp.abs(at_a), jnp.abs(at_b))
    rounding = _ROUNDINGS * jnp.finfo(gap.dtype).eps * size
    same = gap == 0
    resolved = same | (jnp.abs(mean * gap - (at_a - at_b)) <= rounding)
    return jnp.where(resolved, mean, (at_a - at_b) / jnp.where(same, 1, gap))


def divided_difference(f: Callable[[Array], Array], points: Sequence[Array]) -> Array:
    """f[x_0, …, x_n], elementwise.

    Args:
        f: elementwise, n times differentiable where points come together.
        points: x_0, …, x_n, arrays of one shape.
    """
    if len(points) == 1:
        return f(points[0])
    # The outermost are farthest apart, so that little is lost between them.
    first, *middle, last = jnp.sort(jnp.stack(list(points)), axis=0)
    return quotient(lambda x: divided_difference(f, [x, *middle]), last, first)
