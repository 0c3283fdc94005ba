"""A comparison at chosen steps of a run: where does each approximation break down?

The figures are those of `natgrad.compare.fidelity`, at the parameters that an optimizer
passes through, over all examples that are given; the run itself may take smaller
batches of them. What was compiled for the first comparison serves the later ones.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable, Iterable
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from natgrad.compare.comparison import Comparison
from natgrad.compare.effort import Budget
from natgrad.compare.extras import require
from natgrad.compare.fidelity import Approximations, factories, measured
from natgrad.compare.instruments import ComparisonSetup
from natgrad.compare.reference import Reference
from natgrad.compare.training import batch_order
from natgrad.model import Model
from natgrad.typing import Array, Inputs, Key, Params


@dataclasses.dataclass(frozen=True)
class Trace:
    """Comparisons along a run.

    Attributes:
        steps: after how many steps each was taken.
        comparisons: one for each of `steps`.
    """

    steps: tuple[int, ...]
    comparisons: tuple[Comparison, ...]

    @property
    def names(self) -> tuple[str, ...]:
        """The approximations measured at every one of the steps."""
        each = [[row.name for row in c.rows] for c in self.comparisons]
        return tuple(name for name in each[0] if all(name in names for names in each))

    def series(self, name: str, figure: str) -> np.ndarray:
        """A figure of one approximation at each of `steps`.

        Args:
            name: of the approximation.
            figure: an attribute of `natgrad.compare.Row`.
        """
        return np.array([getattr(c[name], figure) for c in self.comparisons], float)

    @property
    def losses(self) -> np.ndarray:
        """The loss at each of `steps`, nats an example."""
        return np.array([comparison.loss for comparison in self.comparisons])

    def records(self) -> list[dict[str, Any]]:
        """Those of each comparison, with the step."""
        return [
            {"step": step, "loss": comparison.loss, **record}
            for step, comparison in zip(self.steps, self.comparisons, strict=True)
            for record in comparison.records()
        ]

    def to_pandas(self) -> Any:
        """`records` as a pandas DataFrame.

        Raises:
            MissingExtra: where pandas is not installed.
        """
        return require("pandas").DataFrame.from_records(self.records())

    def to_dict(self) -> dict[str, Any]:
        """Plain Python numbers, strings, lists and dicts."""
        each = [comparison.to_dict() for comparison in self.comparisons]
        return {"steps": list(self.steps), "comparisons": each}


def along(
    model: Model,
    params: Params,
    inputs: Inputs,
    targets: Array,
    *,
    optimizer: optax.GradientTransformation,
    steps: Iterable[int] = (0, 10, 30, 100),
    batch_size: int | None = None,
    approximations: Approximations = None,
    reference: str | None = None,
    damping: float = 1e-3,
    step_size: float = 1.0,
    key: Key | None = None,
    effort: Budget | None = None,
    on_comparison: Callable[[int, Comparison], None] | None = None,
) -> Trace:
    """Train, and compare at chosen steps.

    Args:
        model: the statistical model.
        params: where the run starts.
        inputs: all examples' inputs.
        targets: their labels.
        optimizer: what trains: optax's or natgrad's.
        steps: after how many steps to compare; 0 is the start.
        batch_size: examples a step, reshuffled at each pass; None for all of them.
        approximations: as for `natgrad.compare`.
        reference: as for `natgrad.compare`.
        damping: λ of the comparisons.
        step_size: η of the comparisons.
        key: as for `natgrad.compare`, and of the order of the examples.
        effort: how much each comparison may cost.
        on_comparison: called with each step and its comparison.

    Raises:
        ValueError: as for `natgrad.compare`; for no steps or negative ones; and when
            the run leaves what is finite, naming the step.
    """
    wanted = sorted(set(steps))
    if not wanted or wanted[0] < 0:
        raise ValueError(f"steps must be numbers of steps >= 0, got {wanted}.")
    count = jnp.shape(targets)[0]
    if batch_size is not None and not 1 <= batch_size <= count:
        raise ValueError(
            f"batch_size must be from 1 to the {count} examples, got {batch_size}."
        )
    instruments = ComparisonSetup(
        model,
        factories(approximations),
        reference=reference,
        damping=damping,
        step_size=step_size,
        effort=effort,
    )
    key = jax.random.PRNGKey(0) if key is None else key
    found = []
    for step, at in _iterates(
        model, params, (inputs, targets), optimizer, wanted, batch_size, key
    ):
        try:
            yardstick = Reference.at(instruments, at, inputs, targets, key)
        except ValueError as error:
            raise ValueError(f"After {step} steps: {error}") from error
        found.append(measured(yardstick, all_named=approximations is not None))
        if on_comparison is not None:
            on_comparison(step, found[-1])
    return Trace(tuple(wanted), tuple(found))


def _iterates(model, params, data, optimizer, wanted, batch_size, key):
    """(step, parameters) for each of the steps wanted."""
    optimizer = optax.with_extra_args_support(optimizer)
    count = jnp.shape(data[1])[0]
    size = count if batch_size is None else batch_size
    seed = np.asarray(jax.random.key_data(key)).ravel().tolist()
    order = batch_order(count, size, max(1, wanted[-1]), seed)

    def step(params, state, rows, data):
        inputs, targets = jax.tree.map(lambda leaf: leaf[rows], data)
        gradient = jax.grad(model.loss)(params, inputs, targets)
        updates, state = optimizer.update(
            gradient, state, params, inputs=inputs, targets=targets
        )
        return optax.apply_updates(params, updates), state

    advance = jax.jit(step)
    data = jax.tree.map(jnp.asarray, data)
    params = jax.tree.map(jnp.asarray, params)
    state = jax.jit(optimizer.init)(params)
    for index in range(wanted[-1] + 1):
        if index in wanted:
            yield index, params
        if index < wanted[-1]:
            params, state = advance(params, state, order[index], data)
