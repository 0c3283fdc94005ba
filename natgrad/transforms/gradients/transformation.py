"""Transformations by Kronecker factors of gradients: no model, no extra arguments.

A step is a path: average the gradient; let the rule average its squares and give a
direction; renew the bases where they are due. A step that is not finite changes nothing
but the state's health.
"""

from __future__ import annotations

import dataclasses
import math
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax

from natgrad import tree
from natgrad.arguments import check_in, known_value
from natgrad.metrics.tensor_factors import factored_axes
from natgrad.transforms.distributed_inverse import Devices
from natgrad.transforms.gradients.bases import GradientFactorsState, renew_bases
from natgrad.transforms.gradients.rule import LeafGradient, LeafStep, Rule
from natgrad.transforms.health import Undone, first_failure
from natgrad.transforms.inverse_cache import Refresh
from natgrad.transforms.validation import transformation
from natgrad.tree import of_pairs
from natgrad.typing import Array, ArrayLike, Params


def scale_by_gradient_factors(
    rule: Rule,
    *,
    b1: ArrayLike,
    refresh: Refresh,
    max_dimension: int,
    weight_decay: ArrayLike,
    devices: Devices | None = None,
) -> optax.GradientTransformationExtraArgs:
    """Replace the gradient by the direction of a rule, plus ω θ.

    Args:
        rule: `Soap` or `KLShampoo`.
        b1: β₁, of the moving average of the gradients.
        refresh: how often bases are renewed.
        max_dimension: of an axis with a factor.
        weight_decay: ω >= 0, decoupled.
        devices: that share out the bases; None where each computes all.

    Raises:
        ValueError: for impossible arguments, here or in `update`.
    """
    method = _Method(rule, b1, refresh, max_dimension, weight_decay, devices)
    method.check()
    return transformation(*of_pairs(method.init, method.update))


@dataclasses.dataclass(frozen=True)
class _Method:
    """The arguments of `scale_by_gradient_factors`, and an update as a path."""

    rule: Rule
    b1: ArrayLike
    refresh: Refresh
    max_dimension: int
    weight_decay: ArrayLike
    devices: Devices | None

    def check(self) -> None:
        """Raise a ValueError for impossible arguments."""
        for name, value, end in (
            ("b1", self.b1, 1),
            ("b2", self.rule.b2, 1),
            ("eps", self.rule.eps, math.inf),
            ("weight_decay", self.weight_decay, math.inf),
        ):
            within = lambda known, end=end: 0 <= known < end
            check_in(name, value, within, f"lie in [0, {end})")
        if not isinstance(self.max_dimension, int) or self.max_dimension < 1:
            raise ValueError(
                f"max_dimension must be an integer >= 1, got {self.max_dimension!r}. "
                "Under optax.inject_hyperparams name it in static_args."
            )
        by_count = Refresh(inverses=self.refresh.period, warm_up=self.refresh.warm_up)
        if self.refresh != by_count:
            raise ValueError(
                "Factors of gradients are averaged in every step, and all bases are "
                "renewed at once: Refresh(inverses=..., warm_up=...) alone says when. "
                f"Got {self.refresh}."
            )

    def init(self, params: Params) -> GradientFactorsState:
        """The state before the first step."""
        tree.check_params(params)
        leaves, structure = jax.tree.flatten(params)
        zeros = [jnp.zeros(leaf.shape, tree.working_dtype(leaf)) for leaf in leaves]
        own = [factored_axes(leaf.shape, self.max_dimension) for leaf in leaves]
        scales = [self.rule.init(*each) for each in zip(zeros, own, strict=True)]

        def number():  # a buffer for each, so that they can be donated
            return jnp.zeros((), jnp.int32)

        def matrices(make):
            return tuple(
                tuple(
                    make(size, dtype=zero.dtype) if factored else None
                    for size, factored in zip(zero.shape, axes, strict=True)
                )
                for zero, axes in zip(zeros, own, strict=True)
            )

        def of_leaves(entries) -> Any:
            # Of no leaves, a leaf in place of all: `optax.tree.map_params` asks for it.
            return entries if leaves or entries != () else number()

        return GradientFactorsState(
            count=number(),
            momentum=jax.tree.unflatten(structure, [jnp.copy(zero) for zero in zeros]),
            scales=of_leaves(self.rule.pack(scales, structure)),
            ages=of_leaves(tuple(number() for _ in leaves)),
            factors=of_leaves(matrices(lambda d, dtype: jnp.zeros((d, d), dtype))),
            bases=of_leaves(matrices(jnp.eye)),
            health=Undone(number(), number()),
        )

    def update(
        self,
        updates: Params,
        state: GradientFactorsState,
        params: Params | None = None,
        **extra_args: Any,
    ) -> tuple[Params, GradientFactorsState]:
        """The direction in place of the gradient, and the state after it."""
        del extra_args
        tree.check_kept(state.momentum, updates)
        finite = tree.all_finite(updates)
        averaged = _averaged(updates, state, self.b1, finite)
        steps = _steps(self.rule, averaged, state)
        structure = jax.tree.structure(updates)
        direction = jax.tree.unflatten(structure, [step.direction for step in steps])
        learned = tree.all_finite([step[1:] for step in steps])
        reason = first_failure(finite, True, learned, tree.all_finite(direction))
        usable = reason == 0
        after = _learned(self.rule, averaged, steps, state)
        after = tree.where(usable, after, state)
        after = renew_bases(self.rule, self.refresh, self.devices, after, state)
        health = Undone(reason, tree.increment(state.health.times, ~usable))
        direction = self.decayed(direction, params)
        like = updates if params is None else params
        direction = jax.tree.map(lambda d, p: d.astype(p.dtype), direction, like)
        return tree.zeros_where(~usable, direction), after._replace(health=health)

    def decayed(self, direction: Params, params: Params | None) -> Params:
        """d + ω θ."""
        if known_value(self.weight_decay) == 0:
            return direction
        if params is None:
            raise ValueError(
                f"weight_decay={self.weight_decay} needs the parameters: call "
                "update(gradient, state, params)."
            )

        def plus(d, p):
            return d + jnp.asarray(self.weight_decay, d.dtype) * p.astype(d.dtype)

        return jax.tree.map(plus, direction, params)


class _Averaged(NamedTuple):
    """Gradients in working precision, 0 where not finite, and their averages."""

    gradients: list[Array]
    momentum: Params
    means: list[Array]
    count: Array
    ages: tuple[Array, ...]


def _averaged(
    updates: Params, state: GradientFactorsState, b1: ArrayLike, finite: Array
) -> _Averaged:
    def working(gradient, average):
        return jnp.where(finite, gradient.astype(average.dtype), 0)

    gradients = jax.tree.map(working, updates, state.momentum)
    momentum = jax.tree.map(
        lambda m, g: b1 * m + (1 - b1) * g, state.momentum, gradients
    )
    count, leaves = tree.increment(state.count), jax.tree.leaves(gradients)

    def corrected(average):
        dtype = average.dtype
        return average / (1 - jnp.asarray(b1, dtype) ** count.astype(dtype))

    ages = tuple(
        tree.increment(age, (age > 0) | tree.any_nonzero(g))
        for age, g in zip(state.ages, leaves, strict=True)
    )
    means = [corrected(average) for average in jax.tree.leaves(momentum)]
    return _Averaged(leaves, momentum, means, count, ages)


def _steps(
    rule: Rule, averaged: _Averaged, state: GradientFactorsState
) -> list[LeafStep]:
    return [
        rule.step(LeafGradient(g, mean, factors, bases, scale, age, averaged.count))
        for g, mean, factors, bases, scale, age in zip(
            averaged.gradients,
            averaged.means,
            state.factors,
            state.bases,
            rule.unpack(state.scales),
            averaged.ages,
            strict=True,
        )
    ]


def _learned(
    rule: Rule, averaged: _Averaged, steps: list[LeafStep], state: GradientFactorsState
) -> GradientFactorsState:
    """The state with this gradient, in the bases of before."""
    structure = jax.tree.structure(averaged.momentum)
    return state._replace(
        count=averaged.count,
        momentum=averaged.momentum,
        scales=rule.pack([step.scale for step in steps], structure),
        ages=averaged.ages,
        factors=tuple(step.factors for step in steps),
    )
