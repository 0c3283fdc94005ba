"""Damping in the parameters' own units: (F + λ D) d = g with D from the diagonal of F.

With λI the step depends on the units of each parameter; with D = diag F it does not: a
parameter times c gives a step times c, and λ is a pure number. D is the largest
diagonal so far, so that a parameter which the outputs cease to feel stays damped:

    D_k = max(D_{k−1}, diag F_k),      d = S⁻¹ (S⁻¹ F S⁻¹ + λI)⁻¹ S⁻¹ g,      S = D^½

Source: Marquardt (1963), An algorithm for least-squares estimation of nonlinear
parameters, for diag F; Moré (1978), The Levenberg-Marquardt algorithm: implementation
and theory, section 6, for the largest so far.
"""

from __future__ import annotations

import dataclasses
from typing import Any, final

import jax.numpy as jnp

from natgrad.metrics.base import Metric
from natgrad.solvers.base import (
    Remainder,
    Solution,
    Solver,
    StatefulSolver,
)
from natgrad.solvers.damping import DampingLike, entries, resolve_damping
from natgrad.solvers.dense import direct_solution
from natgrad.solvers.spectral import HIGHEST
from natgrad.tree import Layout, metric_pytree
from natgrad.typing import Array, Params


@final
@dataclasses.dataclass(frozen=True)
class Marquardt(StatefulSolver):
    """A solver for (F + λ D) d = g: `scale_by_curvature(..., solver=Marquardt())`.

    D is kept in the optimizer's state. Where it is 0, no F has seen the parameter yet,
    and D is taken to be 1. `health.residual` is that of this equation. Called without
    a state, D is the diagonal of the one metric.

    Attributes:
        solver: of the scaled equation (S⁻¹ F S⁻¹ + λI) S d = S⁻¹ g, such as
            `natgrad.solvers.cg`; None for refined Cholesky of the matrix, O(P³).
    """

    solver: Solver | None = None

    def init(self, layout: Layout) -> Array:
        """D before the first step: 0, [P]."""
        return jnp.zeros(layout.size, layout.dtype)

    def solution(
        self, metric: Metric, v: Params, damping: DampingLike, state: Any
    ) -> tuple[Solution, Array]:
        """(F + λ D)⁻¹ v and D.

        Args:
            metric: F; one that knows its diagonal.
            v: like the parameters.
            damping: λ, a number without units; by layer too. What F decides is that
                of S⁻¹ F S⁻¹, as one block.
            state: D before this step, [P].
        """
        layout = metric.layout
        largest = jnp.maximum(state, layout.ravel(metric.diagonal()))
        scale = jnp.where(largest > 0, largest, 1)
        operator = _Scaled(layout, metric, jnp.sqrt(scale))
        by_layer = resolve_damping(damping, operator)
        damping = entries(by_layer, operator)
        right = layout.ravel(v) / operator.root
        if self.solver is None:
            found = direct_solution(operator.dense(), right, damping)
            x, fallback = found.value, found.fallback
        else:
            found = self.solver(operator, layout.unravel(right), by_layer)
            x, fallback = layout.ravel(found), jnp.zeros((), bool)
        x = x / operator.root
        value = layout.unravel(x)
        product = layout.ravel(metric.mv(value))
        rest = layout.ravel(v) - product - damping * scale * x

        def inner(a, b):
            return jnp.vdot(a, b, precision=HIGHEST)

        # ⟨d, ρ⟩ is of the equation with λI, from which ⟨d, F d⟩ follows.
        plain = layout.ravel(v) - product - damping * x
        square = inner(rest, rest)
        norm = jnp.where(square > 0, jnp.sqrt(jnp.where(square > 0, square, 1)), 0)
        remainder = Remainder(norm, inner(x, plain))
        return Solution(value, fallback, remainder), largest


@metric_pytree("layout")
class _Scaled(Metric):
    """S⁻¹ F S⁻¹."""

    layout: Layout
    metric: Metric
    root: Array

    def mv(self, v: Params) -> Params:
        """S⁻¹ F S⁻¹ v."""
        there = self.layout.unravel(self.layout.ravel(v) / self.root)
        product = self.layout.ravel(self.metric.mv(there))
        return self.layout.unravel(product / self.root)

    def solution(self, v: Params, damping: DampingLike = 0.0) -> Solution:
        """By its matrix; see `Metric.solution`."""
        right, own = self.layout.ravel(v), entries(damping, self)
        found = direct_solution(self.dense(), right, own)
        return found._replace(value=self.layout.unravel(found.value), remainder=None)

    def diagonal(self) -> Params:
        """At most 1."""
        entries = self.layout.ravel(self.metric.diagonal()) / self.root**2
        return self.layout.split(entries)

    def dense(self) -> Array:
        """[P, P]; its diagonal is at most 1."""
        return self.metric.dense() / (self.root[:, None] * self.root[None])
