"""What stays the same wherever one measures: curvatures and their compiled steps."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Callable, Iterable, Mapping

import jax

from natgrad.compare import invariance
from natgrad.compare.budget import Budget
from natgrad.compare.observation import Batch, CompiledCurvature, Solve
from natgrad.curvature import CURVATURES, by_name
from natgrad.curvature.base import Curvature
from natgrad.layers import Recombined
from natgrad.model import Model
from natgrad.tree import Layout

Factory = Callable[[Model], Curvature]
Approximations = str | Iterable[str] | Mapping[str, Curvature | Factory] | None

# What counts as exact where nobody says: as a matrix, and as an operator.
_EXACT = ("dense", "matrix_free")


class ComparisonSetup:
    """Approximations of a model's Fisher information, and how to measure them.

    What is compiled for a comparison serves later ones of the same setup.

    Attributes:
        model: the statistical model.
        names: of the approximations.
        all_named: were they asked for? Otherwise those that do not fit are left out.
        damping: λ.
        step_size: η.
        budget: how much it may cost.
    """

    def __init__(
        self,
        model: Model,
        approximations: Approximations = None,
        *,
        reference: str | None = None,
        damping: float = 1e-3,
        step_size: float = 1.0,
        budget: Budget | None = None,
    ):
        """Check the arguments; nothing is computed.

        Args:
            model: the statistical model.
            approximations: names in `natgrad.CURVATURES`; or name -> curvature, or name
                -> (model -> curvature); None for all of the registry that fit. A
                curvature is measured with `model` in place of its own.
            reference: the name of what counts as exact, in the registry or among the
                approximations; None for the exact Fisher as a matrix, or as an operator
                where a matrix would be too large.
            damping: λ >= 0.
            step_size: η, the multiple of the damped natural step that is tried.
            budget: how much a comparison may cost; None for `Budget()`.

        Raises:
            ValueError: for unknown names and impossible numbers.
        """
        self.model = model
        self.all_named = approximations is not None
        self._factories, self._reference = factories(approximations), reference
        self.names = tuple(self._factories)
        self.damping = _finite("damping", damping, lowest=0.0)
        self.step_size = _finite("step_size", step_size, lowest=-math.inf)
        self.budget = Budget() if budget is None else budget
        if reference is not None:
            self._factory(reference)
        self._compiled: dict = {}
        self._charts: dict = {}

    def compiled(self, name: str, model: Model, solve: Solve) -> CompiledCurvature:
        """The curvature called `name` of a model, with what was compiled for it."""
        if (name, model) not in self._compiled:
            curvature = self._factory(name)(model)
            self._compiled[name, model] = CompiledCurvature(name, curvature, solve)
        return self._compiled[name, model]

    def charts(self, batch: Batch) -> list[tuple[Recombined, Model]]:
        """Random coordinates and the model in them; the same ones at any θ."""
        layout = Layout.of(batch.params)
        if layout not in self._charts:
            draws = jax.random.split(jax.random.PRNGKey(0), self.budget.charts)
            charts = [
                invariance.recombination(self.model, batch.params, batch.inputs, key)
                for key in draws
            ]
            self._charts[layout] = [
                (chart, dataclasses.replace(self.model, apply=chart))
                for chart in charts
                if chart is not None
            ]
        return self._charts[layout]

    def reference(self, formed: bool) -> str:
        """The name of what counts as exact."""
        return self._reference or _EXACT[0 if formed else 1]

    def _factory(self, name: str) -> Factory:
        return self._factories.get(name) or by_name(name)


def factories(approximations: Approximations) -> dict[str, Factory]:
    """name -> (model -> Curvature), each name known; None means the whole registry.

    Raises:
        ValueError: for unknown names, or none.
    """
    if approximations is None:
        approximations = CURVATURES
    elif isinstance(approximations, str):
        approximations = [approximations]
    if not isinstance(approximations, Mapping):
        approximations = {name: by_name(name) for name in approximations}
    if not approximations:
        raise ValueError("approximations is empty: there is nothing to compare.")
    return {name: _factory(name, value) for name, value in approximations.items()}


def _factory(name: str, curvature: Curvature | Factory) -> Factory:
    if isinstance(curvature, Curvature):
        return functools.partial(_with_model, curvature)
    if callable(curvature):
        return curvature
    raise ValueError(
        f"approximations[{name!r}] must be a curvature or a function model -> "
        "curvature, such as natgrad.curvature.KFAC(model) or natgrad.curvature.KFAC, "
        f"got {curvature!r}."
    )


def _with_model(curvature: Curvature, model: Model) -> Curvature:
    return dataclasses.replace(curvature, model=model)


def _finite(name: str, value: float, lowest: float) -> float:
    value = float(value)
    if not (math.isfinite(value) and value >= lowest):
        bound = "" if lowest == -math.inf else f" and at least {lowest:g}"
        raise ValueError(f"{name} must be finite{bound}, got {value}.")
    return value
