"""The exact F at θ, with which approximations are measured one by one."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Mapping

import jax
import jax.numpy as jnp

from natgrad.compare import invariance
from natgrad.compare.comparison import Comparison
from natgrad.compare.dense_figures import DenseFigures
from natgrad.compare.error_sources import error_sources
from natgrad.compare.figures import parts, vector
from natgrad.compare.matrix_free_figures import MatrixFreeFigures
from natgrad.compare.misspecification import information_matrix_test
from natgrad.compare.row import Row, walk
from natgrad.compare.setup import Batch, ComparisonSetup, Observation
from natgrad.layers import NotCapturedError
from natgrad.model import Model
from natgrad.model.errors import DoesNotFitError
from natgrad.tree import Layout, all_finite
from natgrad.typing import Array, Inputs, Key, Params


@dataclasses.dataclass(frozen=True, eq=False)
class Reference:
    """The exact F and its step at θ.

    Attributes:
        setup: what is measured, and how.
        name: of F.
        batch: where.
        gradient: g.
        loss: L(θ), nats an example.
        exact: F, observed.
        computer: F, ready for measuring.
        formed: as a matrix?
    """

    setup: ComparisonSetup
    name: str
    batch: Batch
    gradient: Params
    loss: float
    exact: Observation
    computer: DenseFigures | MatrixFreeFigures
    formed: bool

    @classmethod
    def at(
        cls,
        setup: ComparisonSetup,
        params: Params,
        inputs: Inputs,
        targets: Array,
        key: Key | None = None,
    ) -> Reference:
        """Observe the reference at θ on a batch.

        Args:
            setup: what is measured, and how.
            params: θ.
            inputs: a batch of inputs.
            targets: its labels.
            key: for what is random; None for PRNGKey(0).

        Raises:
            ValueError: for shapes that do not fit and numbers that are not finite.
        """
        params = jax.tree.map(jnp.asarray, params)
        _check(setup.model, params, inputs, targets)
        loss, gradient = _value_and_grad(setup.model, params, inputs, targets)
        if not (math.isfinite(loss) and bool(all_finite(gradient))):
            raise ValueError(
                f"The loss at these parameters is {loss}, so there is no step to "
                "compare: it or its gradient is not finite. Are params too large?"
            )
        key = jax.random.PRNGKey(0) if key is None else key
        batch = Batch(params, inputs, jnp.asarray(targets), key)
        formed = Layout.of(params).size <= setup.budget.matrices
        name = setup.reference(formed)
        exact = setup.observe(name, setup.model, batch, gradient)
        all_parts = parts(setup.model, params, inputs)
        if formed:
            computer = DenseFigures(exact.metric, all_parts, setup.damping)
        else:
            computer = MatrixFreeFigures(
                exact.metric, all_parts, setup.damping, key, setup.budget
            )
        return cls(setup, name, batch, gradient, float(loss), exact, computer, formed)

    def row(self, name: str) -> Row:
        """The figures of one of the approximations.

        Raises:
            DoesNotFitError: where it takes more memory than the budget allows.
            NotCapturedError: where it needs layers that the model does not show.
        """
        setup, observed = self.setup, self.exact
        if name != self.name:
            observed = setup.observe(name, setup.model, self.batch, self.gradient)
        whole, blocks, spectrum = self.computer.measure(
            observed.metric, vector(observed.direction), vector(self.exact.direction)
        )
        factors = (1.0, *setup.budget.factors)
        points, residual = walk(
            setup.model,
            self.batch,
            self.gradient,
            setup.damping,
            observed,
            self.exact.metric,
            tuple(factor * setup.step_size for factor in factors),
        )
        defect, error, step_defect = self._defects(name, observed)
        rounding = math.sqrt(jnp.finfo(observed.metric.layout.dtype).eps)
        return Row(
            name=name,
            whole=whole,
            blocks=blocks,
            full=points[0],
            path=points[1:],
            spectrum=spectrum,
            invariance_defect=defect,
            invariance_error=error,
            step_invariance_defect=step_defect,
            residual=residual,
            fallback=observed.fallback,
            statistics_bytes=observed.statistics_bytes,
            cost=observed.cost,
            agrees=whole.relative_error <= rounding,
            uses_targets=observed.labels.needs_targets,
            uses_key=observed.labels.needs_key,
        )

    def row_or_reason(self, name: str) -> Row | str:
        """The figures; why there are none, of an approximation that nobody named.

        Args:
            name: of an approximation.

        Raises:
            DoesNotFitError: and NotCapturedError, where it was asked for and cannot be
                measured.
        """
        try:
            return self.row(name)
        except (DoesNotFitError, NotCapturedError) as error:
            if self.setup.all_named:
                raise
            return str(error)

    def compare(self) -> Comparison:
        """The rows of all approximations; those that nobody named may be left out.

        Raises:
            DoesNotFitError: and NotCapturedError, where one that was asked for cannot
                be measured.
            ValueError: where none can.
        """
        return self.comparison({n: self.row_or_reason(n) for n in self.setup.names})

    def comparison(self, measured: Mapping[str, Row | str]) -> Comparison:
        """The rows, with where they were taken.

        Args:
            measured: name -> what `row_or_reason` gave.

        Raises:
            ValueError: for no row.
        """
        setup, layout = self.setup, Layout.of(self.batch.params)
        rows = tuple(row for row in measured.values() if isinstance(row, Row))
        skipped = tuple((n, r) for n, r in measured.items() if isinstance(r, str))
        if not rows:
            reasons = "; ".join(reason for _, reason in skipped)
            raise ValueError(f"None of the approximations can be measured: {reasons}")
        sources = ()
        if any(row.name == "kfac" for row in rows):
            where = (self.batch.params, self.batch.inputs)
            sources = error_sources(setup.model, *where, setup.budget)
        return Comparison(
            rows=rows,
            reference=self.name,
            damping=setup.damping,
            step_size=setup.step_size,
            loss=self.loss,
            gradient_norm=float(jnp.linalg.norm(vector(self.gradient))),
            reference_norm=self.computer.norm,
            parameters=layout.size,
            examples=jnp.shape(self.batch.targets)[0],
            dtype=str(layout.dtype),
            formed=self.formed,
            spectrum=self.computer.spectrum,
            misspecification=information_matrix_test(
                setup.model, *self.batch, setup.budget
            ),
            skipped=skipped,
            error_sources=sources,
        )

    def _defects(self, name: str, observed: Observation) -> tuple[float, float, float]:
        """How far A notices other coordinates: matrix, its error, step; the worst."""
        worst = (math.nan, 0.0, math.nan)
        for chart, model in self.setup.charts(self.batch):
            params = chart.from_original(self.batch.params)
            batch = self.batch._replace(params=params)
            gradient = chart.transposed(self.gradient)
            other = self.setup.observe(name, model, batch, gradient)
            defect, error = invariance.defect(
                observed.metric, other.metric, chart, self.batch.key, self.setup.budget
            )
            step = invariance.step_defect(observed.direction, other.direction, chart)
            if not defect <= worst[0]:
                worst = (defect, error, step)
        return worst


@functools.partial(jax.jit, static_argnames="model")
def _value_and_grad(model, params, inputs, targets) -> tuple[Array, Params]:
    return jax.value_and_grad(model.loss)(params, inputs, targets)


def _check(model: Model, params: Params, inputs: Inputs, targets: Array) -> None:
    # The targets are no argument: impossible labels raise where they are known.
    jax.eval_shape(lambda p, x: model.loss(p, x, targets), params, inputs)
    for what, tree in {"params": params, "inputs": inputs, "targets": targets}.items():
        if not bool(all_finite(jax.tree.map(jnp.asarray, tree))):
            raise ValueError(
                f"{what} must be finite, got NaN or infinity, so there is no step to "
                "compare."
            )
