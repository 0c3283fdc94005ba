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

Small models have matrices [P, P] and exact figures (`dense_figures`); large ones have
products F v and estimates with standard errors (`matrix_free_figures`). `Budget` says
what is small.
"""

from __future__ import annotations

from natgrad.compare.budget import Budget
from natgrad.compare.comparison import Comparison
from natgrad.compare.reference import Reference
from natgrad.compare.setup import Approximations, ComparisonSetup
from natgrad.model import Model
from natgrad.typing import Array, Inputs, Key, Params


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
