"""`natgrad.doctor`: a look at model and batch before training, and which optimizer.

    check_batch -> captured_blocks -> gradient_noise -> curvature_figures -> advise

Nothing is trained and nothing printed; the same arguments give the same figures.
"""

from __future__ import annotations

import dataclasses
import math

import jax
import jax.numpy as jnp

from natgrad.compare import tables
from natgrad.compare.advice import Advice, advise, count, kinds, times, two_digits
from natgrad.compare.batch_check import BatchFigures, check_batch
from natgrad.compare.measurements import (
    EXAMPLES,
    CurvatureFigures,
    GradientNoise,
    curvature_figures,
    gradient_noise,
)
from natgrad.compare.step_costs import (
    Costs,
    LayersSeen,
    captured_blocks,
    layers_seen,
    step_costs,
)
from natgrad.compare.tables import figure
from natgrad.curvature.sub_batch import subsample
from natgrad.model import Model, batch
from natgrad.typing import Array, Inputs, Key, Params


@dataclasses.dataclass(frozen=True)
class Diagnosis:
    """What was found, and what to do. `print` shows five lines.

    Attributes:
        advice: which optimizer, its arguments and the reason.
        batch: what is in the batch, and what to mend in it.
        layers: which parameters K-FAC has as layers.
        noise: of the gradient.
        curvature: of the loss.
        costs: of a step of the candidates.
    """

    advice: Advice
    batch: BatchFigures
    layers: LayersSeen
    noise: GradientNoise
    curvature: CurvatureFigures
    costs: Costs

    def __str__(self) -> str:
        use = f"Use {self.advice.code}: {self.advice.reason}."
        found = (self._batch(), self._layers(), self._noise(), self._curvature())
        return "\n".join((use, *found))

    def _batch(self) -> str:
        found = self.batch
        size = count(found.examples, "example")
        if found.labels > 1:
            size += f" of {found.labels:,} labels"
        mend = "; ".join(found.to_mend) or "nothing to mend"
        counted = "" if found.counted == 1 else f", {found.counted:.0%} of labels count"
        return (
            f"Batch: {size}{counted}, loss {figure(found.loss)} nats, inputs of size "
            f"{figure(found.input_scale)}; {mend}."
        )

    def _layers(self) -> str:
        found = self.layers
        if found.obstacle:
            reason = " ".join(found.obstacle.split()).split(". ")[0].rstrip(".")
            return f"Layers: K-FAC cannot take this model. {reason}."
        rest = f"they hold all {found.parameters:,} parameters"
        if found.outside:
            rest = f"{found.outside:,} of {found.parameters:,} parameters are outside"
        return (
            f"Layers: K-FAC sees {kinds(found) or 'none'}; {rest}; its factors take "
            f"{tables.size(found.factor_bytes)}, the largest {found.largest:,} a side."
        )

    def _noise(self) -> str:
        scale, size = self.noise.scale, self.batch.examples
        if not math.isfinite(scale):
            return (
                f"Noise: the mean gradient of {size:,} examples is all noise: take a "
                "larger batch or average, and expect little of any single step."
            )
        more = "signal" if size > scale else "noise"
        return (
            f"Noise: the noise scale is {figure(scale)} examples, so a batch of "
            f"{size:,} is mostly {more} here; the scale grows as the loss falls."
        )

    def _curvature(self) -> str:
        found, costs, layers = self.curvature, self.costs, self.layers
        spaces = {"Dense": "as a matrix", "Gram": "in sample space"}
        exact = spaces.get(costs.space, "by conjugate gradients")
        cost = (
            f"An exact step {exact} costs {times(costs.exact / costs.gradient)} a "
            f"gradient's arithmetic and {tables.size(costs.exact_bytes)}."
        )
        if not math.isfinite(found.trace):
            return f"Curvature: not measured, apply has no forward derivative. {cost}"
        return (
            f"Curvature: F has trace {figure(found.trace)} "
            f"({figure(found.trace / layers.parameters)} a parameter), largest "
            f"eigenvalue {figure(found.largest)}; at damping {found.damping:g} about "
            f"{two_digits(found.effective_dimension)} directions count. {cost}"
        )


def doctor(
    model: Model,
    params: Params,
    inputs: Inputs,
    targets: Array,
    *,
    damping: float = 1e-3,
    key: Key | None = None,
) -> Diagnosis:
    """Look at a model and a batch, and say which optimizer to use.

        print(ng.doctor(model, params, x, y))

    The batch should be one as it is trained on: its size decides. Gradients and
    curvature are measured on 1,024 of its examples at most. Figures are those of these
    parameters: noise grows while the loss falls.

    Args:
        model: the statistical model.
        params: θ, initial parameters or later ones.
        inputs: a batch of inputs.
        targets: its labels, [N, ...].
        damping: λ >= 0, at which the effective dimension is taken.
        key: of what is random; None for PRNGKey(0).

    Returns:
        Figures and advice; as text, five lines.

    Raises:
        ValueError: for shapes that do not fit, impossible labels, negative weights,
            numbers that are not finite, and an impossible damping.
    """
    if not (isinstance(damping, (int, float)) and 0 <= damping < math.inf):
        raise ValueError(f"damping must be a finite number >= 0, got {damping!r}.")
    params = jax.tree.map(jnp.asarray, params)
    key = jax.random.PRNGKey(0) if key is None else key
    found = check_batch(model, params, inputs, targets)
    blocks, obstacle = captured_blocks(model, params, inputs)
    seen = layers_seen(params, blocks, obstacle)
    costs = step_costs(model, params, inputs, blocks, obstacle)
    every = -(-found.examples // EXAMPLES)
    if batch.input_count(inputs, model.in_axes) is not None:
        inputs, targets = subsample(inputs, targets, model.in_axes, every)
    noise = gradient_noise(model, params, inputs, targets)
    curvature = curvature_figures(model, params, inputs, damping, key)
    advice = advise(found, seen, curvature, costs)
    return Diagnosis(advice, found, seen, noise, curvature, costs)
