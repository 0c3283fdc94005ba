"""Approximations of the Fisher information measured against the exact one.

At parameters θ, with the loss's gradient g, the exact F and an approximation A,

    d_A = η (A + λI)⁻¹ g       the damped step, taken as θ − d_A

is compared with d_F, and A with F: in all, and block by block (`figures`); what F and A
predict along the step with what happens (`row`); A with itself in other coordinates of
the network (`invariance`); and the data's labels with the model's (`misspecification`).
Predictions are made twice: with F, which asks how far the quadratic model holds along
that step, and with A itself, which is what an optimizer that has only A believes. Time
is that of estimating A and solving for the step, the gradient given.

Small models have matrices [P, P] and exact figures; large ones, as `Budget` says, have
products F v and estimates with standard errors (`matrix_free_figures`).

`along` does so at chosen steps of a run: the parameters are those that an optimizer
passes through, the examples all that are given; the run itself may take smaller batches
of them. What was compiled for the first comparison serves the later ones.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterable, Iterator
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from natgrad.compare.comparison import Comparison
from natgrad.compare.figures import Budget
from natgrad.compare.reference import Reference
from natgrad.compare.setup import Approximations, ComparisonSetup
from natgrad.compare.training import batch_order, optimizer_step
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
        """Those of each comparison, with the step and the loss."""
        return [
            {"step": step, "loss": comparison.loss, **record}
            for step, comparison in zip(self.steps, self.comparisons, strict=True)
            for record in comparison.records()
        ]

    to_pandas = Comparison.to_pandas  # of these records

    def to_dict(self) -> dict[str, Any]:
        """Plain Python numbers, strings, lists and dicts."""
        each = [comparison.to_dict() for comparison in self.comparisons]
        return {"steps": list(self.steps), "comparisons": each}


def compare(
    model: Model,
    params: Params,
    inputs: Inputs,
    targets: Array,
    *,
    approximations: Approximations = None,
    damping: float = 1e-3,
    key: Key | None = None,
    budget: Budget | None = None,
) -> Comparison:
    """Measure approximations of the Fisher information against the exact one.

    Against another reference, or with another step size: make a `ComparisonSetup` and
    ask `Reference.at(setup, params, inputs, targets, key).compare()`.

    Args:
        model: the statistical model.
        params: θ, where to measure; initial parameters say little.
        inputs: a batch of inputs.
        targets: its labels.
        approximations: names in `natgrad.CURVATURES`; or name -> curvature, or name ->
            (model -> curvature); None for all of the registry that fit. A curvature is
            measured with `model` in place of its own.
        damping: λ >= 0.
        key: for sampled labels, whose figures are those of this one draw, and for
            everything else that is random.
        budget: how much the comparison may cost; None for `Budget()`.

    Returns:
        The figures. `print` shows them, `rich.print` more prettily; `verdict()` says in
        words what they mean; `natgrad.compare.plots` draws them.

    Raises:
        ValueError: for unknown names, impossible arguments, arrays that are not finite,
            shapes that do not fit, and approximations that were asked for and do not
            fit in memory.
    """
    setup = ComparisonSetup(model, approximations, damping=damping, budget=budget)
    return Reference.at(setup, params, inputs, targets, key).compare()


def along(
    model: Model | ComparisonSetup,
    params: Params,
    inputs: Inputs,
    targets: Array,
    *,
    optimizer: optax.GradientTransformation,
    steps: Iterable[int] = (0, 10, 30, 100),
    batch_size: int | None = None,
    key: Key | None = None,
) -> Trace:
    """Train, and compare at chosen steps.

    Args:
        model: the statistical model, all of whose approximations are compared as by
            `natgrad.compare.compare`; or a `ComparisonSetup` of it, which says what is
            compared and how.
        params: where the run starts.
        inputs: all examples' inputs.
        targets: their labels.
        optimizer: what trains: optax's or natgrad's.
        steps: after how many steps to compare; 0 is the start.
        batch_size: examples a step, reshuffled at each pass; None for all of them.
        key: as for `natgrad.compare.compare`, and of the order of the examples.

    Returns:
        The comparisons; `natgrad.compare.plots.along` draws them.

    Raises:
        ValueError: as for `natgrad.compare.compare`; for no steps or negative ones; and
            when the run leaves what is finite, naming the step.
    """
    how = {"optimizer": optimizer, "steps": steps, "batch_size": batch_size, "key": key}
    comparisons = comparisons_along(model, params, inputs, targets, **how)
    return Trace(*zip(*comparisons, strict=True))


def comparisons_along(
    model: Model | ComparisonSetup,
    params: Params,
    inputs: Inputs,
    targets: Array,
    *,
    optimizer: optax.GradientTransformation,
    steps: Iterable[int] = (0, 10, 30, 100),
    batch_size: int | None = None,
    key: Key | None = None,
) -> Iterator[tuple[int, Comparison]]:
    """`along` one comparison at a time: (step, comparison) as each is finished."""
    setup = model if isinstance(model, ComparisonSetup) else ComparisonSetup(model)
    steps, count = sorted(set(steps)), jnp.shape(targets)[0]
    if not steps or steps[0] < 0:
        raise ValueError(f"steps must be numbers of steps >= 0, got {steps}.")
    if batch_size is not None and not 1 <= batch_size <= count:
        raise ValueError(
            f"batch_size must be from 1 to the {count} examples, got {batch_size}."
        )
    key = jax.random.PRNGKey(0) if key is None else key
    seed = np.asarray(jax.random.key_data(key)).ravel().tolist()
    order = batch_order(count, batch_size or count, max(1, steps[-1]), seed)
    optimizer = optax.with_extra_args_support(optimizer)
    take_step = jax.jit(functools.partial(optimizer_step, setup.model, optimizer))
    data = jax.tree.map(jnp.asarray, (inputs, targets))
    params = jax.tree.map(jnp.asarray, params)
    state = jax.jit(optimizer.init)(params)
    for step in range(steps[-1] + 1):
        if step in steps:
            try:
                reference = Reference.at(setup, params, inputs, targets, key)
            except ValueError as error:
                raise ValueError(f"After {step} steps: {error}") from error
            yield step, reference.compare()
        if step < steps[-1]:
            batch = jax.tree.map(lambda leaf, rows=order[step]: leaf[rows], data)
            params, state = take_step(params, state, batch)
