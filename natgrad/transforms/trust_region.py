"""What a direction becomes before it is applied: momentum, decay and a bound on its KL.

    v = d + β v_before,     −η α (v + ω θ) is applied,     v_before ← α v

α in (0, 1] is such that KL(p(· | θ, x) ‖ p(· | θ − η α (v + ω θ), x)) <= δ. So the
bound is on what is applied: momentum and weight decay lie inside it, and a step that
was shortened is remembered as short as it was.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple, final

import jax
import jax.numpy as jnp
import numpy as np
import optax

from natgrad import tree
from natgrad.control_flow import any_over_vmap
from natgrad.eager import call
from natgrad.families import Unnormalized
from natgrad.transforms.solve import Solved
from natgrad.transforms.state import ScaleByCurvatureState
from natgrad.transforms.validation import Step
from natgrad.typing import Array, ArrayLike, Params

Damping = Callable[[Array], Any]

# A measured divergence may exceed its bound by this part of it, which is rounding.
SLACK = 1e-3
# How many lengths of a step are measured at most.
TRIES = 13


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
        radius: δ, in nats a label, or a schedule; None for no bound. An example has as
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

    radius: ArrayLike | Damping | None
    learning_rate: optax.ScalarOrSchedule
    momentum: ArrayLike | None = None
    weight_decay: ArrayLike = 0.0

    def init(self, params: Params) -> Params | tuple[()]:
        """v before the first step: zeros like the parameters; () without momentum."""
        return () if self.momentum is None else jax.tree.map(jnp.zeros_like, params)


class BoundedStep(NamedTuple):
    """A step within its trust region.

    Attributes:
        direction: α (v + ω θ), like the parameters.
        scale: α in [0, 1], shape (); 1 without a trust region.
        velocity: α v, for the next step; () without momentum.
    """

    direction: Params
    scale: Array
    velocity: Params | tuple[()]


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
        return BoundedStep(direction, jnp.ones_like(solved.slope), ())
    velocity, whole = _moved(trust_region, step, solved, state.velocity)
    if trust_region.radius is None:
        scale = jnp.ones_like(solved.square)
    else:
        free = solved.square if exact and whole is solved.direction else None
        limits = _limits(trust_region, state)
        scale = _shrinkage(limits, step, state, (solved.usable, whole), free)
    whole = tree.zeros_where(~solved.usable, whole)
    velocity = tree.where(solved.usable, _scaled(scale, velocity), state.velocity)
    return BoundedStep(_scaled(scale, whole), scale, velocity)


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
) -> Array:
    """α in [0, 1] for the step −η u, `taken` = (is it usable?, u); `square` is
    ⟨u, F u⟩ if known.
    """
    dtype, curvature = step.layout.dtype, step.curvature
    params, inputs = step.batch.params, jax.tree.map(_constant, step.batch.inputs)
    rate, radius = (jnp.asarray(limit, dtype) for limit in limits)
    if isinstance(curvature.model.family, Unnormalized) or not step.has_batch:
        metric = curvature.metric(state.statistics, *step.batch[:3])
        whole = tree.zeros_where(~taken[0], taken[1])
        square = tree.inner(whole, metric.mv(whole)).astype(dtype)
        return _quadratic_shrinkage(rate**2 * square, radius * _labels(step))
    divergence, labels = curvature.divergence_from(params, inputs)
    radius = radius * jnp.asarray(labels, dtype)

    def along(t):
        # Cleared here, in what is computed anyway: before the loop it would be a copy.
        move = _scaled(-t * rate, tree.zeros_where(~taken[0], taken[1]))
        candidate = optax.apply_updates(params, move)
        return divergence(candidate).astype(dtype)

    if square is not None:
        length = rate**2 * square
        first = _quadratic_shrinkage(length, radius)
        return first * jax.lax.cond(
            any_over_vmap(length >= radius / 2),
            lambda: longest_within(lambda t: along(t * first), radius)[0],
            lambda: jnp.ones_like(first),
        )
    return longest_within(along, radius)[0]


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


def _limits(
    rule: TrustRegion, state: ScaleByCurvatureState
) -> tuple[ArrayLike, ArrayLike]:
    """(η, δ a label) of this step, from constants or schedules."""

    def at(value: Any) -> Any:
        return call(value, state.count) if callable(value) else value

    return at(rule.learning_rate), at(rule.radius)


class _Tried(NamedTuple):
    """A length, the divergence there, and the power of the length it grows like."""

    length: Array
    found: Array
    power: Array


def longest_within(
    divergence: Callable[[Array], Array], radius: Array
) -> tuple[Array, Array]:
    """(t, divergence at t): t = 1, or shortened until the divergence is at most δ.

    The divergence is taken to grow like a power tᵖ, p = 2 at first and then what two
    measurements say, within 1 and 8; a try is where that power is 0.97ᵖ δ, and at least
    a tenth of the last one. Where this shortens too much, to less than δ/4, the next
    tries lie between the last two. After 13 tries it is the best so far, or 0. Lengths
    have derivatives, forward and reverse.

    Args:
        divergence: of a part t in (0, 1] of the step, in nats; traced once.
        radius: δ.

    Returns:
        t and the divergence there, both of shape ().
    """
    bound = radius * (1 + SLACK)
    one = jnp.ones_like(radius)

    def going(tried):
        length, found, _ = tried[0]
        done = (length > 0) & (found >= radius / 4)
        return ~(done | (length == 1))

    def attempt(tried, _):
        # Both in one array, of which a turn is compiled once, not number by number; and
        # read within the branch, else each number is a function of its own. The length
        # is computed before, else each of its roots and powers is one too.
        inside, outside = (_Tried(*row) for row in tried)
        length = jnp.where(outside.length > 1, one, _next(inside, outside, radius))

        def again():
            _, outside = (_Tried(*row) for row in tried)
            new = divergence(length)
            known = jnp.isfinite(outside.found) & (outside.found > bound) & (new > 0)
            fell = jnp.where(known, outside.found, 1) / jnp.where(known, new, 1)
            shrank = jnp.where(known, outside.length / length, 2)
            power = jnp.clip(jnp.log(fell) / jnp.log(shrank), 1, 8)
            point = _Tried(length, new, jnp.where(known, power, outside.power))
            good = new <= bound  # NaN is outside
            place = jnp.arange(2)[:, None] == jnp.where(good, 0, 1)
            return jnp.where(place & going(tried), jnp.stack(point)[None], tried)

        return jax.lax.cond(any_over_vmap(going(tried)), again, lambda: tried), None

    start = one * jnp.array([[0, 0, 2], [2, jnp.inf, 2]], one.dtype)
    found, _ = jax.lax.scan(attempt, start, length=TRIES)
    return found[0, 0], found[0, 1]


def _next(inside: _Tried, outside: _Tried, radius: Array) -> Array:
    """The next length to try, below the one outside and above the one inside."""
    known = jnp.isfinite(outside.found) & (outside.found > 0)
    found = jnp.where(known, outside.found, radius)
    some = inside.length > 0
    low = jnp.where(some, inside.length, 0.1 * outside.length)
    both = some & known & (inside.found > 0)
    # Between two that are known, log of the divergence over log of the length.
    rise = jnp.log(found / jnp.where(both, inside.found, 1))
    power = jnp.clip(rise / jnp.log(outside.length / low), 0.5, 8)
    power = jnp.where(some, power, outside.power)
    nearest = jnp.where(some, jnp.where(both, inside.found, radius), found)
    factor = 0.97 * (radius / nearest) ** (1 / power)
    least, most = jnp.where(some, 1, 0.1), 0.99 * outside.length / low
    factor = jnp.clip(factor, least, jnp.where(some, most, 0.97))
    between = jnp.where(both, low * factor, jnp.sqrt(low * outside.length))
    shorter = outside.length * jnp.where(known, factor, 0.1)
    return jnp.where(some, between, shorter)
