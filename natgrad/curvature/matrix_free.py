"""The Fisher information as an operator: products, never a matrix.

    F v = (1/N) Jᵀ (F_z (J v))

One jvp, the family's Fisher information in output space, one vjp: about two gradients.
Solves are by preconditioned conjugate gradients; the network is linearised once, and
transposed once, for all their iterations. Memory that of the gradient and the
preconditioner; time two gradients an iteration. With `chunk_size` the activations of a
few examples exist at a time, and the sum runs over chunks.

The operator is that of the current batch and parameters: a moving average would need a
matrix, so only the preconditioner is kept as a statistic.

Source: Martens (2010), Deep learning via Hessian-free optimization, sections 4.1, 4.7;
Schraudolph (2002), Fast curvature matrix-vector products, section 4.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import ClassVar, NamedTuple, final

import jax
import jax.numpy as jnp

from natgrad.curvature.base import Curvature
from natgrad.curvature.chunks import (
    BUDGET,
    ChunkSize,
    check_chunk_size,
    linearized,
)
from natgrad.curvature.columns import law_of_outputs
from natgrad.curvature.diagonal import Diagonal
from natgrad.curvature.gathered import as_batch
from natgrad.curvature.preconditioners import Identity, Preconditioner, Product
from natgrad.metrics.base import Metric
from natgrad.metrics.functions import damped_noise
from natgrad.metrics.programs import one_program
from natgrad.model.batch import Batch
from natgrad.model.weights import trailing
from natgrad.solvers.base import Solution, StatefulSolver
from natgrad.solvers.conjugate_gradients import (
    RelativeResidual,
    Stopping,
    conjugate_gradients,
)
from natgrad.solvers.damping import DampingLike, entries, resolve_damping
from natgrad.tree import Layout, metric_pytree, raw_key
from natgrad.typing import Array, Inputs, Key, Params, Statistics

# Columns of the dense matrix that are computed together.
_PRODUCTS_AT_ONCE = 64


class MatrixFreeStatistics(NamedTuple):
    """What is known before the batch.

    Attributes:
        preconditioner: its statistics.
        key: for labels that are drawn, a raw key [2].
    """

    preconditioner: Statistics
    key: Array


@final
@dataclasses.dataclass(frozen=True, eq=False)
class MatrixFree(Curvature):
    """F as an operator.

    Attributes:
        stop: when conjugate gradients stop: `RelativeResidual`, `ModelDecrease` or
            `FixedIterations` of `natgrad.krylov`.
        preconditioner: `natgrad.curvature.Identity`, `Nystrom`, `Kronecker`, `Jacobi`.
        lanczos_iterations: the most products that f(F) v takes; see
            `natgrad.metrics.Metric.function`.
        chunk_size: examples whose activations are alive at once; "auto" as many as fit
            into `memory_budget`, None all. A product in chunks evaluates the network
            anew, and takes about three gradients' time rather than two.
        memory_budget: bytes that a product may take, by the shapes of what is alive at
            once; vectors of the solver are beside.
    """

    stop: Stopping = RelativeResidual()  # noqa: RUF009 (frozen, without state)
    preconditioner: Preconditioner = Identity()  # noqa: RUF009
    lanczos_iterations: int = 100
    chunk_size: ChunkSize = None
    memory_budget: int = BUDGET

    requires_batch: ClassVar[bool] = True
    keeps_all_of_f: ClassVar[bool] = True

    def __post_init__(self):
        super().__post_init__()
        check_chunk_size(self, self.chunk_size, self.memory_budget)

    def init(self, params: Params) -> MatrixFreeStatistics:
        """Zero statistics of the preconditioner, and a key."""
        zeros = self.preconditioner.init(self, params)
        return MatrixFreeStatistics(zeros, jax.random.PRNGKey(0))

    def estimate(
        self,
        params: Params,
        inputs: Inputs,
        targets: Array | None = None,
        key: Key | None = None,
    ) -> MatrixFreeStatistics:
        """Those of the preconditioner; see `Curvature.estimate`."""
        self.labels.check(targets, key)
        key = jax.random.PRNGKey(0) if key is None else key
        used = targets if self.labels.needs_targets else None
        # A preconditioner does not change the solution, so nothing flows through it.
        fixed = jax.lax.stop_gradient(params)
        found = self.preconditioner.estimate(self, Batch(fixed, inputs, used, key))
        return MatrixFreeStatistics(jax.lax.stop_gradient(found), raw_key(key))

    def metric(
        self,
        statistics: Statistics,
        params: Params,
        inputs: Inputs = None,
        targets: Array | None = None,
    ) -> MatrixFreeMetric:
        """The operator of the batch `inputs`, which must be given, or of a data set."""
        statistics, inputs, targets = as_batch(statistics, inputs, targets)
        used = targets if self.labels.needs_targets else None
        return MatrixFreeMetric(
            Layout.of(params), self, params, inputs, used, statistics
        )

    def product(self, batch: Batch) -> Product:
        """v -> F v; the network is linearised once for all v, or in chunks for each."""
        model, labels = self.model, self.labels
        z, examples, total, push, pull = linearized(self, batch)

        def product(v):
            v = jax.tree.map(lambda a, like: a.astype(like.dtype), v, batch.params)
            return pull(labels.products(model, z, examples, total, push(v)) / total)

        return product

    def pulled_noise(self, batch: Batch, key: Key) -> Params:
        """Bᵀ ε for normal ε and the rows B of the batch, a draw of N(0, F)."""
        model = self.model
        z, _, _, _, pull = linearized(self, batch)
        columns, total = self.labels.of_batch(
            law_of_outputs(model), z, batch._replace(params=z)
        )

        def add(k, cotangent):
            noise = jax.random.normal(jax.random.fold_in(key, k), z.shape[:1], z.dtype)
            return cotangent + trailing(noise, z) * columns.column(k).astype(z.dtype)

        cotangent = jax.lax.fori_loop(0, columns.count, add, jnp.zeros_like(z))
        if self.labels.centred:  # and the rows are less their weighted mean
            mean = jnp.sum(cotangent, axis=0) / total
            weights = trailing(columns.roots(0) ** 2, z)
            cotangent = cotangent - (weights * mean[None]).astype(z.dtype)
        return pull(cotangent / jnp.sqrt(total))


@metric_pytree("layout", "curvature")
class MatrixFreeMetric(Metric):
    """The Fisher information of one batch as an operator.

    Attributes:
        layout: of the parameters.
        curvature: the specification.
        params: θ.
        inputs: the batch.
        targets: its labels, for empirical labels.
        statistics: preconditioner and key.
    """

    layout: Layout
    curvature: MatrixFree
    params: Params
    inputs: Inputs
    targets: Array | None
    statistics: MatrixFreeStatistics

    @property
    def lanczos_iterations(self) -> int:
        """The most products that f(F) v takes: those of the curvature."""
        return self.curvature.lanczos_iterations

    def operator(self) -> Callable[[Array], Array]:
        """x -> F x of vectors [P], the network linearised once."""
        layout, product = self.layout, self._product()
        return lambda x: layout.ravel(product(layout.unravel(x)))

    def mv(self, v: Params) -> Params:
        """F v: one forward pass, one jvp, one vjp."""
        self.layout.check(v)
        return self._product()(v)

    def solution(self, v: Params, damping: DampingLike = 0.0) -> Solution:
        """By preconditioned conjugate gradients from 0."""
        return self.solution_from(None, v, damping)

    def solution_from(
        self, start: Params | None, v: Params, damping: DampingLike
    ) -> Solution:
        """By preconditioned conjugate gradients from the best multiple of `start`.

        Without damping the iterates must stay in the range of F, where the solution of
        least norm is, so nothing scales and they start from 0.
        """
        layout, product = self.layout, self.operator()
        by_layer = resolve_damping(damping, self)
        damping = entries(by_layer, self)
        positive = jnp.all(damping > 0) if damping.ndim else damping > 0
        safe = jax.tree.map(lambda own: jnp.where(positive, own, 1), by_layer)
        scaled = self.curvature.preconditioner.inverse(
            self.curvature,
            jax.lax.stop_gradient(self.statistics.preconditioner),
            jax.lax.stop_gradient(self.params),
            jax.lax.stop_gradient(safe),
        )
        value, iterations = conjugate_gradients(
            lambda x: product(x) + damping * x,
            layout.ravel(v),
            lambda x: jnp.where(positive, scaled(x), x),
            self.curvature.stop,
            None if start is None else jnp.where(positive, layout.ravel(start), 0),
        )
        fallback = jnp.zeros((), bool)
        return Solution(layout.unravel(value), fallback, iterations=iterations)

    def dense(self) -> Array:
        """[P, P] by P products, some at a time."""
        columns = jax.lax.map(
            self.operator(),
            jnp.eye(self.layout.size, dtype=self.layout.dtype),
            batch_size=_PRODUCTS_AT_ONCE,
        )
        return columns.T

    def diagonal(self) -> Params:
        """The exact diagonal, by per-example pullbacks."""
        exact = Diagonal(self.curvature.model, self.curvature.labels)
        entries = exact.estimate(
            self.params, self.inputs, self.targets, self.statistics.key
        )
        return self.layout.split(entries)

    @one_program
    def sample(self, key: Key, damping: DampingLike) -> Params:
        """(F + Λ)⁻¹ (Bᵀ ε + Λ^½ ε'), Bᵀ B = F; see `Metric.sample`."""
        rows, rest = jax.random.split(key)
        pulled = self.curvature.pulled_noise(self._batch(), rows)
        noise = damped_noise(self.layout, pulled, rest, entries(damping, self))
        return self.solve(noise, damping)

    def _batch(self) -> Batch:
        return Batch(self.params, self.inputs, self.targets, self.statistics.key)

    def _product(self) -> Product:
        return self.curvature.product(self._batch())


@final
@dataclasses.dataclass(frozen=True)
class WarmStart(StatefulSolver):
    """Conjugate gradients that start from the last step's solution.

    For `scale_by_curvature(MatrixFree(model), solver=WarmStart())`; the solution is
    kept in the optimizer's state, P numbers.
    """

    def init(self, layout: Layout) -> Params:
        """Zeros like the parameters, in the working dtype."""
        return layout.split(jnp.zeros(layout.size, layout.dtype))

    def solution(
        self, metric: MatrixFreeMetric, v: Params, damping: DampingLike, state: Params
    ) -> tuple[Solution, Params]:
        """The solution from `state`, and what to remember: itself."""
        if not isinstance(metric, MatrixFreeMetric):
            raise ValueError(
                "WarmStart() is for the MatrixFree curvature, whose solves iterate; "
                f"got a {type(metric).__name__}. Leave out solver=."
            )
        found = metric.solution_from(state, v, damping)
        layout = metric.layout
        return found, layout.split(layout.ravel(found.value))
