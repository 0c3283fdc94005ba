"""The stages of a K-FAC step as tasks of their own, with their operations.

    gradient            loss and gradient
    statistics          factors of the whole batch, beside the gradient in one pass
    statistics of part  factors of the part of the batch that `natgrad.kfac` takes as it
                        comes, in a pass of their own
    inverse             one refresh of all layers
    apply               the kept inverses times a gradient
    apply rows          the same from rows of the gradient, where these are few
    divergence          that of a step for the trust region: one more forward pass

Operations are XLA's count, but for the inverses, which LAPACK makes in part: d³ a
factor, a Cholesky factorisation and its inverse, less than any method here needs. Over
the measured rate of a large product they are a floor of each stage.
"""

from __future__ import annotations

from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

from benchmarks.timing import compiled
from natgrad.curvature import KFAC, Sampled
from natgrad.metrics.kronecker import FactoredTikhonov
from natgrad.optimizers.approximate import SPARING

PARTS = (
    "gradient",
    "statistics",
    "statistics of part",
    "inverse",
    "apply",
    "apply rows",
    "divergence",
)
# Stages that share a pass with another, whose operations and seconds are not theirs.
SHARED = {
    "statistics": "gradient",
    "statistics of part": "gradient",
    "divergence": "outputs",
}

Task = tuple[Callable[[], Any], float]


def stages(
    model, params, x, y, damping: float
) -> tuple[dict[str, Task], dict[str, float]]:
    """(tasks, operations) by stage; tasks of `SHARED` stages hold the other too."""
    curvature, solver = KFAC(model, Sampled(1)), FactoredTikhonov()
    key, damping = jax.random.PRNGKey(0), jnp.float32(damping)
    part = SPARING.of_part(curvature)
    metric = jax.jit(curvature.at)(params, x, None, key)
    pieces = range(solver.num_blocks(metric))
    prepare = lambda metric: tuple(solver.factorize(metric, damping, pieces))
    kept = jax.jit(prepare)(metric)
    _, gradient, rows = jax.jit(curvature.value_grad_and_rows)(params, x, y)
    apply = lambda m, kept, v: solver.solve(m, kept, v, damping).value
    from_rows = lambda m, kept, v, rows: (
        solver.with_row_factors(rows).solve(m, kept, v, damping).value
    )
    programs = {
        "gradient": (jax.value_and_grad(model.loss), params, x, y),
        "statistics": (
            lambda p, x, y: curvature.value_and_grad(p, x, y, key),
            params,
            x,
            y,
        ),
        "statistics of part": (
            lambda p, x, y: part.value_and_grad(p, x, y, key),
            params,
            x,
            y,
        ),
        "inverse": (prepare, metric),
        "apply": (apply, metric, kept, gradient),
        "apply rows": (from_rows, metric, kept, gradient, rows),
        "outputs": (model.outputs, params, x),
        "divergence": (model.kl, params, gradient, x),
    }
    tasks, operations = {}, {}
    for name, (function, *args) in programs.items():
        tasks[name] = compiled(function, *args)
        operations[name] = flops(function, *args)
    for name, other in SHARED.items():
        operations[name] -= operations[other]
    operations["inverse"] = sum(
        leaf.size * leaf.shape[-1] for leaf in jax.tree.leaves(kept) if leaf.ndim > 1
    )
    return tasks, operations


def flops(function, *args) -> float:
    """Floating-point operations by XLA's count; loops and LAPACK are not in it."""
    return jax.jit(function).lower(*args).cost_analysis()["flops"]


def matmul_rate(size: int = 1024) -> tuple[Task, float]:
    """A product of large matrices as a task, and its operations."""
    matrix = jax.random.normal(jax.random.PRNGKey(0), (size, size))
    precise = lambda m: jnp.matmul(m, m, precision=jax.lax.Precision.HIGHEST)
    return compiled(precise, matrix), 2.0 * size**3
