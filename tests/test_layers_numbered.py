"""Stacked layers by the number of a step are those of a scan over them."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import pytest
from layer_problems import N, close, statistics
from zoo import normal

from natgrad import layers

I = 5
X = normal(0, N, I)
DEEP = {"w": normal(1, 3, I, I), "b": normal(2, 3, I)}


@pytest.fixture(autouse=True)
def as_users_write():
    with jax.numpy_rank_promotion("allow"):
        yield


def layer(p, h, n):
    return jnp.tanh(h @ p["w"][n] + p["b"][n])


def by_slices(p, x):
    step = lambda h, p: (jnp.tanh(h @ p["w"] + p["b"]), None)
    return jax.lax.scan(step, x, p)[0]


def by_number(p, x):
    return jax.lax.fori_loop(0, 3, lambda n, h: layer(p, h, n), x)


def by_numbers(p, x):
    return jax.lax.scan(lambda h, n: (layer(p, h, n), None), x, jnp.arange(3))[0]


def backwards(p, x):
    numbers = jnp.arange(3)
    step = lambda h, n: (layer(p, h, n), None)
    return jax.lax.scan(step, x, numbers, reverse=True)[0]


def inside_a_checkpoint(p, x):
    return jax.jit(jax.checkpoint(by_number))(p, x)


LOOPS = {
    "fori_loop": by_number,
    "scan over numbers": by_numbers,
    "checkpoint": inside_a_checkpoint,
    "backwards": backwards,
}


@pytest.mark.parametrize("name", LOOPS)
def test_layers_by_the_number_of_a_step_are_those_of_a_scan_over_them(name):
    flip = lambda p: jax.tree.map(lambda leaf: leaf[::-1], p)
    order = flip if name == "backwards" else lambda p: p
    blocks, found = statistics(LOOPS[name], DEEP, X, X)
    plain, expected = statistics(by_slices, order(DEEP), X, X)
    assert set(blocks) == set(plain) == {"w"}
    assert blocks["w"].bias
    jax.tree.map(close, found["w"]["expand"], order(expected["w"]["expand"]))


@pytest.mark.parametrize(
    "apply",
    [
        lambda p, x: jax.lax.fori_loop(0, 2, lambda n, h: layer(p, h, n), x),
        lambda p, x: jax.lax.fori_loop(1, 4, lambda n, h: layer(p, h, n - 1), x),
        lambda p, x: jax.lax.fori_loop(0, 3, lambda n, h: layer(p, h, 2 - n), x),
        lambda p, x: jax.lax.scan(
            lambda c, _: ((c[0] + 1, layer(p, c[1], c[0])), None),
            (0, x),
            jnp.zeros(3),
            reverse=True,
        )[0][1],
        lambda p, x: jax.lax.scan(
            lambda h, n: (layer(p, h, n[0]), None),
            x,
            jax.lax.broadcasted_iota(jnp.int32, (3, 1), 1),
        )[0],
    ],
    ids=["fewer steps", "from one on", "downwards", "a number of one's own", "zeros"],
)
def test_other_numbers_are_read_as_they_are_or_not_at_all(apply):
    """Never as slices in another order: what the uses give is JAX's gradient."""
    with layers.verify():
        layers.capture(apply, DEEP, X)
