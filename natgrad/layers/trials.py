"""Trial runs: random data, a model compiled on a few examples, a comparison."""

from __future__ import annotations

import concurrent.futures
import itertools
from collections.abc import Callable, Iterable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jax.core import Tracer

from natgrad.control_flow import lifted
from natgrad.layers import jaxprs, rowwise
from natgrad.layers.fingerprint import identity
from natgrad.model import batch


def bare(leaf) -> jax.ShapeDtypeStruct:
    """The shape and type of an array, without the mesh axes that it belongs to."""
    return jax.ShapeDtypeStruct(jnp.shape(leaf), jnp.result_type(leaf))


def is_mapped(traced: jaxprs.Jaxpr) -> bool:
    """Whether a program just traced depends on axes that are mapped here."""
    kinds = set(jax.sharding.get_abstract_mesh().axis_types)
    return bool(kinds - {jax.sharding.AxisType.Auto} or jaxprs.open_axes(traced))


def outside(function: Callable[[], Any]) -> Any:
    """Runs a function outside all axes that are mapped.

    Axes and traces are local to a thread, so another thread is outside of all; so are
    settings made by a context manager, of which two decide what a model may do.

    Args:
        function: a function without arguments.

    Returns:
        Its result.
    """
    config: Any = jax.config  # whose type does not declare the settings
    wide, ranks = config.jax_enable_x64, config.jax_numpy_rank_promotion

    def alone():
        with jax.enable_x64(wide), jax.numpy_rank_promotion(ranks):
            return function()

    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        return pool.submit(alone).result()


def draw(generator: np.random.Generator, aval, positive: bool = False):
    """Random entries for an array: normal, or near one; zeros and ones for integers.

    The result is no jax array unless it is a key, so that nothing is compiled.

    Args:
        generator: where randomness comes from.
        aval: shape and type.
        positive: whether to draw entries near one.

    Returns:
        The array.
    """
    shape, dtype = aval.shape, aval.dtype
    if jnp.issubdtype(dtype, jax.dtypes.prng_key):
        with jax.ensure_compile_time_eval():
            return jax.numpy.full(shape, jax.random.key(0), dtype)
    if not jnp.issubdtype(dtype, np.inexact):
        return generator.integers(0, 2, shape).astype(dtype)
    noise = generator.standard_normal(shape)
    return np.asarray(1.0 + 0.1 * noise if positive else noise).astype(dtype)


def draw_parameter(generator: np.random.Generator, aval, positive: bool = False):
    """A random parameter that keeps the size of what it multiplies; a vector near one.

    Args:
        generator: where randomness comes from.
        aval: shape and type.
        positive: whether to draw entries near one.

    Returns:
        The array.
    """
    drawn = draw(generator, aval, positive=positive or len(aval.shape) < 2)
    flat = len(aval.shape) < 2 or not drawn.size
    if flat or not jnp.issubdtype(aval.dtype, np.inexact):
        return drawn
    return (drawn * max(1.0, np.prod(aval.shape[:-1])) ** -0.5).astype(aval.dtype)


def tolerance(dtypes: Iterable) -> float:
    """The relative rounding that a sum in the coarsest of some types may show.

    Args:
        dtypes: the types, or their names.

    Returns:
        The rounding; 1e-8 where there is no type.
    """
    table = {"float64": 1e-8, "complex128": 1e-8, "float32": 1e-3, "complex64": 1e-3}
    return max((table.get(str(dtype), 2e-2) for dtype in dtypes), default=1e-8)


def disagreement(one, two) -> float:
    """The largest difference of two arrays, relative to the second's largest entry.

    Args:
        one: an array.
        two: an array of the same shape.

    Returns:
        max |one − two|/max |two|; 0 where there is nothing to compare.
    """
    one, two = np.asarray(one), np.asarray(two)
    if one.size == 0 or one.dtype == jax.dtypes.float0:
        return 0.0
    wide = np.complex128 if np.iscomplexobj(one) else np.float64
    one, two = one.astype(wide), two.astype(wide)
    scale = max(float(np.max(np.abs(two))), float(np.finfo(np.float32).tiny))
    return float(np.max(np.abs(one - two))) / scale


# It runs a few times on two examples.
_QUICKLY: dict[str, str | bool] = {"xla_backend_optimization_level": "0"}
_DRAWS = {"random_bits", "threefry2x32", "random_gamma", "rng_bit_generator"}
_DRAWS |= {"random_split", "rng_uniform"}


class Trial:
    """A model's function on `count` examples, compiled and run on drawn arrays.

    Attributes:
        count: how many examples.
        precision: the relative rounding that the coarsest type may show.
        draws: shapes of random numbers that no example's own inputs have a part in.
    """

    def __init__(self, apply, params, batched, rest, rebuild):
        self.count = batched[0].shape[0]
        self._batched = batched

        def flat(params, rest, *rows):
            return apply(params, rebuild(rows, rest))

        operands = jax.tree.leaves((params, rest))
        structure = jax.tree.structure((params, rest))
        self._fixed = (params, rest)

        def ordered(*leaves):
            return flat(
                *jax.tree.unflatten(structure, leaves[: len(operands)]),
                *leaves[len(operands) :],
            )

        with jax.default_matmul_precision("highest"):
            traced = jax.make_jaxpr(ordered)(*operands, *batched)
            run, constants = lifted(ordered, *operands, *batched)
        self._constants, self._traced = constants, traced
        self.precision = tolerance(jaxprs.float_dtypes(traced))
        opened, _ = jaxprs.opened(traced)
        self.draws = list(_untouched(opened, set(opened.invars[len(operands) :])))
        self._run, self._compiled = run, None

    @staticmethod
    def of(apply, params, inputs, in_axes, count: int) -> Trial | None:
        """The trial of a model on a number of examples.

        Args:
            apply: apply(params, inputs).
            params: parameters, arrays or shapes.
            inputs: inputs, arrays or shapes, on any number of examples.
            in_axes: 0 or None for each leaf of the inputs.
            count: the number of examples.

        Returns:
            The trial, or None where apply does not take so many examples.
        """
        leaves, structure = jax.tree.flatten(inputs)
        mine, _ = batch.split_inputs(inputs, in_axes)
        mine = {id(leaf) for leaf in mine}
        batched = [
            jax.ShapeDtypeStruct((count, *leaf.shape[1:]), leaf.dtype)
            for leaf in leaves
            if id(leaf) in mine
        ]

        def rebuild(rows, rest):
            rows, rest = iter(rows), iter(rest)
            return structure.unflatten(
                next(rows if id(leaf) in mine else rest) for leaf in leaves
            )

        rest = [leaf for leaf in leaves if id(leaf) not in mine]
        try:
            return Trial(apply, params, batched, rest, rebuild)
        except Exception:
            return None

    def proves(self, other: Trial) -> bool:
        """Whether it can be read off the program that rows depend on themselves alone.

        Args:
            other: the trial of the same model at another number of examples.

        Returns:
            True where it can.
        """
        traces = [trial._traced for trial in (self, other)]
        for one, two in itertools.zip_longest(*map(constants_of, traces)):
            if np.shape(one) == np.shape(two) and identity(one) != identity(two):
                return False  # it may be a number that follows the batch's size
        opened = [jaxprs.opened(traced)[0] for traced in traces]
        fixed = len(opened[0].invars) - len(self._batched)
        rows = [False] * fixed + [True] * len(self._batched)
        return rowwise.proves([str(jaxpr) for jaxpr in opened], self._traced, rows)

    def rows(self, seed: int, positive: bool) -> list:
        """Draws inputs that have an axis of examples.

        Args:
            seed: of the draws.
            positive: whether to draw entries near one.

        Returns:
            The arrays, flat.
        """
        generator = np.random.default_rng(seed)
        return [draw(generator, leaf, positive) for leaf in self._batched]

    def run(self, rows: list, positive: bool) -> np.ndarray:
        """The outputs on drawn parameters.

        Args:
            rows: inputs that have an axis of examples, flat.
            positive: whether to draw parameters near one.

        Returns:
            The first output z [N, ...], in float64.
        """
        arguments = [*self._shared(positive), *rows]
        if self._compiled is None:
            self._compiled = jax.jit(self._run).lower(*arguments).compile(_QUICKLY)
        with jax.debug_nans(False), jax.debug_infs(False):
            z = self._compiled(*arguments)[0]
        return np.asarray(z).astype(np.float64)

    def _shared(self, positive: bool) -> list:
        """Constants, drawn where traced; parameters; what examples share, near one."""
        generator = np.random.default_rng(2)
        params, rest = self._fixed

        def entry(leaf):
            return draw(generator, leaf, positive)

        known = [entry(c.aval) if isinstance(c, Tracer) else c for c in self._constants]
        weights = [
            draw_parameter(generator, leaf, positive)
            for leaf in jax.tree.leaves(params)
        ]
        shared = [draw(generator, leaf, positive=True) for leaf in rest]
        return [*known, *weights, *shared]


def _untouched(jaxpr, touched: set) -> Iterator:
    """Shapes of draws of random numbers in which the touched variables have no part."""
    jaxpr, _ = jaxprs.opened(jaxpr)
    touched = set(touched)
    for equation in jaxpr.eqns:
        own = [not jaxprs.is_literal(v) and v in touched for v in equation.invars]
        if equation.primitive.name in _DRAWS and not any(own):
            yield tuple(v.aval.shape for v in equation.outvars)
        for inner in jaxprs.sub_jaxprs(equation):
            operands = jaxprs.opened(inner)[0].invars
            pairs = zip(reversed(operands), reversed(own), strict=False)
            yield from _untouched(inner, {v for v, mark in pairs if mark})
        if any(own):
            touched |= set(equation.outvars)


def constants_of(jaxpr) -> Iterator:
    """Every constant of a traced function, those of functions inside too.

    Args:
        jaxpr: closed or open.

    Yields:
        The constants.
    """
    opened, constants = jaxprs.opened(jaxpr)
    yield from constants
    for equation in opened.eqns:
        for inner in jaxprs.sub_jaxprs(equation):
            yield from constants_of(inner)
