"""Approximations of the Fisher information measured against the exact one.

At parameters θ, with the loss's gradient g, the exact F and an approximation A,

    d_A = η (A + λI)⁻¹ g       the damped step, taken as θ − d_A

is compared with d_F, and A with F: in all, and block by block (`figures`); what F and A
predict along the step with what happens (`path`); A with itself in other coordinates
of the network (`invariance`); and the data's labels with the model's
(`misspecification`). Predictions are made twice: with F, which asks how far the
quadratic model holds along that step, and with A itself, which is what an optimizer
that has only A believes. Time is that of estimating A and solving for the step, the
gradient given.

Small models have matrices [P, P] and exact figures (`formed`); large ones have products
F v and estimates with standard errors (`products`). `Budget` says what is small.

This module names no approximation: it takes names from `natgrad.CURVATURES`, or
curvatures that it is given.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable, Iterable, Mapping

from natgrad.compare.comparison import Comparison
from natgrad.compare.effort import Budget
from natgrad.compare.instruments import ComparisonSetup
from natgrad.compare.reference import Reference
from natgrad.curvature import CURVATURES, by_name
from natgrad.curvature.base import Curvature
from natgrad.layers import NotCapturedError
from natgrad.model import Model
from natgrad.model.errors import DoesNotFitError
from natgrad.typing import Array, Inputs, Key, Params

Approximations = (
    Iterable[str] | Mapping[str, Curvature | Callable[[Model], Curvature]] | None
)


def compare(
    model: Model,
    params: Params,
    inputs: Inputs,
    targets: Array,
    *,
    approximations: Approximations = None,
    reference: str | None = None,
    damping: float = 1e-3,
    step_size: float = 1.0,
    key: Key | None = None,
    effort: Budget | None = None,
) -> Comparison:
    """Measure approximations of the Fisher information against a reference.

    Args:
        model: the statistical model.
        params: θ, where to measure; initial parameters say little.
        inputs: a batch of inputs.
        targets: its labels.
        approximations: names in `natgrad.CURVATURES`; or name -> curvature, or name ->
            (model -> curvature); None for all of the registry that fit. A curvature is
            measured with `model` in place of its own.
        reference: the name of what counts as exact, in the registry or among the
            approximations; None for the exact Fisher as a matrix, or as an operator
            where a matrix would be too large.
        damping: λ >= 0.
        step_size: η, the multiple of the damped natural step that is tried.
        key: for sampled labels, whose figures are those of this one draw, and for
            everything else that is random.
        effort: how much the comparison may cost; None for `Budget()`.

    Returns:
        The figures. `print` shows them, `rich.print` more prettily;
        `natgrad.compare.plots` draws them.

    Raises:
        ValueError: for unknown names, impossible arguments, arrays that are not finite,
            shapes that do not fit, and approximations that were asked for and do not
            fit in memory.
    """
    instruments = ComparisonSetup(
        model,
        factories(approximations),
        reference=reference,
        damping=damping,
        step_size=step_size,
        effort=effort,
    )
    yardstick = Reference.at(instruments, params, inputs, targets, key)
    return measured(yardstick, all_named=approximations is not None)


def measured(yardstick: Reference, *, all_named: bool) -> Comparison:
    """The rows of all approximations; those that nobody named may be left out."""
    rows, skipped = [], []
    for name in yardstick.instruments.names:
        try:
            rows.append(yardstick.row(name))
        except (DoesNotFitError, NotCapturedError) as error:
            if all_named:
                raise
            skipped.append((name, str(error)))
    if not rows:
        reasons = "; ".join(reason for _, reason in skipped)
        raise ValueError(f"None of the approximations can be measured: {reasons}")
    return yardstick.comparison(rows, skipped)


def factories(
    approximations: Approximations,
) -> dict[str, Callable[[Model], Curvature]]:
    """name -> (model -> Curvature), each name known; None means the whole registry.

    Raises:
        ValueError: for unknown names, or none.
    """
    if isinstance(approximations, str):
        approximations = [approximations]
    if isinstance(approximations, Mapping):
        found = dict(approximations)
        for name, given in found.items():
            if isinstance(given, Curvature):
                found[name] = functools.partial(_with_model, given)
            elif not callable(given):
                raise ValueError(
                    f"approximations[{name!r}] must be a curvature or a function model "
                    "-> curvature, such as natgrad.curvature.KFAC(model) or "
                    f"natgrad.curvature.KFAC, got {given!r}."
                )
    else:
        names = CURVATURES if approximations is None else approximations
        found = {name: by_name(name) for name in names}
    if not found:
        raise ValueError("approximations is empty: there is nothing to compare.")
    return found


def _with_model(curvature: Curvature, model: Model) -> Curvature:
    return dataclasses.replace(curvature, model=model)


def approximation_names(names: Iterable[str] | None) -> tuple[str, ...]:
    """The names, each once and known; None means the whole registry."""
    return tuple(factories(names))
