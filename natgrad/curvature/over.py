"""Statistics of a whole data set, from its batches one after another.

    m = Σ_b ω_b m_b / Σ_b ω_b,     ω_b = Σ_{n in b} ω_n,     statistics = f(m)

for the moments m_b of a batch: what is a mean over its examples. Most curvatures'
statistics are (f is the identity). The result is that of one big batch up to rounding,
however large the batches are. EKFAC takes two passes: its scales are means in a basis
which the factors of all the data decide.

One program for each shape of a batch; memory one batch, its estimate and the mean.
"""

from __future__ import annotations

import functools
import math
from collections.abc import Callable, Iterable, Iterator
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from natgrad import tree
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
        moments: their mean so far.
        weight: Σ_n ω_n so far, shape ().
        batches: how many are in it.
        found: what the pass before gave; None in the first.
    """

    moments: Statistics
    weight: Array
    batches: Array | int
    found: Statistics | None


def programs(curvature: Any) -> tuple[Callable, Callable]:
    """What `over` runs, each compiled once for the shapes that it is given.

    Args:
        curvature: whose statistics are taken.

    Returns:
        (batch, found) -> (moments, Σ_n ω_n, NaN where the moments are not finite), and
        (params, moments, found) -> what this pass finds.
    """

    def in_pass(params, found):
        chosen = curvature.specialize(params)
        return chosen if found is None else chosen.with_previous(found)

    def moments_of(given, found):
        examples, weight = curvature.model.examples(*given)
        if curvature.model.weights is not None:  # 0 where all are, not 1
            weight = total_weight(examples.weights)
        moments = in_pass(given.params, found).moments(given)
        return moments, jnp.where(tree.all_finite(moments), weight, jnp.nan)

    def found_by(params, moments, found):
        return in_pass(params, found).from_moments(params, moments)

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
    found = None if start is None else start.found
    left = range(chosen.passes - (found is not None))
    _check(chosen, batches, len(left))
    moments_of, found_by = curvature.programs_of_data

    def of_batch(number, item, found):
        inputs, targets = _pair(number, item)
        targets = targets if chosen.labels.needs_targets else None
        drawn = None if key is None else jax.random.fold_in(key, number)
        chosen.labels.check(targets, drawn)
        return moments_of(Batch(params, inputs, targets, drawn), found)

    weight = jnp.zeros(())
    for _ in left:
        progress = _pass(of_batch, _fresh(batches), start, found, callback)
        found = found_by(params, progress.moments, found)
        weight, start = progress.weight, None
    return DataAverage(found, weight)


def _pass(
    of_batch: Callable[..., tuple[Statistics, Array]],
    batches: Iterable,
    start: Progress | None,
    found: Statistics | None,
    callback: Callable[[Progress], None] | None,
) -> Progress:
    """One pass over the batches, after those that `start` has."""
    running, done, number = None, 0, -1
    if start is not None:
        # Copies, since the arrays of a mean are written over.
        moments, weight = jax.tree.map(jnp.array, (start.moments, start.weight))
        running, done = start._replace(moments=moments, weight=weight), start.batches
    for number, item in enumerate(batches):
        if number < done:
            continue
        if running is not None:
            _settle(running)  # while the next batch is there: no queue of batches
        moments, weight = of_batch(number, item, found)
        if running is not None:
            before = running.moments, running.weight
            moments, weight = _add(before, (moments, weight))
        running = Progress(moments, weight, number + 1, found)
        if callback is not None:
            _settle(running)
            callback(running)
    if running is None or number + 1 < done:
        raise ValueError(
            f"The data has {number + 1} batches{' in the second pass' * bool(found)}, "
            f"and at least {done or 1} are expected: batches= must start from the "
            "first one each time, as a list, a data loader, or a function that returns "
            "an iterator does."
        )
    if _settle(running) == 0:
        raise ValueError(
            "The weights of all the data are 0: a mean over 0 examples does not exist."
        )
    return running


@functools.partial(jax.jit, donate_argnums=0)
def _add(mean: tuple, more: tuple) -> tuple[Statistics, Array]:
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


def _check(curvature: Any, batches: Any, passes: int) -> None:
    """Raise where statistics of a data set do not exist, or need another iterable."""
    name = type(curvature).__name__
    if curvature.requires_batch:
        raise ValueError(
            f"{name} keeps no statistics that could be averaged: its metric is that of "
            "the batch at hand. Over a data set use Dense (a few thousand parameters), "
            "KFAC, EKFAC or Diagonal; or give all of the data as one batch, "
            "curvature.at(params, inputs, targets)."
        )
    if getattr(getattr(curvature, "curvature", curvature), "axis_name", None):
        raise ValueError(
            f"over runs outside of shard_map, and {name} was made with axis_name=: "
            "leave it out, and give batches whose arrays are sharded over the devices."
        )
    if passes < 1:
        raise ValueError(f"{name} has one pass, and start= is in a second: of EKFAC.")
    if passes > 1 and isinstance(batches, Iterator):
        raise ValueError(
            f"{name} goes over the data twice, and a {type(batches).__name__} can be "
            "read once. Give a list, a data loader, or a function that returns a new "
            "iterator: batches=lambda: load()."
        )
