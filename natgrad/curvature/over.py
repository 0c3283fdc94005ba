"""Statistics of a whole data set, from its batches one after another.

    m = Σ_b ω_b m_b / Σ_b ω_b,     ω_b = Σ_{n in b} ω_n,     statistics = f(m)

for the moments m_b of a batch: what is a mean over its examples. Most curvatures'
statistics are (f is the identity). The result is that of one big batch up to rounding,
however large the batches are. EKFAC takes two passes: its scales are means in a basis
which the factors of all the data decide. KFOC takes two for each of its iterations.

One program for each shape of a batch; memory one batch, its estimate and the mean. What
needs the batch itself (`requires_batch`) keeps the data: `natgrad.curvature.gathered`.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from natgrad import tree
from natgrad.curvature.gathered import DataSet, evaluated, join
from natgrad.model.batch import Batch
from natgrad.model.weights import total_weight
from natgrad.typing import Array, Key, Params, Statistics


class DataAverage(NamedTuple):
    """Statistics of a data set.

    Attributes:
        statistics: as `Curvature.estimate` gives them.
        weight: Σ_n ω_n, shape (): the number of examples, for a model without weights.
    """

    statistics: Statistics
    weight: Array


class Progress(NamedTuple):
    """A pass over a data set that has come to some batch.

    Attributes:
        moments: their mean so far; the batches so far, where these are kept.
        weight: Σ_n ω_n so far, shape ().
        batches: how many are in it.
        found: what the pass before gave; None in the first.
        passes: how many there were before.
    """

    moments: Statistics
    weight: Array
    batches: Array | int
    found: Statistics | None
    passes: Array | int


def programs(curvature: Any) -> tuple[Callable, Callable]:
    """What `over` runs, each compiled once for the shapes that it is given.

    Args:
        curvature: whose statistics are taken.

    Returns:
        (batch, found) -> (moments, Σ_n ω_n, NaN where the moments are not finite), and
        (params, moments, found) -> what this pass finds.
    """

    def moments_of(given, found):
        examples, weight = curvature.model.examples(*given)
        if curvature.model.weights is not None:  # 0 where all are, not 1
            weight = total_weight(examples.weights)
        chosen = curvature.specialize(given.params)
        if chosen.requires_batch:
            moments = evaluated(chosen, given)
        else:
            moments = chosen.moments(given, found)
        return moments, jnp.where(tree.all_finite(moments), weight, jnp.nan)

    def found_by(params, moments, found):
        chosen = curvature.specialize(params)
        if chosen.requires_batch:
            inputs, targets, _ = moments
            return DataSet(inputs, targets, chosen.estimate(params, *moments))
        return chosen.from_moments(params, moments, found)

    return jax.jit(moments_of), jax.jit(found_by)


def over_batches(
    curvature: Any,
    params: Params,
    batches: Any,
    key: Key | None,
    start: Progress | None,
    callback: Callable[[Progress], None] | None,
) -> DataAverage:
    """`Curvature.over`, whose arguments and errors it has."""
    chosen = curvature.specialize(params)
    found, done = (None, 0) if start is None else (start.found, int(start.passes))
    _check(chosen, batches, done)
    moments_of, found_by = curvature.programs_of_data
    add = _append if chosen.requires_batch else _mix

    def of_batch(number, item, found):
        inputs, targets = _pair(number, item)
        targets = targets if chosen.labels.needs_targets else None
        drawn = None if key is None else jax.random.fold_in(key, number)
        chosen.labels.check(targets, drawn)
        moments, weight = moments_of(Batch(params, inputs, targets, drawn), found)
        return [(inputs, targets)] if chosen.requires_batch else moments, weight

    weight = jnp.zeros(())
    for number in range(done, chosen.passes):
        if start is None:
            start = Progress(None, jnp.zeros(()), 0, found, number)
        progress = _pass(of_batch, add, _fresh(batches), start, callback)
        moments, weight = progress.moments, progress.weight
        if chosen.requires_batch:
            moments = join(chosen.model, moments, key)
        found, start = found_by(params, moments, found), None
    return DataAverage(found, weight)


def _pass(
    of_batch: Callable[..., tuple[Statistics, Array]],
    add: Callable[[tuple, tuple], tuple[Statistics, Array]],
    batches: Iterable,
    start: Progress,
    callback: Callable[[Progress], None] | None,
) -> Progress:
    """One pass over the batches, after those that `start` has."""
    # Copies, since the arrays of a mean are written over.
    moments, weight = jax.tree.map(jnp.array, (start.moments, start.weight))
    running, number = start._replace(moments=moments, weight=weight), -1
    for number, item in enumerate(batches):
        if number < start.batches:
            continue
        _settle(running)  # while the next batch is there: no queue of batches
        moments, weight = of_batch(number, item, start.found)
        if number > 0:
            before = running.moments, running.weight
            moments, weight = add(before, (moments, weight))
        running = running._replace(moments=moments, weight=weight, batches=number + 1)
        if callback is not None:
            _settle(running)
            callback(running)
    if number + 1 < max(start.batches, 1):
        raise ValueError(
            f"The data has {number + 1} batches in pass {start.passes + 1}, and at "
            f"least {max(start.batches, 1)} are expected: batches= must start from the "
            "first one each time, as a list, a data loader, or a function that returns "
            "an iterator does."
        )
    if _settle(running) == 0:
        raise ValueError(
            "The weights of all the data are 0: a mean over 0 examples does not exist."
        )
    return running


@functools.partial(jax.jit, donate_argnums=0)
def _mix(mean: tuple, more: tuple) -> tuple[Statistics, Array]:
    """(moments, weight) of two sets of examples together; integers of the second."""
    (moments, weight), (others, other) = mean, more
    total = weight + other
    share = other / jnp.where(total == 0, 1, total)

    def mix(old, new):
        if not jnp.issubdtype(old.dtype, jnp.floating):
            return new
        w = share.astype(old.dtype)
        return (1 - w) * old + w * new

    return jax.tree.map(mix, moments, others), total


def _append(kept: tuple, more: tuple) -> tuple[list, Array]:
    """(batches, weight) of two sets of examples together."""
    return kept[0] + more[0], kept[1] + more[1]


def _settle(running: Progress) -> float:
    """Σ_n ω_n so far, when it is computed; raise unless all moments are finite."""
    weight = float(running.weight)
    if math.isnan(weight):
        raise ValueError(
            f"The statistics of batch {int(running.batches) - 1} are not finite: its "
            "outputs overflow, a label is impossible or a weight is negative. "
            "model.loss(params, inputs, targets) of this batch says which."
        )
    return weight


def _fresh(batches: Any) -> Iterable:
    """The batches from the first one on, where they are made when they are asked for.

    A loader may be callable too.
    """
    return batches if hasattr(batches, "__iter__") else batches()


def _pair(number: int, item: Any) -> tuple[Any, Any]:
    """The inputs and the targets of a batch."""
    if isinstance(item, tuple | list) and len(item) == 2:
        return item[0], item[1]
    raise ValueError(
        "Each batch must be a pair (inputs, targets), with targets None where the "
        f"labels do not need them; batch {number} is a {type(item).__name__} of shapes "
        f"{jax.tree.map(jnp.shape, item)}. A loader of inputs alone gives pairs by "
        "batches=lambda: ((x, None) for x in loader)."
    )


def _check(curvature: Any, batches: Any, done: int) -> None:
    """Raise where statistics of a data set need another iterable, or another start."""
    name, passes = type(curvature).__name__, curvature.passes
    if getattr(getattr(curvature, "curvature", curvature), "axis_name", None):
        raise ValueError(
            f"over runs outside of shard_map, and {name} was made with axis_name=: "
            "leave it out, and give batches whose arrays are sharded over the devices."
        )
    if done >= passes:
        raise ValueError(
            f"start= is in pass {done + 1} over the data, and {name} needs {passes}: "
            "it is of another curvature."
        )
    if passes - done > 1 and isinstance(batches, Iterator):
        raise ValueError(
            f"{name} reads the data {passes} times, and a {type(batches).__name__} can "
            "be read once. Give a list, a data loader, or a function that returns a "
            "new iterator: batches=lambda: load()."
        )
