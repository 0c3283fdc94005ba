"""What an example's output depends on, besides the parameters and its own inputs.

    NOTHING     apply on one example gives the row that apply on the batch gives
    PLACE       the row does not depend on the other examples' inputs, but one example
                alone gives another: dropout masks drawn from one key for the batch, a
                table of positions, a division by N
    OTHERS      the row changes with the other examples' inputs: normalisation by the
                batch's statistics, contrastive scores, a graph whose nodes are examples

A program all of whose operations have known rules is read (`natgrad.layers.rowwise`).
Of others it is found by trial, at random parameters and inputs: two examples together,
each alone, and each beside another neighbour. Models that accept one batch size only
are tried at that size. Draws of random numbers whose shape follows the batch's are
PLACE whatever the trial says, since a mask may happen to drop nothing.

Found once for each program: the key of the cache is what was traced, so that Python
state which changes the program changes the answer.
"""

from __future__ import annotations

import collections
import enum
from collections.abc import Hashable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

from natgrad.layers import jaxprs, rowwise
from natgrad.layers.fingerprint import fingerprint
from natgrad.layers.jaxprs import Program
from natgrad.layers.trials import Trial, bare, disagreement, is_mapped, outside
from natgrad.model import batch
from natgrad.typing import Apply, Inputs, Params


class Dependence(enum.Enum):
    """On what of the batch an example's output depends."""

    NOTHING = "nothing"
    PLACE = "its place in the batch"
    OTHERS = "the other examples"


_CACHE: collections.OrderedDict = collections.OrderedDict()
_CACHE_SIZE = 256


def dependence(
    apply: Apply,
    params: Params,
    inputs: Inputs,
    in_axes: Any = 0,
    program: Program | None = None,
) -> Dependence:
    """What a row of apply(params, inputs) depends on.

    Args:
        apply: apply(params, inputs) -> z [N, ...].
        params: parameters, arrays or shapes; traced ones too.
        inputs: inputs, likewise.
        in_axes: 0 or None for each leaf of the inputs, as for `Model`.
        program: the trace of apply(params, inputs), where the caller has it.

    Returns:
        What it depends on. It is PLACE where no leaf of the inputs has an axis of
        examples, where the outputs are not finite at random parameters, or where apply
        cannot be run outside the mapped axes that it was traced in.
    """
    size = batch.input_count(inputs, in_axes)
    if size is None:
        return Dependence.PLACE
    if size == 1:
        return Dependence.NOTHING
    traced, _ = jaxprs.trace(apply, params, inputs) if program is None else program
    try:
        key = (
            fingerprint(traced, values=True),
            jax.tree.structure((params, inputs)),
            repr(in_axes),
        )
        hash(key)
    except TypeError:
        key = None
    if key not in _CACHE:
        shapes = [jax.tree.map(bare, leaves) for leaves in (params, inputs)]

        def trials() -> Dependence:
            return _tried(apply, shapes[0], shapes[1], in_axes, size)

        answer = outside(trials) if is_mapped(traced) else trials()
        if key is None:
            return answer
        _CACHE[key] = answer
        while len(_CACHE) > _CACHE_SIZE:
            _CACHE.popitem(last=False)
    _CACHE.move_to_end(key)
    return _CACHE[key]


# Trials -----------------------------------------------------------------------------


def _tried(apply, params, inputs, in_axes, size: int) -> Dependence:
    """As `dependence`, by running apply on drawn arrays of these shapes."""

    def trial(count: int) -> Trial | None:
        return Trial.of(apply, params, inputs, in_axes, count)

    first, second = (trial(count) for count in rowwise.SIZES)
    if first is not None and second is not None and first.proves(second):
        return Dependence.NOTHING
    several, one = trial(2) or trial(size), trial(1)
    if several is None:
        return Dependence.PLACE
    finite = False
    alike = one if one is not None and one.draws == several.draws else None
    for positive in (False, True):
        rows, others = (several.rows(seed, positive) for seed in (0, 1))
        z = several.run(rows, positive)
        if not np.all(np.isfinite(z)):
            continue
        finite = True
        if _interact(several, z, rows, others, positive):
            return Dependence.OTHERS
        if alike and not _alike(alike, z, rows, positive, several.precision):
            alike = None
    return Dependence.NOTHING if finite and alike else Dependence.PLACE


def _interact(trial: Trial, z, rows: list, others: list, positive: bool) -> bool:
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
            after = trial.run(mixed, positive)
            if disagreement(after[~changed], z[~changed]) > trial.precision / 100:
                return True
    return False


def _chosen(changed, new, old):
    if jnp.issubdtype(old.dtype, jax.dtypes.prng_key):
        return old  # drawn keys are all the same
    return np.where(changed.reshape((-1,) + (1,) * (old.ndim - 1)), new, old)


def _alike(one: Trial, z, rows: list, positive: bool, limit: float) -> bool:
    """Does each example alone give its row?"""
    for n in range(len(z)):
        with jax.ensure_compile_time_eval():  # of keys, under an outer trace
            row = [leaf[n : n + 1] for leaf in rows]
        alone = one.run(row, positive)
        if disagreement(alone[0], z[n]) > limit:
            return False
    return True


# They name an axis, and say only that a value differs along it.
STAYING = {"pvary", "pcast", "pbroadcast"}


def exchanges(
    apply: Apply, params: Params, inputs: Inputs, in_axes: Any, axis_name: Hashable
) -> bool:
    """Whether apply sends what it computes from examples along a mapped axis.

    Batch normalisation does so whose statistics are those of all devices, by
    `jax.lax.pmean`. Parameters may be gathered.

    Args:
        apply: apply(params, inputs) -> z [N, ...], on one device's examples.
        params: parameters.
        inputs: inputs of one device.
        in_axes: 0 or None for each leaf of the inputs, as for `Model`.
        axis_name: the axis, or a tuple of axes.

    Returns:
        True where some collective along these axes reads a value of the examples.
    """
    traced, _ = jaxprs.trace(apply, params, inputs)
    rows, _ = batch.split_inputs(inputs, in_axes)
    mine = {id(leaf) for leaf in rows}
    own = [False] * len(jax.tree.leaves(params))
    own += [id(leaf) in mine for leaf in jax.tree.leaves(inputs)]
    return _sends(traced, own, set(_names(axis_name)))


def _sends(jaxpr, own: list[bool], axes: set) -> bool:
    """Whether some equation sends values that come from the operands marked."""
    jaxpr, _ = jaxprs.opened(jaxpr)
    touched = {v for v, mark in zip(jaxpr.invars, own, strict=True) if mark}
    for equation in jaxpr.eqns:
        marks = [not jaxprs.is_literal(v) and v in touched for v in equation.invars]
        if not any(marks):
            continue
        params, name = equation.params, equation.primitive.name
        along = {*_names(params.get("axis_name")), *_names(params.get("axes"))}
        if name not in STAYING and along & axes:
            return True
        if name == "scan":  # what is carried may come from examples later
            first, carried = jaxprs.scan_counts(equation)
            marks[first : first + carried] = [True] * carried
        for inner in jaxprs.sub_jaxprs(equation):
            count = len(jaxprs.opened(inner)[0].invars)
            # A branch of a cond has no operand for the index.
            given = marks[-count:] if count else []
            if _sends(inner, [*[True] * (count - len(given)), *given], axes):
                return True
        touched |= set(equation.outvars)
    return False


def _names(axes: Any) -> tuple:
    if axes is None:
        return ()
    return tuple(axes) if isinstance(axes, tuple | list) else (axes,)
