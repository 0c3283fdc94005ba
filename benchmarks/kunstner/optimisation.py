"""Descent by three directions, and the cosine between two of them.

    θ ← θ − η (M + λI)⁻¹ g        M = F (NGD) or E (EFGD);   θ ← θ − η g (GD)

A run stops once its loss exceeds 100 times the first. The cosine is that of
(F + λI)⁻¹g and (E + λI)⁻¹g along one run, both with its λ.

Source: Kunstner, Hennig & Balles (2019), section 4.3, and their published code.
"""

from __future__ import annotations

import functools
from collections.abc import Callable

import jax
import jax.numpy as jnp

from benchmarks.kunstner.problems import Problem
from natgrad.typing import Array, ArrayLike

STEPS = 100

# A run stops when its loss is this many times the first.
BLOWN_UP = 100.0

Direction = Callable[[Problem, Array, Array], Array]


def plain(problem: Problem, theta: Array, damping: Array) -> Array:
    """g; it has no damping."""
    del damping
    return problem.gradient(theta)


def natural(problem: Problem, theta: Array, damping: ArrayLike) -> Array:
    """(F + λI)⁻¹ g."""
    return _solve(problem.hessian(theta), damping, problem.gradient(theta))


def empirical(problem: Problem, theta: Array, damping: ArrayLike) -> Array:
    """(E + λI)⁻¹ g."""
    return _solve(problem.empirical(theta), damping, problem.gradient(theta))


def _solve(matrix: Array, damping: ArrayLike, gradient: Array) -> Array:
    return jnp.linalg.solve(matrix + damping * jnp.eye(len(gradient)), gradient)


METHODS: dict[str, Direction] = {"GD": plain, "NGD": natural, "EFGD": empirical}


@functools.partial(jax.jit, static_argnames=("direction", "steps"))
def descend(
    problem: Problem,
    direction: Direction,
    start: Array,
    rates: Array,
    dampings: Array,
    steps: int = STEPS,
) -> Array:
    """Losses [steps + 1, B] of B runs; NaN after a run has stopped.

    Args:
        problem: what to minimise.
        direction: (problem, θ, λ) -> [P].
        start: θ₀ [P].
        rates: η [B].
        dampings: λ [B].
        steps: iterations.
    """
    first = problem.loss(start)
    losses = jnp.full((steps + 1, len(rates)), jnp.nan).at[0].set(first)

    def step(carry):
        t, thetas, alive, losses = carry
        moves = jax.vmap(direction, (None, 0, 0))(problem, thetas, dampings)
        thetas = jnp.where(alive[:, None], thetas - rates[:, None] * moves, thetas)
        loss = jax.vmap(problem.loss)(thetas)
        losses = losses.at[t + 1].set(jnp.where(alive, loss, jnp.nan))
        return t + 1, thetas, alive & (loss <= BLOWN_UP * first), losses

    def running(carry):
        return (carry[0] < steps) & jnp.any(carry[2])

    thetas = jnp.broadcast_to(start, (len(rates), len(start)))
    carry = (0, thetas, jnp.ones(len(rates), bool), losses)
    return jax.lax.while_loop(running, step, carry)[3]


@functools.partial(jax.jit, static_argnames=("direction", "steps"))
def iterates(
    problem: Problem, direction: Direction, start, rate, damping, steps: int = STEPS
) -> Array:
    """θ₀ … θ_steps of one run, [steps + 1, P]."""

    def step(theta, _):
        return theta - rate * direction(problem, theta, damping), theta

    return jax.lax.scan(step, start, None, length=steps + 1)[1]


@jax.jit
def cosines(problem: Problem, thetas: Array, damping: Array) -> Array:
    """Between the natural and the empirical direction at each θ: [T]."""

    def one(theta):
        a, b = natural(problem, theta, damping), empirical(problem, theta, damping)
        return a @ b / (jnp.linalg.norm(a) * jnp.linalg.norm(b))

    return jax.lax.map(one, thetas)
