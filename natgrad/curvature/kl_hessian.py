"""The Fisher information as the Hessian of the KL divergence, and nothing else.

    F = ∂²/∂θ'² (1/N) Σ_n KL(p(· | θ, x_n) ‖ p(· | θ', x_n))  at θ' = θ      [P, P]

by `jax.hessian`. The slow definition that checks the others: P forward-over-reverse
passes of the batch. With `Sampled` or `Empirical` labels the divergence is that of
`Labels.divergence`, whose Hessian is the same score outer product. Memory P²; time
O(P) gradients.

Source: Amari & Nagaoka, Methods of Information Geometry (2000), section 3.2.
"""

from __future__ import annotations

import dataclasses
from typing import ClassVar, final

import jax
import jax.numpy as jnp

from natgrad.curvature.base import Curvature, require_memory
from natgrad.layers.compiled import compiled_method
from natgrad.metrics.matrices import DenseMetric
from natgrad.model.batch import Batch
from natgrad.tree import Layout
from natgrad.typing import Array, Inputs, Key, Params, Statistics


@final
@dataclasses.dataclass(frozen=True, eq=False)
class KLHessian(Curvature):
    """F as the Hessian of a divergence, a matrix [P, P]."""

    keeps_all_of_f: ClassVar[bool] = True

    def init(self, params: Params) -> Statistics:
        """Zeros [P, P]."""
        layout = Layout.of(params)
        require_memory(
            layout.size**2,
            layout.dtype,
            f"KLHessian's matrix of {layout.size} parameters",
            "KFAC, EKFAC, MatrixFree or a diagonal",
        )
        return jnp.zeros((layout.size, layout.size), layout.dtype)

    @compiled_method
    def estimate(
        self,
        params: Params,
        inputs: Inputs,
        targets: Array | None = None,
        key: Key | None = None,
    ) -> Statistics:
        """The Hessian [P, P]; see `Curvature.estimate`."""
        self.labels.check(targets, key)
        jax.eval_shape(self.init, params)  # may it be formed at all?
        layout = Layout.of(params)
        targets = targets if self.labels.needs_targets else None
        outputs, examples, total = self.model.whole(params, inputs, targets, key)
        z = outputs(params)

        def divergence(vector):
            z2 = outputs(layout.unravel(vector))
            return self.labels.mean_divergence(self.model, z, examples, total, z2)

        return jax.hessian(divergence)(layout.ravel(params)).astype(layout.dtype)

    def moments(self, given: Batch, found: Statistics | None = None) -> Statistics:
        """The estimate; centred labels raise, with which it is no mean."""
        if self.labels.centred:
            raise ValueError(
                "KLHessian with Centred() labels is of one batch only: over a data set "
                "use Dense, which is the same matrix."
            )
        return super().moments(given, found)

    def metric(
        self,
        statistics: Statistics,
        params: Params,
        inputs: Inputs = None,
        targets: Array | None = None,
    ) -> DenseMetric:
        """The matrix as a metric."""
        del inputs, targets
        return DenseMetric(Layout.of(params), statistics)
