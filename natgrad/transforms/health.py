"""How a step went, and why it was skipped, in words.

Under jit values are not known while tracing, so what is impossible there cannot raise:
it makes a skipped step. The state's health holds the reason as a number, and
`check_health`, called outside of jit, raises it as an error.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.core
import jax.numpy as jnp
import numpy as np

from natgrad import tree
from natgrad.solvers.base import Spectrum
from natgrad.transforms.solve import Solved
from natgrad.transforms.state import Health
from natgrad.transforms.trust_region import BoundedStep
from natgrad.transforms.validation import Step
from natgrad.typing import Array, ArrayLike

# health.reason is the number of the first that was not so.
REASONS = (
    "no step was skipped",
    "the gradient or the loss was not finite. Call model.loss(params, x, y) on this "
    "batch outside of jit: it names impossible labels and negative weights. If it "
    "gives a number, look for inputs that are not finite, and for parameters that have "
    "grown too large",
    "the damping was negative or not finite: look at its schedule",
    "the statistics of the curvature were not finite, or there were none yet. Call "
    "model.loss(params, x, y) on this batch outside of jit: it names impossible labels "
    "and negative weights. If it gives a number, look for inputs that are not finite "
    "or too large, and for parameters that have grown too large",
    "the solution of (F + λI) d = g was not finite: raise the damping, or scale the "
    "inputs. Curvatures of the current batch alone, such as Gram, show only here that "
    "an input is not finite, a label impossible or a weight negative; "
    "model.loss(params, x, y) outside of jit names these",
    "the step was not finite after it was scaled: look at the learning rate and its "
    "schedule, and for inputs that are too large",
)
SCALED = 5


class Undone(NamedTuple):
    """What a transformation that undoes whole steps has of a health.

    Attributes:
        reason: as of `Health`.
        times: how often that happened so far.
    """

    reason: Array
    times: Array

    @property
    def skips(self) -> Array:
        """As of `Health`."""
        return self.times


def compute_health(
    step: Step, usable: Array, solved: Solved, bounded: BoundedStep, last: Health
) -> Health:
    """How the step went.

    Args:
        step: the arguments of the update.
        usable: were gradient, statistics and damping finite? Shape ().
        solved: the solution.
        bounded: the solution within its trust region.
        last: the health of the step before.
    """
    scale, skipped = bounded.scale, ~solved.usable
    unknown = Spectrum(*[jnp.zeros_like(last.condition)] * 3)
    spectrum = unknown
    if solved.spectrum is not None:
        spectrum = tree.where(skipped, unknown, solved.spectrum)
    decrease = scale * solved.slope - scale**2 * solved.square / 2
    return Health(
        damping=solved.damping,
        fallback=solved.fallback,
        iterations=jnp.asarray(solved.iterations, last.iterations.dtype),
        residual=solved.residual,
        ratio=solved.ratio,
        predicted_decrease=jnp.where(skipped, 0, decrease),
        scale=scale.astype(last.scale.dtype),
        skipped=skipped,
        skips=tree.increment(last.skips, skipped),
        reason=first_failure(step.finite, step.damped, usable, solved.usable),
        **{
            name: value.astype(last.condition.dtype)
            for name, value in spectrum._asdict().items()
        },
    )


def first_failure(*checks: ArrayLike) -> Array:
    """The number of the reason: of the first check that fails, counted from 1; or 0.

    Args:
        checks: booleans of shape (), in the order of `REASONS`.
    """
    number = jnp.zeros((), jnp.int32)
    for i, check in reversed(list(enumerate(checks, 1))):
        number = jnp.where(check, number, jnp.int32(i))
    return number


def noted(state: Any, failed: Array, reason: ArrayLike) -> Any:
    """The state, whose health says that the step was skipped where `failed` holds.

    A step that was skipped before keeps its own reason.

    Args:
        state: any tree that holds states of this library.
        failed: shape ().
        reason: a number of `REASONS`.
    """
    late = failed
    for health in _nodes(state, (Health, Undone)):
        late = late & (health.reason == 0)

    def told(node):
        if isinstance(node, Undone):
            return Undone(
                jnp.where(late, reason, node.reason), tree.increment(node.times, late)
            )
        if not isinstance(node, Health):
            return node
        return node._replace(
            skipped=node.skipped | late,
            skips=tree.increment(node.skips, late),
            reason=jnp.where(late, reason, node.reason),
        )

    return jax.tree.map(
        told, state, is_leaf=lambda node: isinstance(node, (Health, Undone))
    )


def check_health(state: Any) -> None:
    """Raise an error if the last step was skipped, with the reason in words.

    Call it outside of jit, as often as the loss is printed:

        for x, y in batches:
            params, state, loss = step(params, state, x, y)
        ng.check_health(state)

    Args:
        state: of an optimizer of this library, or any tree that holds such states:
            of chains, of `optax.multi_transform`, of many seeds under `vmap`.

    Raises:
        ValueError: if the last step was skipped; if no part of the state has a health;
            or under jit, where values are not known.
    """
    nodes = _nodes(state, (Health, Undone))
    if not nodes:
        raise ValueError(
            "No part of this state has a health: pass the state of a natural-gradient "
            f"optimizer, got {jax.tree.structure(state)}."
        )
    for health in nodes:
        if isinstance(health.reason, jax.core.Tracer):
            raise ValueError(
                "check_health reads values, which are not known under jit: call it on "
                "the state that the compiled step returns."
            )
        reasons, skips = np.asarray(health.reason), np.asarray(health.skips)
        if np.any(reasons):
            members = f" for {np.count_nonzero(reasons)} of {reasons.size} members"
            raise ValueError(
                f"The last step was skipped{members if reasons.ndim else ''}, as were "
                f"{skips.max()} in all: {REASONS[reasons[reasons > 0].flat[0]]}."
            )


def _nodes(state: Any, kinds: Any) -> list[Any]:
    """The parts of the state that are of these kinds, from the outside inwards."""

    def is_kind(node):
        return isinstance(node, kinds)

    return [node for node in jax.tree.leaves(state, is_leaf=is_kind) if is_kind(node)]
