"""A race of optimizers: the same model, batches and number of learning rates for all.

Each contender runs once for each learning rate of its grid. The best run has the lowest
final loss on the training data; a run that is not finite, or ends above its first loss,
has failed and is never the best. If the best learning rate lies on the edge of its grid
the entry says so: a better one may lie outside.

The steps of a run are compiled into one `lax.scan`, in segments, and only these are
timed: losses are evaluated after each segment, for all of its iterates. Learning rates
run one after another instead of under `vmap`, so that a run that diverges cannot slow
the others (their solvers would fall back together) and the seconds are those of a run.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from natgrad.compare import timing
from natgrad.compare.contenders import DEFAULT, Contender, contender
from natgrad.compare.runs import Entry, Race, Run
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
            if getattr(self, name) < 1:
                raise ValueError(
                    f"{name} must be at least 1, got {getattr(self, name)}."
                )


@dataclasses.dataclass(frozen=True)
class Course:
    """What all contenders run on.

    Attributes:
        model: the statistical model.
        train: (inputs, targets).
        test: (inputs, targets).
        score: of outputs against targets.
    """

    model: Model
    train: Data
    test: Data
    score: Score

    def runner(
        self, entrant: Contender, params: Params, batches: Array, evaluate: Callable
    ) -> tuple[float, Callable[[float, Params, Array], Run]]:
        """Compile the steps of a contender.

        Args:
            entrant: who runs.
            params: parameters of the shapes that all runs have.
            batches: rows of the examples of each step, [steps, batch size], likewise.
            evaluate: `self.evaluate`, compiled once for all contenders.

        Returns:
            The seconds of compiling, and a function (learning rate, start, batches) ->
            Run.
        """
        dtype = Layout.of(params).dtype
        steps, batch_size = batches.shape
        segment = max(d for d in range(1, _SEGMENT + 1) if steps % d == 0)
        start = jax.jit(lambda params: (params, entrant.make(1.0).init(params)))
        example = (jnp.asarray(1.0, dtype), start(params), batches[:segment])
        advance, compile_seconds = timing.compiled(
            lambda *args: self._advance(entrant, *args), *example, self.train
        )

        def run(rate: float, params: Params, batches: Array) -> Run:
            first = jax.tree.map(lambda leaf: leaf[None], params)
            figures = [evaluate(first, self.train, self.test)]
            carry, seconds = start(params), [0.0]
            for rows in batches.reshape(-1, segment, batch_size):
                (carry, iterates), elapsed = timing.timed(
                    advance, jnp.asarray(rate, dtype), carry, rows, self.train
                )
                figures.append(evaluate(iterates, self.train, self.test))
                ticks = np.arange(1, segment + 1) / segment
                seconds += (seconds[-1] + elapsed * ticks).tolist()
            columns = [
                np.concatenate(column).tolist() for column in zip(*figures, strict=True)
            ]
            return Run(rate, seconds, *columns)

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

    def evaluate(
        self, iterates: Params, train: Data, test: Data
    ) -> tuple[Array, Array, Array]:
        """(train loss, test loss, score) of each of some parameters."""

        def one(params):
            return (
                self.model.loss(params, *train),
                self.model.loss(params, *test),
                self.score(self.model.outputs(params, test[0]), test[1]),
            )

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
    model = with_example(model, train[0])
    damping = settings.damping
    entrants = [contender(name, model, damping) for name in dict.fromkeys(names)]
    count = jnp.shape(train[1])[0]
    batch_size = min(settings.batch_size, count)
    batches = batch_order(count, batch_size, settings.steps, settings.seed)
    course = Course(model, train, test, score)
    evaluate = jax.jit(course.evaluate)
    entries = []
    for entrant in entrants:
        seconds, run = course.runner(entrant, params, batches, evaluate)
        entry = Entry(entrant.name, (), seconds)
        for rate in entrant.rates(settings.rates):
            runs = (*entry.runs, run(rate, params, batches))
            entry = dataclasses.replace(entry, runs=runs)
            if on_run is not None:
                on_run(entry)
        entries.append(entry)
    return Race(tuple(entries), settings.steps, batch_size, damping)


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


def with_example(model: Model, inputs: Any) -> Model:
    """The model, with example inputs if it has none: layers are read before a step."""
    if model.example_inputs is not None or model.in_axes != 0:
        return model
    example = jax.tree.map(lambda leaf: leaf[:1], inputs)
    return dataclasses.replace(model, example_inputs=example)


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
