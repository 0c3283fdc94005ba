"""What an example's output depends on, besides the parameters and its own inputs.

    NOTHING     apply on one example gives the row that apply on the batch gives
    PLACE       the row does not depend on the other examples' inputs, but one example
                alone gives another: dropout masks drawn from one key for the batch, a
                table of positions, a division by N
    OTHERS      the row changes with the other examples' inputs: normalisation by the
                batch's statistics, contrastive scores, a graph whose nodes are examples

It is found by trial, at random parameters and inputs: two examples together, each
alone, and each beside another neighbour. Models that accept one batch size only are
tried at that size. Draws of random numbers whose shape follows the batch's are PLACE
whatever the trial says, since a mask may happen to drop nothing.

Tried once for each program: the key of the cache is what was traced, so that Python
state which changes the program changes the answer.
"""

from __future__ import annotations

import collections
import concurrent.futures
import enum
import re
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from natgrad import batch
from natgrad.layers import jaxprs
from natgrad.layers.trials import disagreement, draw, draw_parameter, tolerance
from natgrad.typing import Apply, Inputs, Params


class Dependence(enum.Enum):
    """On what of the batch an example's output depends."""

    NOTHING = "nothing"
    PLACE = "its place in the batch"
    OTHERS = "the other examples"


_CACHE: collections.OrderedDict = collections.OrderedDict()
_CACHE_SIZE = 256
# Constants up to this size are known by their bytes, larger ones by their identity.
_SMALL = 4096
# It runs a few times on two examples.
_QUICKLY = {"xla_backend_optimization_level": 0}
_DRAWS = {"random_bits", "threefry2x32", "random_gamma", "rng_bit_generator"}
_DRAWS |= {"random_split", "rng_uniform"}


def dependence(
    apply: Apply, params: Params, inputs: Inputs, in_axes: Any = 0
) -> Dependence:
    """What a row of apply(params, inputs) depends on.

    Args:
        apply: apply(params, inputs) -> z [N, ...].
        params: parameters, arrays or shapes; traced ones too.
        inputs: inputs, likewise.
        in_axes: 0 or None for each leaf of the inputs, as for `Model`.

    Returns:
        PLACE where no leaf of the inputs has an axis of examples, or where the outputs
        are not finite at random parameters; NOTHING where apply cannot be run outside
        the mapped axes that it was traced in.
    """
    size = batch.input_count(inputs, in_axes)
    if size is None:
        return Dependence.PLACE
    if size == 1:
        return Dependence.NOTHING
    traced = jax.make_jaxpr(apply)(params, inputs)
    constants = list(_constants(traced))
    key = (
        re.sub(r"0x[0-9a-f]+", "", str(jaxprs.opened(traced)[0])),
        jax.tree.structure((params, inputs)),
        repr(in_axes),
        *map(_identity, constants),
    )
    if key not in _CACHE:
        shapes = jax.tree.map(_bare, (params, inputs))
        # The constants are kept, so that no other array takes their identity.
        _CACHE[key] = _outside(lambda: _tried(apply, *shapes, in_axes, size)), constants
        while len(_CACHE) > _CACHE_SIZE:
            _CACHE.popitem(last=False)
    _CACHE.move_to_end(key)
    return _CACHE[key][0]


def _bare(leaf) -> jax.ShapeDtypeStruct:
    return jax.ShapeDtypeStruct(jnp.shape(leaf), jnp.result_type(leaf))


def _constants(jaxpr) -> Iterator:
    opened, constants = jaxprs.opened(jaxpr)
    yield from constants
    for equation in opened.eqns:
        for inner in jaxprs.sub_jaxprs(equation):
            yield from _constants(inner)


def _identity(constant) -> Any:
    if isinstance(constant, jax.core.Tracer):
        return str(constant.aval)
    numbers = not jnp.issubdtype(jnp.result_type(constant), jax.dtypes.prng_key)
    if numbers and np.size(constant) <= _SMALL:
        return np.shape(constant), np.asarray(constant).tobytes()
    return id(constant)


def _outside(function: Callable[[], Dependence]) -> Dependence:
    """The result of a function run outside the mesh axes that are mapped, if any are.

    Mesh and traces are local to a thread, and so are settings; see `capture`.
    """
    mapped = set(jax.sharding.get_abstract_mesh().axis_types)
    if not mapped - {jax.sharding.AxisType.Auto}:
        return function()
    wide, ranks = jax.config.jax_enable_x64, jax.config.jax_numpy_rank_promotion

    def alone():
        with jax.enable_x64(wide), jax.numpy_rank_promotion(ranks):
            return function()

    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        return pool.submit(alone).result()


# Trials -----------------------------------------------------------------------------


def _tried(apply, params, inputs, in_axes, size: int) -> Dependence:
    """As `dependence`, by running apply on drawn arrays of these shapes."""
    trial = lambda count: _Trial.of(apply, params, inputs, in_axes, count)
    several, one = trial(2) or trial(size), trial(1)
    if several is None:
        return Dependence.NOTHING
    finite, alike = False, one is not None and one.draws == several.draws
    for positive in (False, True):
        rows, others = (several.rows(seed, positive) for seed in (0, 1))
        z = several.run(rows, positive)
        if not np.all(np.isfinite(z)):
            continue
        finite = True
        if _interact(several, z, rows, others, positive):
            return Dependence.OTHERS
        alike = alike and _alike(one, z, rows, positive, several.precision)
    return Dependence.NOTHING if finite and alike else Dependence.PLACE


def _interact(trial: _Trial, z, rows: list, others: list, positive: bool) -> bool:
    """Do rows change when other examples do? Two examples differ in some binary digit.

    One program on equal shapes: what does not change is equal to the last digits.
    """
    index = np.arange(trial.count)
    for digit in range(max(1, (trial.count - 1).bit_length())):
        for value in (0, 1):
            changed = (index >> digit) & 1 == value
            mixed = [
                _chosen(changed, new, old)
                for old, new in zip(rows, others, strict=True)
            ]
            kept = ~changed
            after = trial.run(mixed, positive)[kept]
            if disagreement(after, z[kept]) > trial.precision / 100:
                return True
    return False


def _chosen(changed, new, old):
    if jnp.issubdtype(old.dtype, jax.dtypes.prng_key):
        return old  # drawn keys are all the same
    return np.where(changed.reshape((-1,) + (1,) * (old.ndim - 1)), new, old)


def _alike(one: _Trial, z, rows: list, positive: bool, limit: float) -> bool:
    """Does each example alone give its row?"""
    for n in range(len(z)):
        alone = one.run([leaf[n : n + 1] for leaf in rows], positive)
        if disagreement(alone[0], z[n]) > limit:
            return False
    return True


class _Trial:
    """apply on `count` examples, compiled.

    Attributes:
        count: of examples.
        precision: relative rounding that the coarsest type may show.
        draws: shapes of random numbers that no example's own inputs have a part in.
    """

    def __init__(self, apply, params, batched, rest, rebuild):
        self.count = batched[0].shape[0]
        self._batched = batched
        flat = lambda params, rest, *rows: apply(params, rebuild(rows, rest))
        operands = jax.tree.leaves((params, rest))
        structure = jax.tree.structure((params, rest))
        self._fixed = (params, rest)
        ordered = lambda *leaves: flat(
            *jax.tree.unflatten(structure, leaves[: len(operands)]),
            *leaves[len(operands) :],
        )
        with jax.default_matmul_precision("highest"):
            traced = jax.make_jaxpr(ordered)(*operands, *batched)
            run, constants = jaxprs.lifted(ordered, *operands, *batched)
        self._constants = constants
        self.precision = tolerance(jaxprs.float_dtypes(traced))
        opened, _ = jaxprs.opened(traced)
        self.draws = list(_untouched(opened, set(opened.invars[len(operands) :])))
        self._run, self._compiled = run, None

    @staticmethod
    def of(apply, params, inputs, in_axes, count: int) -> _Trial | None:
        """The trial, or None where apply does not take so many examples."""
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
            return _Trial(apply, params, batched, rest, rebuild)
        except Exception:
            return None

    def rows(self, seed: int, positive: bool) -> list:
        """Drawn inputs with an axis of examples."""
        generator = np.random.default_rng(seed)
        return [draw(generator, leaf, positive) for leaf in self._batched]

    def run(self, rows: list, positive: bool) -> np.ndarray:
        """z on drawn parameters and these rows."""
        arguments = [*self._shared(positive), *rows]
        if self._compiled is None:
            self._compiled = jax.jit(self._run).lower(*arguments).compile(_QUICKLY)
        with jax.debug_nans(False), jax.debug_infs(False):
            z = self._compiled(*arguments)[0]
        return np.asarray(z).astype(np.float64)

    def _shared(self, positive: bool) -> list:
        """Constants, those that are traced drawn; parameters; what examples share."""
        generator = np.random.default_rng(2)
        params, rest = self._fixed
        entry = lambda leaf: draw(generator, leaf, positive)
        known = [
            entry(c.aval) if isinstance(c, jax.core.Tracer) else c
            for c in self._constants
        ]
        weights = [
            draw_parameter(generator, leaf, positive)
            for leaf in jax.tree.leaves(params)
        ]
        return [*known, *weights, *map(entry, rest)]


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
