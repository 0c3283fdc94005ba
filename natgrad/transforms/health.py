"""Why a step was skipped, in words.

Under jit values are not known while tracing, so what is impossible there cannot raise:
it makes a skipped step. The state's health holds the reason as a number, and
`check_health`, called outside of jit, raises it as an error.
"""

from __future__ import annotations

from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import numpy as np

from natgrad import tree
from natgrad.transforms.state import Health
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


def first_failure(*checks: ArrayLike) -> Array:
    """The number of the reason: of the first check that fails, counted from 1; or 0."""
    failed = ~jnp.stack([jnp.asarray(check) for check in checks])
    number = 1 + jnp.argmax(failed).astype(jnp.int32)
    return jnp.where(jnp.any(failed), number, 0)


def noted(state: Any, failed: Array, reason: ArrayLike) -> Any:
    """The state, whose health says that the step was skipped where `failed` holds.

    A step that was skipped before keeps its own reason.
    """
    late = failed
    for health in _found(state, Health):
        late = late & ~health.skipped

    def told(node):
        if not isinstance(node, Health):
            return node
        return node._replace(
            skipped=node.skipped | late,
            skips=tree.increment(node.skips, late),
            reason=jnp.where(late, reason, node.reason),
        )

    return jax.tree.map(told, state, is_leaf=lambda node: isinstance(node, Health))


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
    found = _found(state, (Health, Undone))
    if not found:
        raise ValueError(
            "No part of this state has a health: pass the state of a natural-gradient "
            f"optimizer, got {jax.tree.structure(state)}."
        )
    for health in found:
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


def _found(state: Any, kinds: Any) -> list[Any]:
    """The parts of the state that are of these kinds, from the outside inwards."""
    is_kind = lambda node: isinstance(node, kinds)
    return [node for node in jax.tree.leaves(state, is_leaf=is_kind) if is_kind(node)]
