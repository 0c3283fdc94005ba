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
from collections.abc import Callable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from natgrad.compare import timing
from natgrad.compare.contenders import DEFAULT, Contender, contender
from natgrad.compare.standings import Entry, Race, Run
from natgrad.model import Model
from natgrad.tree import Layout
from natgrad.typing import Array, Params

# Steps between two looks at the clock, at most.
_SEGMENT = 10

# (z, targets) -> a number that is the better the higher.
Score = Callable[[Array, Array], Array]


@dataclasses.dataclass(frozen=True)
class Course:
    """What all contenders run on.

    Attributes:
        model: the statistical model.
        params: where all start.
        train: (inputs, targets).
        test: (inputs, targets).
        score: of outputs against targets.
        batches: indices of the examples of each step, [steps, batch_size].
        damping: λ of the curvatures.
    """

    model: Model
    params: Params
    train: tuple[Any, Array]
    test: tuple[Any, Array]
    score: Score
    batches: Array
    damping: float

    def runs(
        self, entrant: Contender, count: int, evaluate: Callable
    ) -> tuple[float, Iterator[Run]]:
        """The seconds of compiling, and then the run of each of `count` rates.

        Args:
            entrant: who runs.
            count: learning rates in the grid.
            evaluate: `self.evaluate`, compiled once for all.
        """
        compile_seconds, run = self.runner(entrant, evaluate)
        of = lambda rate: run(rate, self.params, self.batches)
        return compile_seconds, map(of, entrant.rates(count))

    def runner(
        self, entrant: Contender, evaluate: Callable
    ) -> tuple[float, Callable[[float, Params, Array], Run]]:
        """The seconds of compiling, and a function from rate, start and batches to Run.

        Args:
            entrant: who runs.
            evaluate: `self.evaluate`, compiled once for all.
        """
        dtype = Layout.of(self.params).dtype
        steps, batch_size = self.batches.shape
        segment = max(d for d in range(1, _SEGMENT + 1) if steps % d == 0)
        start = jax.jit(lambda params: (params, entrant.make(1.0).init(params)))
        advance, compile_seconds = timing.compiled(
            lambda *args: self._advance(entrant, *args),
            jnp.asarray(1.0, dtype),
            start(self.params),
            self.batches[:segment],
            self.train,
        )

        def run(rate, params, batches):
            stacked = jax.tree.map(lambda leaf: leaf[None], params)
            first = evaluate(stacked, self.train, self.test)
            carry, seconds, figures = start(params), [0.0], [first]
            for indices in batches.reshape(-1, segment, batch_size):
                (carry, iterates), elapsed = timing.timed(
                    advance, jnp.asarray(rate, dtype), carry, indices, self.train
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
            inputs, targets = jax.tree.map(lambda leaf: leaf[rows], train)
            gradient = jax.grad(self.model.loss)(params, inputs, targets)
            updates, state = optimizer.update(
                gradient, state, params, inputs=inputs, targets=targets
            )
            params = optax.apply_updates(params, updates)
            return (params, state), params

        return jax.lax.scan(step, carry, indices)

    def evaluate(
        self, iterates: Params, train: tuple, test: tuple
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
    train: tuple[Any, Array],
    test: tuple[Any, Array],
    *,
    score: Score,
    names: tuple[str, ...] = DEFAULT,
    steps: int = 30,
    batch_size: int = 256,
    rates: int = 6,
    damping: float = 1e-3,
    seed: int = 0,
    on_run: Callable[[str], None] | None = None,
    on_entry: Callable[[Entry], None] | None = None,
) -> Race:
    """Train with each optimizer and each learning rate of its grid.

    Args:
        model: the statistical model.
        params: where all start.
        train: (inputs, targets), arrays or trees of arrays with a leading axis.
        test: (inputs, targets).
        score: (outputs, targets) -> a number, the higher the better.
        names: contenders: names in `natgrad.CURVATURES`, "sgd", "adam".
        steps: of each run.
        batch_size: examples a step; at most all of them.
        rates: learning rates in each grid.
        damping: λ of the curvatures.
        seed: of the order of the examples.
        on_run: called with the contender's name after each run.
        on_entry: called with each finished entry.

    Raises:
        ValueError: for unknown names and impossible arguments.
    """
    for name, value in (("steps", steps), ("batch_size", batch_size), ("rates", rates)):
        if value < 1:
            raise ValueError(f"{name} must be at least 1, got {value}.")
    model = with_example(model, train[0])
    entrants = [contender(name, model, damping) for name in dict.fromkeys(names)]
    count = jnp.shape(train[1])[0]
    batch_size = min(batch_size, count)
    course = Course(
        model=model,
        params=params,
        train=train,
        test=test,
        score=score,
        batches=batch_order(count, batch_size, steps, seed),
        damping=damping,
    )
    evaluate = jax.jit(course.evaluate)
    entries = []
    for entrant in entrants:
        runs = []
        compile_seconds, each = course.runs(entrant, rates, evaluate)
        for run in each:
            runs.append(run)
            if on_run is not None:
                on_run(entrant.name)
        entries.append(Entry(entrant.name, tuple(runs), compile_seconds))
        if on_entry is not None:
            on_entry(entries[-1])
    return Race(tuple(entries), steps, batch_size, damping)


def with_example(model: Model, inputs: Any) -> Model:
    """The model, with example inputs if it has none: layers are read before a step."""
    if model.example_inputs is not None or model.in_axes != 0:
        return model
    example = jax.tree.map(lambda leaf: leaf[:1], inputs)
    return dataclasses.replace(model, example_inputs=example)


def batch_order(count: int, batch_size: int, steps: int, seed: Any) -> Array:
    """Row indices [steps, batch_size]: reshuffled passes, without replacement."""
    draw = np.random.default_rng(seed)
    each = count // batch_size
    passes = [
        draw.permutation(count)[: each * batch_size].reshape(each, batch_size)
        for _ in range(-(-steps // each))
    ]
    return jnp.asarray(np.concatenate(passes)[:steps])
