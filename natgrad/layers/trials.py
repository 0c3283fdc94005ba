"""What trial runs need: random data, a place outside mapped axes, a comparison."""

from __future__ import annotations

import concurrent.futures
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from natgrad.layers import jaxprs


def bare(leaf) -> jax.ShapeDtypeStruct:
    """Shape and type of an array, without the mesh axes that it belongs to."""
    return jax.ShapeDtypeStruct(jnp.shape(leaf), jnp.result_type(leaf))


def is_mapped(traced: jaxprs.Jaxpr) -> bool:
    """Does a program depend on axes that are mapped where it was traced, just now?"""
    kinds = set(jax.sharding.get_abstract_mesh().axis_types)
    return bool(kinds - {jax.sharding.AxisType.Auto} or jaxprs.open_axes(traced))


def outside(function: Callable[[], Any]) -> Any:
    """The result of a function run outside all axes that are mapped.

    Axes and traces are local to a thread, so another thread is outside of all; so are
    settings made by a context manager, of which two decide what a model may do.
    """
    wide, ranks = jax.config.jax_enable_x64, jax.config.jax_numpy_rank_promotion

    def alone():
        with jax.enable_x64(wide), jax.numpy_rank_promotion(ranks):
            return function()

    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        return pool.submit(alone).result()


def draw(generator: np.random.Generator, aval, positive: bool = False):
    """Normal entries, or ones near one; zeros and ones where integers are asked for.

    The result is no jax array unless it is a key, so that nothing is compiled.
    """
    shape, dtype = aval.shape, aval.dtype
    if jax.dtypes.issubdtype(dtype, jax.dtypes.prng_key):
        with jax.ensure_compile_time_eval():
            return jax.numpy.full(shape, jax.random.key(0), dtype)
    if not jax.dtypes.issubdtype(dtype, np.inexact):
        return generator.integers(0, 2, shape).astype(dtype)
    noise = generator.standard_normal(shape)
    return np.asarray(1.0 + 0.1 * noise if positive else noise).astype(dtype)


def draw_parameter(generator: np.random.Generator, aval, positive: bool = False):
    """Matrices that keep the size of what they multiply; vectors near one."""
    drawn = draw(generator, aval, positive=positive or len(aval.shape) < 2)
    flat = len(aval.shape) < 2 or not drawn.size
    if flat or not jax.dtypes.issubdtype(aval.dtype, np.inexact):
        return drawn
    return (drawn * max(1.0, np.prod(aval.shape[:-1])) ** -0.5).astype(aval.dtype)


def tolerance(dtypes: Iterable) -> float:
    """Relative rounding that a sum in the coarsest of these types may show."""
    table = {"float64": 1e-8, "complex128": 1e-8, "float32": 1e-3, "complex64": 1e-3}
    return max((table.get(str(dtype), 2e-2) for dtype in dtypes), default=1e-8)


def disagreement(one, two) -> float:
    """max |one − two| relative to max |two|; 0 where there is nothing to compare."""
    one, two = np.asarray(one), np.asarray(two)
    if one.size == 0 or one.dtype == jax.dtypes.float0:
        return 0.0
    wide = np.complex128 if np.iscomplexobj(one) else np.float64
    one, two = one.astype(wide), two.astype(wide)
    scale = max(float(np.max(np.abs(two))), np.finfo(np.float32).tiny)
    return float(np.max(np.abs(one - two))) / scale
