"""XLA's maximum of 4096 numbers or more passes over NaN on CPUs; ours do not."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np

from natgrad import tree
from natgrad.geometry.check.measures import relative_error


def test_the_largest_of_many_is_nan_where_one_is():
    x = np.random.default_rng(0).normal(size=(100, 60))
    x[50, 7] = np.inf
    for axis in (None, 0, 1):
        found = jax.jit(tree.largest, static_argnums=1)(x, axis)
        np.testing.assert_array_equal(found, x.max(axis))
    x[50, 3] = np.nan
    for axis in (None, 0, 1):
        found = jax.jit(tree.largest, static_argnums=1)(x, axis)
        np.testing.assert_array_equal(found, x.max(axis))


def test_an_error_of_many_numbers_that_is_nan_is_seen():
    right = jnp.ones(5000)
    assert np.isnan(relative_error(right.at[3].set(np.nan), right))
    assert np.isnan(relative_error(right, right.at[3].set(np.nan)))
