"""Metrics: positive semi-definite operators F on parameter space.

A metric is what a curvature is solved with and compared by. Vectors are trees shaped
like the parameters; `dense` is the matrix [P, P] in `ravel_pytree` order. All kinds
are pytrees, so they pass through jit and batch under vmap; they can be added, and
multiplied by positive numbers. `natgrad.metrics.functions` has what is made of any.
"""

from __future__ import annotations

import abc
import functools
from collections.abc import Callable, Sequence
from typing import Any, final

import jax
import jax.numpy as jnp
from jaxtyping import Float

from natgrad.arguments import check_in, is_positive
from natgrad.metrics.functions import Decomposition, OperatorFunctions
from natgrad.metrics.programs import one_program
from natgrad.solvers.base import Solution
from natgrad.solvers.conjugate_gradients import RelativeResidual, conjugate_gradients
from natgrad.solvers.damping import DampingLike, entries, resolve_damping
from natgrad.solvers.damping_of_metric import relative_to
from natgrad.solvers.matrix_functions import Spectral
from natgrad.tree import Layout, inner, metric_pytree
from natgrad.typing import Array, ArrayLike, Key, Params


class Metric(OperatorFunctions):
    """A positive semi-definite operator on trees shaped like the parameters.

    Attributes:
        layout: how the parameters lie in a vector.
    """

    @abc.abstractmethod
    def solution(self, v: Params, damping: DampingLike = 0.0) -> Solution:
        """As `solve`, and whether the solver had to fall back.

        Args:
            v: a tree like the parameters.
            damping: λ >= 0, in the units of F.
        """

    @abc.abstractmethod
    def dense(self) -> Float[Array, "P P"]:
        """F as a matrix, in `ravel_pytree` order."""

    @abc.abstractmethod
    def diagonal(self) -> Params:
        """The diagonal of F, shaped like the parameters, in the working dtype."""

    @final
    @one_program
    def solve(self, v: Params, damping: DampingLike = 0.0) -> Params:
        """(F + λI)⁻¹ v, with no direction dropped for λ > 0; for λ = 0 F⁺ v.

        F⁺ v is the solution of least norm; `natgrad.solvers.spectral` says what counts
        as singular there, and how far rounding reaches. Iterative metrics stop as their
        `stop` says.

        Args:
            v: a tree like the parameters.
            damping: λ >= 0, in the units of F; by layer: `natgrad.solvers.damping`.

        Returns:
            A tree like the parameters, in their dtypes.

        Raises:
            ValueError: v is not shaped like the parameters.
        """
        return self.solution(v, damping).value

    @final
    def trace(self) -> Float[Array, ""]:
        """tr F."""
        sums = [jnp.sum(leaf) for leaf in jax.tree.leaves(self.diagonal())]
        return functools.reduce(jnp.add, sums)

    @final
    def norm(self, v: Params) -> Float[Array, ""]:
        """√⟨v, F v⟩, the length of v.

        Half its square is the KL divergence of the step v in nats, to second order in
        v. It is 0, with the derivative 0, where v is null or rounding makes ⟨v, F v⟩
        negative.

        Args:
            v: a tree like the parameters.

        Raises:
            ValueError: v is not shaped like the parameters.
        """
        square = inner(v, self.mv(v))
        null = square <= 0
        return jnp.where(null, 0, jnp.sqrt(jnp.where(null, 1, square)))

    def relative_damping(self, scale: Array) -> Any:
        """The damping that `natgrad.Relative(scale)` is for F.

        Args:
            scale: c.
        """
        return relative_to(self.leaf_groups(), self.diagonal(), scale)

    def leaf_groups(self) -> Sequence[Sequence[int]]:
        """The numbers of the leaves of each block of F."""
        return [range(len(self.layout.shapes))]

    def largest_eigenvalues(self) -> Sequence[Float[Array, ""]]:
        """Max s of each block of `leaf_groups`, by Lanczos's method."""
        return [self.largest_eigenvalue()]

    @final
    def __add__(self, other: Metric) -> SumMetric:
        """F + G, an operator."""
        if not isinstance(other, Metric):
            return NotImplemented
        if self.layout != other.layout:
            raise ValueError(
                "F + G needs metrics of the same parameters. Got leaves of shapes "
                f"{self.layout.shapes} and {other.layout.shapes}."
            )
        return SumMetric(self.layout, (self, other))

    @final
    def __mul__(self, scale: ArrayLike) -> ScaledMetric:
        """a F for a number a > 0."""
        check_in("The multiple of a metric", scale, is_positive, "be positive")
        return ScaledMetric(self.layout, self, jnp.asarray(scale, self.layout.dtype))

    __rmul__ = __mul__


@metric_pytree("layout")
class ScaledMetric(Metric):
    """a F.

    Attributes:
        layout: of the parameters.
        metric: F.
        scale: a > 0.
    """

    layout: Layout
    metric: Metric
    scale: Float[Array, ""]

    @property
    def lanczos_iterations(self) -> int:
        """Those of F."""
        return self.metric.lanczos_iterations

    def operator(self) -> Callable[[Array], Array]:
        """x -> a F x; see `Metric.operator`."""
        product = self.metric.operator()
        return lambda x: self.scale * product(x)

    def mv(self, v: Params) -> Params:
        """a F v; see `Metric.mv`."""
        return self._times(self.scale, self.metric.mv(v))

    def solution(self, v: Params, damping: DampingLike = 0.0) -> Solution:
        """(F + Λ/a)⁻¹ v / a; see `Metric.solution`."""
        found = self.metric.solution(v, self._over(damping))
        value = self._times(1 / self.scale, found.value)
        return found._replace(value=value, remainder=None)

    def dense(self) -> Float[Array, "P P"]:
        """a F."""
        return self.scale * self.metric.dense()

    def diagonal(self) -> Params:
        """a diag F."""
        return self._times(self.scale, self.metric.diagonal())

    def function(self, f: Spectral, v: Params, damping: DampingLike = 0.0) -> Params:
        """s -> f(a s) of F, with Λ/a; see `Metric.function`."""
        return self.metric.function(lambda s: f(self.scale * s), v, self._over(damping))

    def trace_of(self, f: Spectral, damping: DampingLike = 0.0) -> Float[Array, ""]:
        """s -> f(a s) of F, with Λ/a; see `Metric.trace_of`."""
        return self.metric.trace_of(lambda s: f(self.scale * s), self._over(damping))

    def diagonal_of(self, f: Spectral, damping: DampingLike = 0.0) -> Params:
        """s -> f(a s) of F, with Λ/a; see `Metric.diagonal_of`."""
        return self.metric.diagonal_of(lambda s: f(self.scale * s), self._over(damping))

    @one_program
    def sample(self, key: Key, damping: DampingLike) -> Params:
        """A draw with F and Λ/a, over √a; see `Metric.sample`."""
        draw = self.metric.sample(key, self._over(damping))
        return self._times(self.scale**-0.5, draw)

    @one_program
    def inverse_diagonal(self, damping: DampingLike) -> Params:
        """That with F and Λ/a, over a; see `Metric.inverse_diagonal`."""
        found = self.metric.inverse_diagonal(self._over(damping))
        return self._times(1 / self.scale, found)

    @one_program
    def logdet(self, damping: DampingLike = 0.0) -> Float[Array, ""]:
        """That with F and Λ/a, and P log a; see `Metric.logdet`."""
        found = self.metric.logdet(self._over(damping))
        return found + self.layout.size * jnp.log(self.scale)

    def _over(self, damping: DampingLike) -> Any:
        found = resolve_damping(damping, self)
        return jax.tree.map(lambda own: own / self.scale, found)

    def leaf_groups(self) -> Sequence[Sequence[int]]:
        """Those of F."""
        return self.metric.leaf_groups()

    def largest_eigenvalues(self) -> Sequence[Float[Array, ""]]:
        """a times those of F."""
        return [self.scale * each for each in self.metric.largest_eigenvalues()]

    def decomposed(self) -> Decomposition:
        """That of F, times a; see `Metric.decomposed`."""
        found = self.metric.decomposed()
        values = found.values and [self.scale * each for each in found.values]

        def function(f, v):
            return found.function(lambda s: f(self.scale * s), v)

        return Decomposition(values, found.outside, function)

    def _times(self, scale: Array, tree: Params) -> Params:
        return jax.tree.map(lambda leaf: (scale * leaf).astype(leaf.dtype), tree)


@metric_pytree("layout")
class SumMetric(Metric):
    """F + G + …, an operator: functions by Lanczos's method, solves by CG.

    Attributes:
        layout: of the parameters.
        metrics: F, G, …
    """

    layout: Layout
    metrics: tuple[Metric, ...]

    def mv(self, v: Params) -> Params:
        """F v + G v + …; see `Metric.mv`."""
        return self._sum([metric.mv(v) for metric in self.metrics])

    def solution(self, v: Params, damping: DampingLike = 0.0) -> Solution:
        """By conjugate gradients, as `natgrad.solvers.cg`; see `Metric.solution`."""
        diagonal = entries(damping, self)
        product = self.operator()
        value, iterations = conjugate_gradients(
            lambda x: product(x) + diagonal * x,
            self.layout.ravel(v),
            lambda x: x,
            RelativeResidual(),
        )
        fallback = jnp.zeros((), bool)
        return Solution(self.layout.unravel(value), fallback, iterations=iterations)

    def operator(self) -> Callable[[Array], Array]:
        """x -> F x + G x + …; see `Metric.operator`."""
        products = [metric.operator() for metric in self.metrics]
        return lambda x: self._sum([product(x) for product in products])

    def dense(self) -> Float[Array, "P P"]:
        """The sum of the matrices."""
        return self._sum([metric.dense() for metric in self.metrics])

    def diagonal(self) -> Params:
        """The sum of the diagonals."""
        return self._sum([metric.diagonal() for metric in self.metrics])

    def _sum(self, terms):
        return jax.tree.map(lambda *leaves: functools.reduce(jnp.add, leaves), *terms)
