"""Adam is not the natural gradient, nor the empirical Fisher's diagonal.

Adam scales by 1/√v, v a moving average of the squared gradient of each *batch*:

    E[g_B²] = ḡ² + diag(E − ḡḡᵀ) / B · (N − B)/(N − 1)

for batches of B of N rows drawn without replacement, ḡ the gradient of all data. At a
minimum ḡ = 0, so v falls as 1/B and is 0 for the batch of all data, while diag F does
not depend on the batch at all; at B = 1, v = diag E, which is diag F only where the
model is right. And a natural step divides by F, not by its root.

Two measurements with optax's own Adam: v along a descent on all data, and v at θ* for
growing batches, θ held there.

Source: Kingma & Ba (2015), section 2; Kunstner, Hennig & Balles (2019), section 4.1.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

from benchmarks.kunstner.misspecification import Case
from benchmarks.kunstner.problems import Problem
from natgrad.typing import Array, Key

DESCENT_STEPS = 20_000
MOMENT_STEPS = 4_000
_RATE = 0.05
_DECAY = 0.999
_BATCHES = (1, 4, 16, 64, 256, 512, 768, 1000)


@dataclasses.dataclass(frozen=True)
class Adam:
    """Adam's second moment beside the Fisher's diagonal.

    Attributes:
        case: the problem at its minimum.
        steps: of the descent, at which the rest was taken.
        descent_moment: v on the way, bias corrected, mean over coordinates.
        descent_fisher: diag F on the way, mean over coordinates.
        batches: B.
        moment: v at θ* for each B, mean over coordinates.
        predicted: diag E / B · (N − B)/(N − 1), mean over coordinates.
    """

    case: Case
    steps: np.ndarray
    descent_moment: np.ndarray
    descent_fisher: np.ndarray
    batches: tuple[int, ...]
    moment: np.ndarray
    predicted: np.ndarray

    def to_dict(self) -> dict[str, Any]:
        """Plain Python values."""
        return {
            "case": self.case.to_dict(),
            "descent": {
                "steps": self.steps.tolist(),
                "second_moment": self.descent_moment.tolist(),
                "fisher_diagonal": self.descent_fisher.tolist(),
            },
            "at_minimum": {
                "batch_sizes": list(self.batches),
                "second_moment": self.moment.tolist(),
                "predicted": self.predicted.tolist(),
                "fisher_diagonal": float(np.mean(np.diag(self.case.fisher))),
                "empirical_diagonal": float(np.mean(np.diag(self.case.empirical))),
            },
        }


def adam(
    case: Case,
    descent_steps: int = DESCENT_STEPS,
    moment_steps: int = MOMENT_STEPS,
    seed: int = 0,
) -> Adam:
    """Both measurements on a problem at its minimum; `seed` is of the batches."""
    problem, minimum = case.problem, jnp.asarray(case.minimum)
    shown = np.unique(np.geomspace(1, descent_steps, 200).astype(int)) - 1
    moments, fishers = descent(problem, minimum, descent_steps)
    count = problem.examples
    sizes = np.array([*(size for size in _BATCHES if size < count), count])
    keys = jax.random.split(jax.random.PRNGKey(seed), len(sizes))
    at_minimum = [
        moment(problem, minimum, key, size, moment_steps).mean()
        for key, size in zip(keys, sizes.tolist(), strict=True)
    ]
    diagonal = np.mean(np.diag(case.empirical))
    return Adam(
        case=case,
        steps=shown + 1,
        descent_moment=np.asarray(moments)[shown].mean(axis=1),
        descent_fisher=np.asarray(fishers)[shown].mean(axis=1),
        batches=tuple(sizes.tolist()),
        moment=np.array(at_minimum),
        predicted=diagonal / sizes * (count - sizes) / (count - 1),
    )


@functools.partial(jax.jit, static_argnames="steps")
def descent(problem: Problem, minimum: Array, steps: int) -> tuple[Array, Array]:
    """(v, diag F) [steps, P] along Adam on all data, started one unit from θ*.

    Its learning rate falls to 0, so that it arrives.
    """
    optimizer = optax.chain(
        optax.scale_by_adam(b2=_DECAY),
        optax.scale_by_learning_rate(optax.cosine_decay_schedule(_RATE, steps)),
    )

    def step(carry: tuple[Any, Any], _):
        theta, state = carry
        updates, state = optimizer.update(problem.gradient(theta), state)
        theta: Any = optax.apply_updates(theta, updates)
        return (theta, state), (corrected(state), jnp.diag(problem.fisher(theta)))

    start = minimum + 1.0
    _, figures = jax.lax.scan(step, (start, optimizer.init(start)), None, length=steps)
    return figures


@functools.partial(jax.jit, static_argnames=("batch_size", "steps"))
def moment(
    problem: Problem, theta: Array, key: Key, batch_size: int, steps: int
) -> Array:
    """v [P] at θ, the mean over the second half of the steps of Adam.

    Batches of so many rows are drawn without replacement, and θ stays.
    """
    optimizer = optax.scale_by_adam(b2=_DECAY)

    def step(state, key):
        rows = jax.random.choice(key, problem.examples, (batch_size,), replace=False)
        _, state = optimizer.update(problem.take(rows).gradient(theta), state)
        return state, corrected(state)

    keys = jax.random.split(key, steps)
    _, moments = jax.lax.scan(step, optimizer.init(theta), keys)
    return jnp.mean(moments[steps // 2 :], axis=0)


def corrected(state: Any) -> Array:
    """v̂ = v / (1 − β₂ᵗ), which Adam divides by the root of; alone or in a chain."""
    state = state if isinstance(state, optax.ScaleByAdamState) else state[0]
    return state.nu / (1 - _DECAY**state.count)
