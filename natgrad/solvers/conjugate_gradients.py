"""Conjugate gradients for (F + λI) x = v, with a say in when to stop.

The iterate is what counts, so the derivative is that of the exact solution, of any
order and at one more solve's cost however many iterations were made
(`lax.custom_linear_solve`); let the iteration converge before trusting derivatives.

A start x₀ from an earlier solve enters as α x₀ with α = ⟨v, x₀⟩/⟨x₀, A x₀⟩, the best
multiple, so that it is never worse than 0 in the norm of A.

Three rules end the iteration: `RelativeResidual`, |v − A x| <= τ |v|; `ModelDecrease`,
by which the quadratic model φ(x) = ½⟨x, A x⟩ − ⟨v, x⟩ has all but stopped to fall;
`FixedIterations`, whose number of iterations depends on no value, so that under vmap no
member waits for another.

Source: Hestenes & Stiefel (1952), Methods of conjugate gradients for solving linear
systems; Martens (2010), Deep learning via Hessian-free optimization, section 4.4, for
`ModelDecrease`.
"""

from __future__ import annotations

import abc
import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple, final

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float, Integer

from natgrad import tree
from natgrad.control_flow import symmetric_solve
from natgrad.solvers.base import DampedOperator
from natgrad.solvers.damping import DampingLike, entries
from natgrad.typing import Array, Params

# A linear map of vectors [P].
Operator = Callable[[Array], Array]


class Step(NamedTuple):
    """Where an iteration stands.

    Attributes:
        x: the iterate, [P].
        residual: r = v − A x, [P].
        search: the next direction, [P].
        slope: ⟨r, M⁻¹ r⟩, for the preconditioner M⁻¹.
        count: how many iterations were made.
        memory: what the stopping rule remembers, a tree of arrays.
        done: whether the rule says to stop.
    """

    x: Float[Array, " P"]
    residual: Float[Array, " P"]
    search: Float[Array, " P"]
    slope: Float[Array, ""]
    count: Integer[Array, ""]
    memory: Any
    done: Bool[Array, ""]


class Stopping(abc.ABC):
    """When conjugate gradients stop."""

    @abc.abstractmethod
    def limit(self, size: int) -> int:
        """The most iterations.

        Args:
            size: P.
        """

    def start(self, v: Float[Array, " P"]) -> Any:
        """What the rule remembers before the first iteration, a tree of arrays.

        Args:
            v: the right-hand side.
        """
        del v
        return ()

    @abc.abstractmethod
    def seen(self, v: Float[Array, " P"], step: Step) -> tuple[Any, Bool[Array, ""]]:
        """The memory after an iteration, and whether to stop.

        Args:
            v: the right-hand side.
            step: where the iteration stands, its memory still that of the step before.
        """


@final
@dataclasses.dataclass(frozen=True)
class RelativeResidual(Stopping):
    """Stop when |v − A x| <= τ |v|.

    Attributes:
        tolerance: τ; None for ten times the dtype's rounding.
        max_iterations: None for 10 P.
    """

    tolerance: float | None = None
    max_iterations: int | None = None

    def limit(self, size: int) -> int:
        """`max_iterations`, or 10 P.

        Args:
            size: P.
        """
        return 10 * size if self.max_iterations is None else self.max_iterations

    def seen(self, v: Float[Array, " P"], step: Step) -> tuple[Any, Bool[Array, ""]]:
        """No memory, and whether |v − A x| <= τ |v|.

        Args:
            v: the right-hand side.
            step: where the iteration stands.
        """
        tolerance = self.tolerance
        if tolerance is None:
            tolerance = 10 * float(jnp.finfo(v.dtype).eps)
        return (), _square(step.residual) <= tolerance**2 * _square(v)


@final
@dataclasses.dataclass(frozen=True)
class ModelDecrease(Stopping):
    """Stop when φ fell by less than k ε of itself in the last k iterations.

        (φ(x_i) − φ(x_{i−k})) / φ(x_i) < k ε,      k = max(10, i/10),  φ(x_i) < 0

    Attributes:
        epsilon: ε.
        max_iterations: the most.
    """

    epsilon: float = 5e-4
    max_iterations: int = 250

    def limit(self, size: int) -> int:
        """`max_iterations`.

        Args:
            size: P.
        """
        del size
        return self.max_iterations

    def start(self, v: Float[Array, " P"]) -> Float[Array, " n"]:
        """φ of every iterate: zeros, of which `seen` fills in one an iteration.

        Args:
            v: the right-hand side.
        """
        return jnp.zeros(self.max_iterations + 1, v.dtype)

    def seen(
        self, v: Float[Array, " P"], step: Step
    ) -> tuple[Float[Array, " n"], Bool[Array, ""]]:
        """φ of every iterate so far, and whether it has all but stopped to fall.

        Args:
            v: the right-hand side.
            step: where the iteration stands.
        """
        value = -0.5 * _dot(step.x, v + step.residual)
        history = step.memory.at[step.count].set(value)
        k = jnp.maximum(10, step.count // 10)
        before = history[jnp.maximum(step.count - k, 0)]
        slow = value - before > k * self.epsilon * value
        exact = _square(step.residual) == 0
        return history, exact | ((step.count > k) & (value < 0) & slow)


@final
@dataclasses.dataclass(frozen=True)
class FixedIterations(Stopping):
    """Make n iterations, whatever the values.

    Attributes:
        iterations: n.
    """

    iterations: int

    def limit(self, size: int) -> int:
        """n.

        Args:
            size: P.
        """
        del size
        return self.iterations

    def seen(self, v: Float[Array, " P"], step: Step) -> tuple[Any, Bool[Array, ""]]:
        """No memory, and False: only the limit stops.

        Args:
            v: the right-hand side.
            step: where the iteration stands.
        """
        del v, step
        return (), jnp.array(False)


def conjugate_gradients(
    operator: Operator,
    v: Float[Array, " P"],
    preconditioner: Operator,
    stop: Stopping,
    start: Float[Array, " P"] | None = None,
) -> tuple[Float[Array, " P"], Integer[Array, ""]]:
    """A⁻¹ v and the number of iterations.

    Args:
        operator: A, symmetric positive definite.
        v: [P].
        preconditioner: an approximate inverse of A, symmetric positive definite.
        stop: when to stop.
        start: an earlier solution of a similar system, [P]; None for 0.
    """

    def solve(v):
        final = _iterated(operator, v, preconditioner, stop, start)
        return final.x, tree.varying_like(final.count, final.x)

    return symmetric_solve(operator, v, solve, has_aux=True)


def _iterated(operator, v, preconditioner, stop, start) -> Step:
    limit = stop.limit(v.size)
    x, residual = jnp.zeros_like(v), v
    if start is not None:
        image = operator(start)
        multiple = _ratio(_dot(v, start), _dot(start, image))
        x, residual = multiple * start, v - multiple * image
    search = preconditioner(residual)
    slope = _dot(residual, search)
    zero = jnp.zeros((), jnp.int32)
    first = Step(x, residual, search, slope, zero, stop.start(v), jnp.array(False))
    memory, done = stop.seen(v, first)
    first = first._replace(memory=memory, done=done)

    def body(step: Step) -> Step:
        image = operator(step.search)
        length = _ratio(step.slope, _dot(step.search, image))
        x = step.x + length * step.search
        residual = step.residual - length * image
        scaled = preconditioner(residual)
        slope = _dot(residual, scaled)
        search = scaled + _ratio(slope, step.slope) * step.search
        new = Step(x, residual, search, slope, step.count + 1, step.memory, step.done)
        memory, done = stop.seen(v, new)
        return new._replace(memory=memory, done=done)

    def unfinished(step):
        return (step.count < limit) & ~step.done

    return jax.lax.while_loop(unfinished, body, first)


def _dot(a: Array, b: Array) -> Array:
    return jnp.vdot(a, b, precision=jax.lax.Precision.HIGHEST)


def _square(a: Array) -> Array:
    return _dot(a, a)


def _ratio(a: Array, b: Array) -> Array:
    """a/b, and 0 where an exact solution left nothing to divide by."""
    return jnp.where(b > 0, a / jnp.where(b > 0, b, 1), 0)


def cg(metric: DampedOperator, v: Params, damping: DampingLike) -> Params:
    """(F + λI)⁻¹ v by conjugate gradients, to ten times the rounding of its dtype.

    Args:
        metric: F, of which only products F x are used.
        v: a tree like the parameters.
        damping: λ >= 0, in the units of F.
    """
    layout = metric.layout
    damping = entries(damping, metric)
    value, _ = conjugate_gradients(
        lambda x: layout.ravel(metric.mv(layout.unravel(x))) + damping * x,
        layout.ravel(v),
        lambda x: x,
        RelativeResidual(),
    )
    return layout.unravel(value)
