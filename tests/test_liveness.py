"""What a program keeps alive, beside counts by hand; X is a vector of 1,000 float32."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest

from natgrad.layers import live_bytes

X = jax.ShapeDtypeStruct((1000,), "float32")
XX = jax.ShapeDtypeStruct((10, 1000), "float32")
BYTES = 4000


def chain(x):
    return jnp.cos(jnp.sin(jnp.exp(x)))  # operand and result at a time


def kept(x):
    first = jnp.exp(x)
    return jnp.cos(jnp.sin(first)) + first  # three in the second step and in the third


def unused(x):
    jnp.outer(x, x)
    return jnp.sin(x)


def views(x):
    return jnp.sin(x).reshape(10, 100).reshape(1000, 1)


def rows(xx):
    """A slice, two values of a step, and 10 results."""
    return jax.lax.map(lambda x: jnp.sin(jnp.exp(x)), xx)


def total(xx):
    """A slice, the sine and the sum; the sum before and after the loop is one."""
    step = lambda sum_, x: (sum_ + jnp.sin(x), None)
    return jax.lax.scan(step, jnp.zeros(1000, "float32"), xx)[0]


def branch(x):
    """The dearer branch."""
    return jax.lax.cond(x[0] > 0, chain, lambda x: x, x)


@pytest.mark.parametrize(
    ("function", "operand", "number"),
    [
        (chain, X, 2),
        (kept, X, 3),
        (unused, X, 1),
        (views, X, 1),
        (rows, XX, 13),
        (total, XX, 5),
        (branch, X, 2),
    ],
    ids=lambda value: getattr(value, "__name__", None),
)
def test_bytes_alive_are_counted(function, operand, number):
    found = live_bytes(function, operand)
    assert BYTES * number <= found <= BYTES * number + 64  # numbers beside the vectors
