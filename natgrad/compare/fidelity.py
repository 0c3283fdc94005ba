"""Approximations of the Fisher information measured against the exact one.

At parameters θ, with the loss's gradient g, the exact F and an approximation A,

    d_A = η (A + λI)⁻¹ g       the damped step, taken as θ − d_A
    relative error             ‖A − F‖_F / ‖F‖_F
    step cosine, norm ratio    ⟨d_A, d_F⟩ / (|d_A| |d_F|),     |d_A| / |d_F|
    decrease of the loss       ⟨g, d⟩ − ½⟨d, F d⟩ predicted, L(θ) − L(θ − d) actual
    KL divergence              ½⟨d, F d⟩ predicted, mean KL(p_θ ‖ p_{θ−d}) actual

Both predictions are made twice: with F, which asks how far the quadratic model holds
along that step, and with A itself, which is what an optimizer that has only A believes.
Time is that of estimating A and solving for the step, the gradient given.

This module knows `Curvature` and `Metric` and names no approximation: it takes names
from `natgrad.CURVATURES`.
"""

from __future__ import annotations

import dataclasses
import functools
import math
from collections.abc import Iterable

import jax
import jax.numpy as jnp
import numpy as np

from natgrad.compare.comparison import Comparison, Row
from natgrad.compare.observation import Observation, observe
from natgrad.curvature import CURVATURES, by_name
from natgrad.metric import Metric
from natgrad.model import Model
from natgrad.tree import Layout, inner
from natgrad.typing import Array, Inputs, Key, Params


def compare(
    model: Model,
    params: Params,
    inputs: Inputs,
    targets: Array,
    *,
    approximations: Iterable[str] | None = None,
    reference: str = "dense",
    damping: float = 1e-3,
    step_size: float = 1.0,
    key: Key | None = None,
    repeats: int = 3,
) -> Comparison:
    """Measure approximations of the Fisher information against a reference.

    Everything is formed as a matrix [P, P], so P is at most some thousands.

    Args:
        model: the statistical model.
        params: θ, where to measure; initial parameters say little.
        inputs: a batch of inputs.
        targets: its labels.
        approximations: names in `natgrad.CURVATURES`; None for all of them.
        reference: the name of what counts as exact.
        damping: λ >= 0.
        step_size: η, the multiple of the damped natural step that is tried.
        key: for sampled labels, whose figures are those of this one draw.
        repeats: timed runs, of which the median is given.

    Raises:
        ValueError: for unknown names and impossible arguments.
    """
    names = approximation_names(approximations)
    yardstick = Yardstick.of(
        model,
        params,
        inputs,
        targets,
        reference=reference,
        damping=damping,
        step_size=step_size,
        key=key,
        repeats=repeats,
    )
    return yardstick.comparison(yardstick.row(name) for name in names)


def approximation_names(names: Iterable[str] | None) -> tuple[str, ...]:
    """The names, each once and known; None means the whole registry."""
    if isinstance(names, str):
        names = [names]
    names = tuple(dict.fromkeys(CURVATURES if names is None else names))
    if not names:
        raise ValueError("approximations is empty: there is nothing to compare.")
    for name in names:
        by_name(name)
    return names


@dataclasses.dataclass(frozen=True)
class Yardstick:
    """The exact F and its step at θ, with which rows are measured one by one.

    Attributes:
        model: the statistical model.
        batch: (params, inputs, targets, key).
        gradient: g.
        loss: L(θ).
        reference: the name of F.
        exact: F, observed.
        matrix: F, [P, P], float64 on the host.
        damping: λ.
        step_size: η.
        repeats: timed runs.
    """

    model: Model
    batch: tuple[Params, Inputs, Array, Key]
    gradient: Params
    loss: float
    reference: str
    exact: Observation
    matrix: np.ndarray
    damping: float
    step_size: float
    repeats: int

    @classmethod
    def of(
        cls,
        model: Model,
        params: Params,
        inputs: Inputs,
        targets: Array,
        *,
        reference: str = "dense",
        damping: float = 1e-3,
        step_size: float = 1.0,
        key: Key | None = None,
        repeats: int = 3,
    ) -> Yardstick:
        """Observe the reference; the arguments are those of `compare`."""
        curvature = by_name(reference)(model)
        damping = _number("damping", damping, lowest=0.0)
        step_size = _number("step_size", step_size, lowest=-math.inf)
        if repeats < 1:
            raise ValueError(f"repeats must be at least 1, got {repeats}.")
        params = jax.tree.map(jnp.asarray, params)
        Layout.of(params)
        # The targets are no argument: impossible labels raise where they are known.
        value_and_grad = jax.value_and_grad(lambda p, x: model.loss(p, x, targets))
        loss, gradient = jax.jit(value_and_grad)(params, inputs)
        if not math.isfinite(loss):
            raise ValueError(
                f"The loss at these parameters is {loss}, so there is no step to "
                "compare. Are inputs, targets and params finite?"
            )
        key = jax.random.PRNGKey(0) if key is None else key
        batch = (params, inputs, targets, key)
        exact = observe(curvature, batch, gradient, damping, repeats)
        return cls(
            model=model,
            batch=batch,
            gradient=gradient,
            loss=float(loss),
            reference=reference,
            exact=exact,
            matrix=_dense(exact.metric),
            damping=damping,
            step_size=step_size,
            repeats=repeats,
        )

    def row(self, name: str) -> Row:
        """The figures of the curvature called `name`."""
        seen = self.exact if name == self.reference else self._observe(name)
        params, inputs, targets, _ = self.batch
        difference = np.linalg.norm(_dense(seen.metric) - self.matrix)
        relative_error = _ratio(difference, np.linalg.norm(self.matrix))
        figures = _figures(
            self.model,
            params,
            inputs,
            targets,
            self.gradient,
            self.damping,
            self.step_size,
            (seen.metric, seen.direction),
            (self.exact.metric, self.exact.direction),
        )
        own, exact, along, slope, kl, own_kl, loss, actual_kl, rest = map(
            float, figures
        )
        return Row(
            name=name,
            relative_error=relative_error,
            step_cosine=_ratio(along, own * exact),
            step_norm_ratio=_ratio(own, exact),
            predicted_loss_decrease=slope - kl,
            own_predicted_loss_decrease=slope - own_kl,
            actual_loss_decrease=self.loss - loss,
            predicted_kl=kl,
            own_predicted_kl=own_kl,
            actual_kl=actual_kl,
            residual=_ratio(rest, _length(self.gradient)),
            fallback=seen.fallback,
            statistics_bytes=seen.statistics_bytes,
            cost=seen.cost,
            agrees=relative_error <= math.sqrt(jnp.finfo(Layout.of(params).dtype).eps),
            uses_targets=seen.labels.needs_targets,
            uses_key=seen.labels.needs_key,
        )

    def comparison(self, rows: Iterable[Row]) -> Comparison:
        """The rows, with where they were taken."""
        params, _, targets, _ = self.batch
        layout = Layout.of(params)
        return Comparison(
            rows=tuple(rows),
            reference=self.reference,
            damping=self.damping,
            step_size=self.step_size,
            loss=self.loss,
            gradient_norm=float(_length(self.gradient)),
            reference_norm=float(np.linalg.norm(self.matrix)),
            parameters=layout.size,
            examples=jnp.shape(targets)[0],
            dtype=str(layout.dtype),
        )

    def _observe(self, name: str) -> Observation:
        curvature = by_name(name)(self.model)
        return observe(curvature, self.batch, self.gradient, self.damping, self.repeats)


@functools.partial(jax.jit, static_argnames="model")
def _figures(
    model, params, inputs, targets, gradient, damping, step_size, own, exact
) -> tuple[Array, ...]:
    """What a row is made of, in the order in which `Yardstick.row` takes it apart."""
    (metric, direction), (exact_metric, exact_direction) = own, exact
    step = jax.tree.map(lambda d: step_size * d, direction)
    moved = jax.tree.map(jnp.subtract, params, step)
    rest = jax.tree.map(
        lambda f, d, g: f + damping * d - g, metric.mv(direction), direction, gradient
    )
    return (
        _length(direction),
        _length(exact_direction),
        inner(direction, exact_direction),
        inner(gradient, step),
        inner(step, exact_metric.mv(step)) / 2,
        inner(step, metric.mv(step)) / 2,
        model.loss(moved, inputs, targets),
        model.kl(params, moved, inputs),
        _length(rest),
    )


@jax.jit
def _matrix(metric: Metric) -> Array:
    return metric.dense()


def _dense(metric: Metric) -> np.ndarray:
    return np.asarray(_matrix(metric), np.float64)


def _length(v: Params) -> Array:
    return jnp.sqrt(inner(v, v))


def _ratio(numerator: float, denominator: float) -> float:
    """numerator / denominator, NaN where the denominator is 0."""
    return float(numerator) / float(denominator) if denominator else math.nan


def _number(name: str, value: float, lowest: float) -> float:
    value = float(value)
    if not (math.isfinite(value) and value >= lowest):
        bound = "" if lowest == -math.inf else f" and at least {lowest:g}"
        raise ValueError(f"{name} must be finite{bound}, got {value}.")
    return value
