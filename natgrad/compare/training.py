"""A race of optimizers: the same model, batches and number of learning rates for all.

Each contender runs once for each learning rate of its grid. The best run has the lowest
final loss on the training data; a run that is not finite, or ends above its first loss,
has failed and is never the best. If the best learning rate lies on the edge of its grid
the entry says so: a better one may lie outside.

The steps of a run are compiled into one `lax.scan`, in segments, and only these are
timed: losses are evaluated after each segment, for all of its iterates. Learning rates
run one after another instead of under `vmap`, so that a run that diverges cannot slow
the others (their solvers would fall back together) and the seconds are those of a run.

A race tunes learning rates on one seed. How much of its result is luck, the quartiles
of some repetitions at the chosen rates say, from other starts and in other orders.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from natgrad.compare.runs import (
    DEFAULT,
    Contender,
    Entry,
    Race,
    Repeated,
    Run,
    contender,
)
from natgrad.compare.setup import compiled, timed
from natgrad.model import Model
from natgrad.tree import Layout
from natgrad.typing import Array, Params

# Steps between two looks at the clock, at most.
_SEGMENT = 10

# (z, targets) -> a number that is the better the higher.
Score = Callable[[Array, Array], Array]
Data = tuple[Any, Array]


@dataclasses.dataclass(frozen=True)
class RaceSettings:
    """What the runs of a race have in common.

    Attributes:
        steps: of each run.
        batch_size: examples a step; at most all of them are taken.
        rates: learning rates in each grid.
        damping: λ of the curvatures; it is not tuned.
        seed: of the order of the examples.
    """

    steps: int = 30
    batch_size: int = 256
    rates: int = 6
    damping: float = 1e-3
    seed: int = 0

    def __post_init__(self):
        for name in ("steps", "batch_size", "rates"):
            if (value := getattr(self, name)) < 1:
                raise ValueError(f"{name} must be at least 1, got {value}.")


class _Course:
    """What all contenders run on; layers are read from the model's example inputs."""

    def __init__(self, model: Model, train: Data, test: Data, score: Score):
        if model.example_inputs is None and model.in_axes == 0:
            example = jax.tree.map(lambda leaf: leaf[:1], train[0])
            model = dataclasses.replace(model, example_inputs=example)
        self.model, self._data, self._score = model, (train, test), score
        self._evaluate = jax.jit(self._figures)

    def runner(
        self, entrant: Contender, params: Params, batches: Array
    ) -> tuple[float, Callable[[float, Params, Array], Run]]:
        """The seconds of compiling steps, and (learning rate, start, batches) -> Run.

        `params` and `batches`, rows of examples [steps, batch size], have the shapes
        that all runs have.
        """
        dtype, train = Layout.of(params).dtype, self._data[0]
        steps, batch_size = batches.shape
        segment = max(d for d in range(1, _SEGMENT + 1) if steps % d == 0)
        start = jax.jit(lambda params: (params, entrant.make(1.0).init(params)))
        example = (jnp.asarray(1.0, dtype), start(params), batches[:segment])
        advance, compile_seconds = compiled(
            lambda *args: self._advance(entrant, *args), *example, train
        )

        def run(rate: float, params: Params, batches: Array) -> Run:
            first = jax.tree.map(lambda leaf: leaf[None], params)
            figures = [self._evaluate(first, *self._data)]
            carry, seconds = start(params), [0.0]
            ticks, eta = np.arange(1, segment + 1) / segment, jnp.asarray(rate, dtype)
            for rows in batches.reshape(-1, segment, batch_size):
                (carry, iterates), elapsed = timed(advance, eta, carry, rows, train)
                figures.append(self._evaluate(iterates, *self._data))
                seconds += (seconds[-1] + elapsed * ticks).tolist()
            columns = map(np.concatenate, zip(*figures, strict=True))
            return Run(rate, seconds, *(column.tolist() for column in columns))

        return compile_seconds, run

    def _advance(self, entrant, rate, carry, indices, train):
        """Some steps, and the parameters after each: (carry, [steps, ...])."""
        optimizer = entrant.make(rate)

        def step(carry, rows):
            params, state = carry
            batch = jax.tree.map(lambda leaf: leaf[rows], train)
            params, state = optimizer_step(self.model, optimizer, params, state, batch)
            return (params, state), params

        return jax.lax.scan(step, carry, indices)

    def _figures(self, iterates, train, test) -> tuple[Array, Array, Array]:
        """(train loss, test loss, score) of each of some parameters."""

        def one(params):
            losses = (self.model.loss(params, *data) for data in (train, test))
            return *losses, self._score(self.model.outputs(params, test[0]), test[1])

        return jax.lax.map(one, iterates)


def race(
    model: Model,
    params: Params,
    train: Data,
    test: Data,
    *,
    score: Score,
    names: Sequence[str] = DEFAULT,
    settings: RaceSettings = RaceSettings(),
    on_run: Callable[[Entry], None] | None = None,
) -> Race:
    """Train with each optimizer and each learning rate of its grid.

    Args:
        model: the statistical model.
        params: where all start.
        train: (inputs, targets), arrays or trees of arrays with a leading axis.
        test: (inputs, targets).
        score: (outputs, targets) -> a number, the higher the better.
        names: contenders: names in `natgrad.CURVATURES`, "sgd", "adam", "soap",
            "kl_shampoo".
        settings: steps, batches, learning rates and damping of all.
        on_run: called after each run with the contender's entry so far, which is
            finished when it has `settings.rates` runs.

    Returns:
        Each contender's runs; `verdict()` says in words who won.

    Raises:
        ValueError: for unknown names.
    """
    course, damping = _Course(model, train, test, score), settings.damping
    entrants = [contender(name, course.model, damping) for name in dict.fromkeys(names)]
    count, steps = jnp.shape(train[1])[0], settings.steps
    batch_size, entries = min(settings.batch_size, count), []
    batches = batch_order(count, batch_size, steps, settings.seed)
    for entrant in entrants:
        seconds, run = course.runner(entrant, params, batches)
        entry = Entry(entrant.name, (), seconds)
        for rate in entrant.rates(settings.rates):
            runs = (*entry.runs, run(rate, params, batches))
            entry = dataclasses.replace(entry, runs=runs)
            if on_run is not None:
                on_run(entry)
        entries.append(entry)
    return Race(tuple(entries), steps, batch_size, damping)


def repeated(
    model: Model,
    initial: Callable[[int], Params],
    train: Data,
    test: Data,
    race: Race,
    *,
    score: Score,
    seeds: Iterable[int] = range(1, 6),
) -> tuple[Repeated, ...]:
    """Run each contender of a race at its best rate once for each seed.

    Args:
        model: the statistical model.
        initial: seed -> where the run starts.
        train: (inputs, targets).
        test: (inputs, targets).
        race: what was tuned, with its steps, batch size and damping.
        score: (outputs, targets) -> a number, the higher the better.
        seeds: of starts and orders of the examples.

    Returns:
        One entry a contender; those all of whose runs failed are left out.

    Raises:
        ValueError: for no seeds, and where nobody has a best rate.
    """
    course, count = _Course(model, train, test, score), jnp.shape(train[1])[0]
    starts = [
        (initial(seed), batch_order(count, race.batch_size, race.steps, seed))
        for seed in seeds
    ]
    if not starts:
        raise ValueError("seeds is empty: there is nothing to repeat.")
    repetitions = []
    for entry in race.entries:
        if entry.best is None:
            continue
        rate = entry.best.learning_rate
        entrant = contender(entry.name, course.model, race.damping)
        _, run = course.runner(entrant, *starts[0])
        runs = tuple(run(rate, params, batches) for params, batches in starts)
        repetitions.append(Repeated(entry.name, rate, runs))
    if not repetitions:
        raise ValueError("Every run of every contender failed: there is no best rate.")
    return tuple(repetitions)


def optimizer_step(
    model: Model,
    optimizer: optax.GradientTransformationExtraArgs,
    params: Params,
    state: optax.OptState,
    batch: Data,
) -> tuple[Params, optax.OptState]:
    """One step on a batch: the parameters and the optimizer's state after it."""
    inputs, targets = batch
    gradient = jax.grad(model.loss)(params, inputs, targets)
    updates, state = optimizer.update(
        gradient, state, params, inputs=inputs, targets=targets
    )
    return optax.apply_updates(params, updates), state


def batch_order(
    count: int, batch_size: int, steps: int, seed: int | Sequence[int]
) -> Array:
    """Row indices [steps, batch_size]: reshuffled passes, without replacement."""
    draw = np.random.default_rng(seed)
    each = count // batch_size
    passes = [
        draw.permutation(count)[: each * batch_size].reshape(each, batch_size)
        for _ in range(-(-steps // each))
    ]
    return jnp.asarray(np.concatenate(passes)[:steps])
