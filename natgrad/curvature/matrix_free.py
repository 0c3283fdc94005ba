"""The Fisher information as an operator: products, never a matrix.

    F v = (1/N) Jᵀ (F_z (J v))

One jvp, the family's Fisher information in output space, one vjp: about two gradients.
Solves are by conjugate gradients, preconditioned by the diagonal of F + λI; the network
is linearised once for all their iterations. Memory that of the gradient; time two
gradients an iteration.

The operator is that of the current batch and parameters: a moving average would need a
matrix, so only the preconditioner is kept as a statistic. It is a random estimate of
the diagonal, (J_nᵀ Σ_k ±√w_k s_k)²: one pullback an example whatever the number of
columns.

Source: Martens (2010), Deep learning via Hessian-free optimization, sections 4.1, 4.7;
Schraudolph (2002), Fast curvature matrix-vector products, section 4.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import ClassVar, NamedTuple, final

import jax
import jax.numpy as jnp

from natgrad import solvers
from natgrad.curvature.base import Curvature
from natgrad.curvature.diagonal import Diagonal
from natgrad.metric import Metric, metric_pytree
from natgrad.solvers import Solution
from natgrad.tree import Layout, raw_key
from natgrad.typing import Array, ArrayLike, Inputs, Key, Params, Statistics

# Columns of the dense matrix that are computed together.
_PRODUCTS_AT_ONCE = 64


class MatrixFreeStatistics(NamedTuple):
    """What is known before the batch.

    Attributes:
        diagonal: an estimate of the diagonal of F, [P].
        key: for `Sampled` labels, a raw key [2].
    """

    diagonal: Array
    key: Array


@final
@dataclasses.dataclass(frozen=True, eq=False)
class MatrixFree(Curvature):
    """F as an operator.

    Attributes:
        tolerance: of conjugate gradients, on |residual|/|v|; None for ten times the
            dtype's rounding.
        max_iterations: of conjugate gradients; None for 10 P.
    """

    tolerance: float | None = None
    max_iterations: int | None = None

    instantaneous: ClassVar[bool] = True

    def init(self, params: Params) -> MatrixFreeStatistics:
        """A zero diagonal and a key."""
        layout = Layout.of(params)
        return MatrixFreeStatistics(
            jnp.zeros(layout.size, layout.dtype), jax.random.PRNGKey(0)
        )

    def estimate(
        self,
        params: Params,
        inputs: Inputs,
        targets: Array | None = None,
        key: Key | None = None,
    ) -> MatrixFreeStatistics:
        """The preconditioner's diagonal; see `Curvature.estimate`."""
        self.labels.check(targets, key)
        layout = Layout.of(params)
        key = jax.random.PRNGKey(0) if key is None else key

        def visit(z, pull, example):
            scores, weights = self.labels.columns(self.model, z, example)
            signs = jax.random.rademacher(
                jax.random.fold_in(example.key, 1), weights.shape, z.dtype
            )
            column = jnp.tensordot(signs * jnp.sqrt(weights), scores, axes=1)
            return layout.ravel(pull(column)) ** 2

        # A preconditioner does not change the solution, so nothing flows through it.
        total, count = self.model.fold(
            jax.lax.stop_gradient(params),
            inputs,
            visit,
            lambda squares: jnp.sum(squares, axis=0),
            targets=targets if self.labels.needs_targets else None,
            key=key,
        )
        diagonal = jax.lax.stop_gradient(total / count.astype(layout.dtype))
        return MatrixFreeStatistics(diagonal, raw_key(key))

    def metric(
        self,
        statistics: Statistics,
        params: Params,
        inputs: Inputs = None,
        targets: Array | None = None,
    ) -> MatrixFreeMetric:
        """The operator of the batch `inputs`, which must be given."""
        return MatrixFreeMetric(
            Layout.of(params),
            self,
            params,
            inputs,
            targets if self.labels.needs_targets else None,
            statistics,
        )


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

    def mv(self, v: Params) -> Params:
        """F v: one forward pass, one jvp, one vjp."""
        return self._product()(v)

    def solution(self, v: Params, damping: ArrayLike = 0.0) -> Solution:
        """By conjugate gradients, preconditioned by the diagonal of F + λI."""
        layout = self.layout
        total = self.statistics.diagonal + jnp.asarray(damping, layout.dtype)
        # Without damping the iterates must stay in the range of F, so nothing scales.
        usable = (jnp.asarray(damping) > 0) & (total > 0)
        scale = jax.lax.stop_gradient(
            jnp.where(usable, 1 / jnp.where(total > 0, total, 1), 1)
        )
        value = solvers.conjugate_gradients(
            self._product(),
            v,
            damping,
            lambda v: layout.unravel(scale * layout.ravel(v)),
            layout,
            self.curvature.tolerance,
            self.curvature.max_iterations,
        )
        return Solution(value, jnp.zeros((), bool))

    def dense(self) -> Array:
        """[P, P] by P products, some at a time."""
        product = self._product()
        columns = jax.lax.map(
            lambda v: self.layout.ravel(product(self.layout.unravel(v))),
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

    def _product(self) -> Callable[[Params], Params]:
        """v -> F v, the network linearised once for all v."""
        model, labels = self.curvature.model, self.curvature.labels
        outputs, examples, total = model.whole(
            self.params, self.inputs, self.targets, self.statistics.key
        )
        z, pushforward = jax.linearize(outputs, self.params)
        pullback = jax.linear_transpose(pushforward, self.params)
        def product(v):
            v = jax.tree.map(lambda a, like: a.astype(like.dtype), v, self.params)
            u = labels.products(model, z, examples, total, pushforward(v))
            return pullback(u / total)[0]

        return product
