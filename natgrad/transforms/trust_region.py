"""What a direction becomes before it is applied: momentum, decay and a bound on its KL.

    v = d + β v_before,     −η α (v + ω θ) is applied,     v_before ← α v

α in (0, 1] is such that KL(p(· | θ, x) ‖ p(· | θ − η α (v + ω θ), x)) <= δ. So the
bound is on what is applied: momentum and weight decay lie inside it, and a step that
was shortened is remembered as short as it was.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple, TypeAlias, final

import jax
import jax.numpy as jnp
import numpy as np
import optax

from natgrad import tree
from natgrad.control_flow import any_over_vmap
from natgrad.eager import call
from natgrad.families import Unnormalized
from natgrad.transforms.radius import AdaptiveRadius, RadiusState, longest_within
from natgrad.transforms.solve import Solved
from natgrad.transforms.state import ScaleByCurvatureState
from natgrad.transforms.validation import Step
from natgrad.typing import Array, ArrayLike, Params

Damping = Callable[[Array], Any]
# δ, a schedule of it, a rule that adapts it, or none.
Radius: TypeAlias = ArrayLike | Damping | AdaptiveRadius | None


@final
@dataclasses.dataclass(frozen=True)
class TrustRegion:
    """Shrinks steps −η (v + ω θ), v = d + β v_before, whose KL divergence exceeds δ.

    The divergence KL(p(· | θ, x) ‖ p(· | θ − η α (v + ω θ), x)), the mean over the
    batch of the curvature's model, is measured at α = 1, and where it exceeds δ, α is
    shortened until it does not: a forward pass for each length, beside that at θ. Where
    ½ η² ⟨d, F d⟩, which is free, is the divergence to second order (the metric is the
    exact F of this batch; neither momentum nor decay) and comes to less than δ/4,
    nothing is measured.

    Without the batch (`statistics=`, `observe`), and for families without a divergence
    (`Unnormalized`), that quadratic form with the metric at hand alone decides:

        α = min(1, √(2δ / (η² ⟨u, F u⟩))),     u = v + ω θ

    Attributes:
        radius: δ, in nats a label, a schedule, or a rule such as
            `natgrad.damping.AdaptiveRadius()`; None for no bound. An example has as
            many labels as it has factors: a sequence one a position, an image of bits
            one a pixel, a masked position none. They are counted on the batch, else on
            the model's example inputs; without either an example has one.
        learning_rate: η, the same as that of the transformation that follows.
        momentum: β in [0, 1); None for none, and no copy of the parameters for it.
        weight_decay: ω >= 0, decoupled: beside the direction, and not in v.

    Source: Ba, Grosse & Martens (2017), Distributed second-order optimization using
    Kronecker-factored approximations, section 5; Schulman et al. (2015), Trust region
    policy optimization, appendix C, for the measured divergence; Martens & Grosse
    (2015), section 7, for a momentum that is part of the step; Loshchilov & Hutter
    (2019), Decoupled weight decay regularization.
    """

    radius: Radius
    learning_rate: optax.ScalarOrSchedule
    momentum: ArrayLike | None = None
    weight_decay: ArrayLike = 0.0

    def init(self, params: Params) -> tuple[Params, RadiusState | tuple[()]]:
        """(v, what a rule of the radius knows) before the first step.

        Args:
            params: θ.

        Returns:
            Zeros like the parameters, () without momentum; the state of the rule, ()
            of a number or a schedule.
        """
        rule, none = self.radius, self.momentum is None
        velocity = () if none else jax.tree.map(jnp.zeros_like, params)
        return velocity, rule.init(params) if isinstance(rule, AdaptiveRadius) else ()


class BoundedStep(NamedTuple):
    """A step within its trust region.

    Attributes:
        direction: α (v + ω θ), like the parameters.
        scale: α in [0, 1], shape (); 1 without a trust region.
        velocity: α v, for the next step; () without momentum.
        radius: what a rule of the radius knows then; () without one.
    """

    direction: Params
    scale: Array
    velocity: Params | tuple[()]
    radius: RadiusState | tuple[()]


def apply_trust_region(
    trust_region: TrustRegion | None,
    step: Step,
    solved: Solved,
    state: ScaleByCurvatureState,
    exact: bool,
) -> BoundedStep:
    """The solution with momentum and decay, shortened to lie within the trust region.

    Args:
        trust_region: what is applied, and its bound; None for the solution as it is.
        step: the arguments of the update.
        solved: the solution d, with its length in F.
        state: with the count that schedules see, v of the step before, and the
            statistics of this step.
        exact: is the metric the exact F of this batch?
    """
    if trust_region is None:
        direction = tree.zeros_where(~solved.usable, solved.direction)
        return BoundedStep(direction, jnp.ones_like(solved.slope), (), ())
    velocity, whole = _moved(trust_region, step, solved, state.velocity)
    rate, radius = _limits(trust_region, step, state)
    scale = bound = jnp.ones_like(solved.square)
    if trust_region.radius is not None:
        free = solved.square if exact and whole is solved.direction else None
        taken = (solved.usable, whole)
        scale, bound = _shrinkage((rate, radius), step, state, taken, free)
    usable, whole = solved.usable, tree.zeros_where(~solved.usable, whole)
    velocity = tree.where(usable, _scaled(scale, velocity), state.velocity)
    direction, adapted = _scaled(scale, whole), state.radius
    if isinstance(trust_region.radius, AdaptiveRadius):
        after = trust_region.radius.after(radius, bound, direction, rate)
        adapted = tree.where(usable, after, state.radius)
    return BoundedStep(direction, scale, velocity, adapted)


def _moved(
    rule: TrustRegion, step: Step, solved: Solved, before: Params | tuple[()]
) -> tuple[Params | tuple[()], Params]:
    """(v, v + ω θ)."""
    velocity, whole = (), solved.direction
    if rule.momentum is not None:
        tree.check_kept(before, whole)
        velocity = whole = _plus(whole, rule.momentum, before)
    if not (isinstance(rule.weight_decay, int | float) and rule.weight_decay == 0):
        whole = _plus(whole, rule.weight_decay, step.batch.params)
    return velocity, whole


def _shrinkage(
    limits: tuple[ArrayLike, ArrayLike],
    step: Step,
    state: ScaleByCurvatureState,
    taken: tuple[Array, Params],
    square: Array | None,
) -> tuple[Array, Array]:
    """(α in [0, 1], δ in nats an example) for the step −η u, `taken` = (is it usable?,
    u); `square` is ⟨u, F u⟩ if known.
    """
    dtype, curvature = step.layout.dtype, step.curvature
    params, inputs = step.batch.params, jax.tree.map(_constant, step.batch.inputs)
    rate, radius = (jnp.asarray(limit, dtype) for limit in limits)
    if isinstance(curvature.model.family, Unnormalized) or not step.has_batch:
        metric = curvature.metric(state.statistics, *step.batch[:3])
        whole = tree.zeros_where(~taken[0], taken[1])
        square = tree.inner(whole, metric.mv(whole)).astype(dtype)
        bound = radius * _labels(step)
        return _quadratic_shrinkage(rate**2 * square, bound), bound
    divergence, labels = curvature.divergence_from(params, inputs)
    bound = radius * jnp.asarray(labels, dtype)

    def along(t):
        # Cleared here, in what is computed anyway: before the loop it would be a copy.
        move = _scaled(-t * rate, tree.zeros_where(~taken[0], taken[1]))
        candidate = optax.apply_updates(params, move)
        return divergence(candidate).astype(dtype)

    if square is None:
        return longest_within(along, bound)[0], bound
    length = rate**2 * square
    first = _quadratic_shrinkage(length, bound)
    shortened = jax.lax.cond(
        any_over_vmap(length >= bound / 2),
        lambda: longest_within(lambda t: along(t * first), bound)[0],
        lambda: jnp.ones_like(first),
    )
    return first * shortened, bound


def _labels(step: Step) -> ArrayLike:
    """Labels an example of the batch, else of the model's example inputs, else 1."""
    model, inputs = step.curvature.model, step.batch.inputs
    inputs = inputs if step.has_batch else model.example_inputs
    if inputs is None and not step.has_batch:
        return 1
    return model.labels_per_example(step.batch.params, inputs)


def _quadratic_shrinkage(length: Array, radius: Array) -> Array:
    """min(1, √(2δ/length)) for length = η² ⟨u, F u⟩."""
    outside = length > 2 * radius
    return jnp.where(outside, jnp.sqrt(2 * radius / jnp.where(outside, length, 1)), 1)


def _plus(direction: Params, scale: ArrayLike, other: Params) -> Params:
    """direction + scale · other, in the dtypes of the direction."""

    def plus(a, b):
        return a + jnp.asarray(scale, a.dtype) * b.astype(a.dtype)

    return jax.tree.map(plus, direction, other)


def _scaled(t: Array, direction: Params) -> Params:
    return jax.tree.map(lambda d: t.astype(d.dtype) * d, direction)


def _constant(leaf: Any) -> Any:
    """The leaf as a loop may close over it: NumPy's arrays as JAX's."""
    return jnp.asarray(leaf) if isinstance(leaf, np.ndarray) else leaf


def _limits(rule: TrustRegion, step: Step, state: ScaleByCurvatureState) -> Any:
    """(η, δ a label or None) of this step, from constants, schedules or a rule."""

    def at(value: Any) -> Any:
        return call(value, state.count) if callable(value) else value

    if isinstance(rule.radius, AdaptiveRadius):
        radius = rule.radius.of(state.radius, step.gradient, rule.momentum)
        return at(rule.learning_rate), radius
    return at(rule.learning_rate), at(rule.radius)
