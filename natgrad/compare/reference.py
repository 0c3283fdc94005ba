"""The exact F at θ, with which approximations are measured one by one."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Iterable

import jax
import jax.numpy as jnp
import numpy as np

from natgrad.compare import invariance
from natgrad.compare.comparison import Comparison, Row
from natgrad.compare.dense_figures import DenseFigures
from natgrad.compare.instruments import ComparisonSetup
from natgrad.compare.matrix_free_figures import ProductRuler
from natgrad.compare.misspecification import information_matrix_test
from natgrad.compare.observation import (
    Batch,
    Observation,
    Solve,
    by_conjugate_gradients,
    own_solve,
)
from natgrad.compare.partition import parts
from natgrad.compare.path import walk
from natgrad.metrics.base import Metric
from natgrad.model import Model
from natgrad.tree import Layout, all_finite
from natgrad.typing import Array, Inputs, Key, Params


@dataclasses.dataclass(frozen=True, eq=False)
class Reference:
    """The exact F and its step at θ.

    Attributes:
        instruments: what is measured, and how.
        reference: the name of F.
        batch: where.
        gradient: g.
        loss: L(θ).
        exact: F, observed.
        ruler: F, ready for measuring.
        formed: as a matrix?
    """

    instruments: ComparisonSetup
    reference: str
    batch: Batch
    gradient: Params
    loss: float
    exact: Observation
    ruler: DenseFigures | ProductRuler
    formed: bool

    @classmethod
    def at(
        cls,
        instruments: ComparisonSetup,
        params: Params,
        inputs: Inputs,
        targets: Array,
        key: Key | None = None,
    ) -> Reference:
        """Observe the reference at θ on a batch.

        Raises:
            ValueError: for shapes that do not fit and numbers that are not finite.
        """
        model, effort, damping = (
            instruments.model,
            instruments.effort,
            instruments.damping,
        )
        params = jax.tree.map(jnp.asarray, params)
        layout = Layout.of(params)
        _check(model, params, inputs, targets)
        loss, gradient = _value_and_grad(model, params, inputs, targets)
        if not (math.isfinite(loss) and bool(all_finite(gradient))):
            raise ValueError(
                f"The loss at these parameters is {loss}, so there is no step to "
                "compare: it or its gradient is not finite. Are params too large?"
            )
        key = jax.random.PRNGKey(0) if key is None else key
        batch = Batch(params, inputs, jnp.asarray(targets), key)
        formed = layout.size <= effort.matrices
        reference = instruments.reference(formed)
        solve = own_solve if formed else by_conjugate_gradients(effort)
        observer = instruments.observer(reference, model, solve)
        exact = observer.observe(batch, gradient, damping, effort)
        whole, blocks = parts(model, params, inputs)
        if formed:
            ruler = DenseFigures(_dense(exact.metric), whole, blocks, damping)
        else:
            ruler = ProductRuler(exact.metric, whole, blocks, damping, key, effort)
        return cls(
            instruments, reference, batch, gradient, float(loss), exact, ruler, formed
        )

    def row(self, name: str) -> Row:
        """The figures of the curvature called `name`."""
        own, model = self.instruments, self.instruments.model
        solve = self._solve(name)
        seen = self.exact
        if name != self.reference:
            seen = own.observer(name, model, solve).observe(
                self.batch, self.gradient, own.damping, own.effort
            )
        step = _vector(seen.direction)
        measured = _dense(seen.metric) if self.formed else seen.metric
        whole, blocks, spectrum = self.ruler.measure(
            measured, step, _vector(self.exact.direction)
        )
        factors = (1.0, *own.effort.factors)
        path = walk(
            model,
            *self.batch[:3],
            self.gradient,
            own.damping,
            (seen.metric, seen.direction),
            self.exact.metric,
            self.loss,
            tuple(factor * own.step_size for factor in factors),
        )
        defect, error, step_defect = self._defects(name, seen, solve)
        rounding = math.sqrt(jnp.finfo(seen.metric.layout.dtype).eps)
        return Row(
            name=name,
            whole=whole,
            blocks=blocks,
            full=path.points[0],
            path=path.points[1:],
            spectrum=spectrum,
            invariance_defect=defect,
            invariance_error=error,
            step_invariance_defect=step_defect,
            residual=path.residual,
            fallback=seen.fallback,
            statistics_bytes=seen.statistics_bytes,
            cost=seen.cost,
            agrees=whole.relative_error <= rounding,
            uses_targets=seen.labels.needs_targets,
            uses_key=seen.labels.needs_key,
        )

    def comparison(
        self, rows: Iterable[Row], skipped: Iterable[tuple[str, str]] = ()
    ) -> Comparison:
        """The rows, with where they were taken."""
        params, inputs, targets, key = self.batch
        layout, own = Layout.of(params), self.instruments
        return Comparison(
            rows=tuple(rows),
            reference=self.reference,
            damping=own.damping,
            step_size=own.step_size,
            loss=self.loss,
            gradient_norm=float(np.linalg.norm(_vector(self.gradient))),
            reference_norm=self.ruler.norm,
            parameters=layout.size,
            examples=jnp.shape(targets)[0],
            dtype=str(layout.dtype),
            formed=self.formed,
            spectrum=self.ruler.spectrum,
            misspecification=information_matrix_test(
                own.model, params, inputs, targets, key, own.effort
            ),
            skipped=tuple(skipped),
        )

    def _solve(self, name: str) -> Solve:
        if self.formed or name != self.reference:
            return own_solve
        return by_conjugate_gradients(self.instruments.effort)

    def _defects(self, name: str, seen: Observation, solve: Solve):
        """How far A notices other coordinates: matrix, its error, step; the worst."""
        worst = (math.nan, 0.0, math.nan)
        for chart, model in self.instruments.charts(self.batch):
            found = self._defects_in(chart, model, name, seen, solve)
            worst = found if math.isnan(worst[0]) or found[0] > worst[0] else worst
        return worst

    def _defects_in(self, chart, model, name, seen, solve) -> tuple[float, ...]:
        own = self.instruments
        there = self.batch._replace(params=chart.from_original(self.batch.params))
        gradient = chart.transposed(self.gradient)
        observer = own.observer(name, model, solve)
        other = observer.observe(there, gradient, own.damping, own.effort)
        defect = invariance.defect(
            seen.metric, other.metric, chart, self.batch.key, own.effort
        )
        step = invariance.step_defect(seen.direction, other.direction, chart)
        return *defect, step


@functools.partial(jax.jit, static_argnames="model")
def _value_and_grad(model, params, inputs, targets) -> tuple[Array, Params]:
    return jax.value_and_grad(model.loss)(params, inputs, targets)


@jax.jit
def _matrix(metric: Metric) -> Array:
    return metric.dense()


def _dense(metric: Metric) -> np.ndarray:
    return np.asarray(_matrix(metric), np.float64)


def _vector(tree: Params) -> np.ndarray:
    return np.asarray(Layout.of(tree).ravel(tree), np.float64)


def _check(model: Model, params: Params, inputs: Inputs, targets: Array) -> None:
    # The targets are no argument: impossible labels raise where they are known.
    jax.eval_shape(lambda p, x: model.loss(p, x, targets), params, inputs)
    for what, tree in {"params": params, "inputs": inputs, "targets": targets}.items():
        if not bool(all_finite(jax.tree.map(jnp.asarray, tree))):
            raise ValueError(
                f"{what} must be finite, got NaN or infinity, so there is no step to "
                "compare."
            )
