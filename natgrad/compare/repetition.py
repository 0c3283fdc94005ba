"""The best run of each contender again, from other starts and in other orders.

A race tunes learning rates on one seed. How much of its result is luck, the quartiles
of some repetitions at the chosen rates say.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from typing import Any

import jax
import numpy as np

from natgrad.compare.contenders import contender
from natgrad.compare.runs import Race, Run
from natgrad.compare.training import Course, Data, Score, batch_order, with_example
from natgrad.model import Model
from natgrad.typing import Params


@dataclasses.dataclass(frozen=True)
class Repeated:
    """One contender's runs at its best learning rate.

    Attributes:
        name: of the contender.
        learning_rate: η.
        runs: one a seed.
    """

    name: str
    learning_rate: float
    runs: tuple[Run, ...]

    def quartiles(self, figure: str) -> np.ndarray:
        """Lower quartile, median and upper quartile at each step, [3, steps + 1].

        Args:
            figure: `train_loss`, `test_loss`, `score` or `seconds`.
        """
        values = np.array([getattr(run, figure) for run in self.runs])
        values = np.where(np.isfinite(values), values, np.inf)
        return np.quantile(values, (0.25, 0.5, 0.75), axis=0, method="nearest")

    def to_dict(self) -> dict[str, Any]:
        """Plain Python numbers, strings, lists and dicts."""
        return {**vars(self), "runs": [dataclasses.asdict(run) for run in self.runs]}


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
    seeds, model = tuple(seeds), with_example(model, train[0])
    if not seeds:
        raise ValueError("seeds is empty: there is nothing to repeat.")
    count = jax.tree.leaves(train[1])[0].shape[0]
    starts = [
        (initial(seed), batch_order(count, race.batch_size, race.steps, seed))
        for seed in seeds
    ]
    course = Course(model, train, test, score)
    evaluate = jax.jit(course.evaluate)
    repetitions = []
    for entry in race.entries:
        if entry.best is not None:
            rate = entry.best.learning_rate
            entrant = contender(entry.name, model, race.damping)
            _, run = course.runner(entrant, *starts[0], evaluate)
            runs = tuple(run(rate, params, batches) for params, batches in starts)
            repetitions.append(Repeated(entry.name, rate, runs))
    if not repetitions:
        raise ValueError("Every run of every contender failed: there is no best rate.")
    return tuple(repetitions)
