"""The exact F at θ, with which approximations are measured one by one."""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Mapping

import jax
import jax.numpy as jnp
import numpy as np

from natgrad.compare import invariance
from natgrad.compare.comparison import Comparison
from natgrad.compare.error_sources import error_sources
from natgrad.compare.figures import DenseFigures, Part, captured, vector
from natgrad.compare.matrix_free_figures import MatrixFreeFigures
from natgrad.compare.misspecification import information_matrix_test
from natgrad.compare.row import Point, Row
from natgrad.compare.setup import Batch, ComparisonSetup, Observation
from natgrad.layers import NotCapturedError
from natgrad.model import Model
from natgrad.model.errors import DoesNotFitError
from natgrad.tree import Layout, all_finite, inner, paths
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
        of = (exact.metric, _parts(setup.model, params, inputs), setup.damping)
        computer = (
            DenseFigures(*of) if formed else MatrixFreeFigures(*of, key, setup.budget)
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
        (full, *path), residual = self._walk(observed, (1.0, *setup.budget.factors))
        rounding = math.sqrt(jnp.finfo(observed.metric.layout.dtype).eps)
        return Row(
            name=name,
            whole=whole,
            blocks=blocks,
            full=full,
            path=tuple(path),
            spectrum=spectrum,
            **self._defects(name, observed),
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

    def _walk(
        self, observed: Observation, factors: tuple[float, ...]
    ) -> tuple[list[Point], float]:
        """A point for each multiple of η, and |(A + λI) d − g| / |g| of d at 1."""
        h = np.array(factors) * self.setup.step_size
        own, exact = (observed.metric, observed.direction), self.exact.metric
        where = (self.batch, self.gradient, self.setup.damping)
        walked = _walked(self.setup.model, *where, own, exact, jnp.array(h.tolist()))
        slope, kl, own_kl, residual, loss, losses, kls = (
            np.asarray(x, float) for x in walked
        )
        falls = (h * slope - h**2 * kl, h * slope - h**2 * own_kl, loss - losses)
        columns = (h, *falls, h**2 * kl, h**2 * own_kl, kls)
        points = [Point(*values) for values in np.stack(columns, axis=1).tolist()]
        return points, float(residual)

    def _defects(self, name: str, observed: Observation) -> dict[str, float]:
        """How far A and its step notice other coordinates: of the worst of some."""
        worst = (math.nan, 0.0, math.nan)
        for chart, model in self.setup.charts(self.batch):
            there = self.batch._replace(params=chart.from_original(self.batch.params))
            gradient = chart.transposed(self.gradient)
            other = self.setup.observe(name, model, there, gradient)
            defect, error = invariance.defect(
                observed.metric, other.metric, chart, self.batch.key, self.setup.budget
            )
            step = invariance.step_defect(observed.direction, other.direction, chart)
            if not defect <= worst[0]:
                worst = (defect, error, step)
        names = ("invariance_defect", "invariance_error", "step_invariance_defect")
        return dict(zip(names, worst, strict=True))


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


@functools.partial(jax.jit, static_argnames="model")
def _walked(model, batch, gradient, damping, own, exact, sizes) -> tuple[Array, ...]:
    params, inputs, targets, _ = batch
    metric, direction = own
    image = metric.mv(direction)
    rest = jax.tree.map(lambda f, d, g: f + damping * d - g, image, direction, gradient)

    def at(h):
        end = jax.tree.map(lambda p, d: p - h.astype(d.dtype) * d, params, direction)
        return model.loss(end, inputs, targets), model.kl(params, end, inputs)

    losses, divergences = jax.lax.map(at, sizes)
    return (
        inner(gradient, direction),
        inner(direction, exact.mv(direction)) / 2,
        inner(direction, image) / 2,
        jnp.sqrt(inner(rest, rest) / inner(gradient, gradient)),
        model.loss(params, inputs, targets),
        losses,
        divergences,
    )


def _parts(model: Model, params: Params, inputs: Inputs) -> list[Part]:
    """All parameters as one part, then the blocks."""
    layout, names = Layout.of(params), paths(params)
    read = captured(model, params, inputs)
    leaves = [set(block.leaves) for block in read.blocks] if read else []
    groups = _merged([*leaves, *({leaf} for leaf in range(len(names)))])
    blocks = [
        Part(
            _title([names[leaf] for leaf in group]),
            np.concatenate([layout.positions(leaf) for leaf in group]),
        )
        for group in groups
    ]
    return [Part("", np.arange(layout.size)), *blocks]


def _merged(sets: list[set[int]]) -> list[list[int]]:
    """The connected components, in the order of the leaves."""
    components: list[set[int]] = []
    for members in sets:
        touching = [c for c in components if c & members]
        components = [c for c in components if not c & members]
        components.append(members.union(*touching))
    return sorted(sorted(component) for component in components)


def _title(names: list[str]) -> str:
    """'dense/bias + kernel' for 'dense/bias' and 'dense/kernel'."""
    first, *others = names
    prefix = first.rpartition("/")[0] + "/"
    return " + ".join([first, *(name.removeprefix(prefix) for name in others)])
