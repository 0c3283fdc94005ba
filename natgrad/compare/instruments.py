"""What stays the same wherever one measures: curvatures and their compiled steps."""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Callable, Mapping

import jax

from natgrad.compare import invariance
from natgrad.compare.effort import Budget
from natgrad.compare.observation import Batch, CompiledCurvature, Solve
from natgrad.curvature import by_name
from natgrad.curvature.base import Curvature
from natgrad.layers import Recombined
from natgrad.model import Model
from natgrad.tree import Layout

# What counts as exact where nobody says: as a matrix, and as an operator.
_EXACT = ("dense", "matrix_free")


class ComparisonSetup:
    """Approximations of a model's Fisher information, and how to measure them.

    Attributes:
        model: the statistical model.
        names: of the approximations.
        damping: λ.
        step_size: η.
        effort: how much it may cost.
    """

    def __init__(
        self,
        model: Model,
        approximations: Mapping[str, Callable[[Model], Curvature]],
        *,
        reference: str | None = None,
        damping: float = 1e-3,
        step_size: float = 1.0,
        effort: Budget | None = None,
    ):
        self.model = model
        self.names = tuple(approximations)
        self.damping = _number("damping", damping, lowest=0.0)
        self.step_size = _number("step_size", step_size, lowest=-math.inf)
        self.effort = Budget() if effort is None else effort
        self._approximations, self._reference = approximations, reference
        if reference is not None:
            self._factory(reference)
        self._observers: dict = {}
        self._charts: dict = {}

    def observer(self, name: str, model: Model, solve: Solve) -> CompiledCurvature:
        """The curvature called `name` of a model, with what was compiled for it."""
        if (name, model) not in self._observers:
            curvature = self._factory(name)(model)
            self._observers[name, model] = CompiledCurvature(name, curvature, solve)
        return self._observers[name, model]

    def charts(self, batch: Batch) -> list[tuple[Recombined, Model]]:
        """Random coordinates and the model in them; the same ones at any θ."""
        layout = Layout.of(batch.params)
        if layout not in self._charts:
            draws = jax.random.split(jax.random.PRNGKey(0), self.effort.charts)
            of = lambda key: invariance.recombination(
                self.model, batch.params, batch.inputs, key
            )
            found = [chart for chart in map(of, draws) if chart is not None]
            self._charts[layout] = [
                (chart, dataclasses.replace(self.model, apply=chart)) for chart in found
            ]
        return self._charts[layout]

    def reference(self, formed: bool) -> str:
        """The name of what counts as exact."""
        return self._reference or _EXACT[0 if formed else 1]

    def _factory(self, name: str) -> Callable[[Model], Curvature]:
        return self._approximations.get(name) or by_name(name)


def _number(name: str, value: float, lowest: float) -> float:
    value = float(value)
    if not (math.isfinite(value) and value >= lowest):
        bound = "" if lowest == -math.inf else f" and at least {lowest:g}"
        raise ValueError(f"{name} must be finite{bound}, got {value}.")
    return value
