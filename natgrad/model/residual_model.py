"""Groups of residuals as one model: weighted least squares.

    loss(θ) = ½ Σ_g w_g (1/N_g) Σ_n |r_g(θ, x_gn)|²

for named groups g (an equation inside, values on an edge, data), each with points,
their number N_g and a weight of its own. The outputs are all M numbers of all groups,

    z_m = √(M w_g / N_g) r_gn,     loss = (1/M) Σ_m ½ z_m²,

one example each under a normal law of variance 1 around z whose label is 0. So the
Fisher information is the Gauss-Newton matrix of the loss,

    F = Σ_g (w_g / N_g) J_gᵀ J_g,     J_g = ∂r_g/∂θ.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Mapping

import jax
import jax.numpy as jnp
from jaxtyping import Float

from natgrad.families.normal_mean import NormalMean
from natgrad.model import batch
from natgrad.model.model import Model
from natgrad.model.residuals import Residual, Residuals
from natgrad.typing import Array, ArrayLike, Inputs, Key, Params


def least_squares(
    residuals: Mapping[str, Residual],
    weights: Mapping[str, ArrayLike] | None = None,
    *,
    chunk_size: int | None = None,
) -> LeastSquares:
    """One model of several groups of residuals, with exact Gauss-Newton steps.

        model = ng.least_squares({"interior": equation, "edge": values}, {"edge": 100})
        batch = {"interior": x, "edge": x_edge}
        loss, grads = jax.value_and_grad(model.loss)(params, batch)
        updates, state = tx.update(grads, state, params, inputs=batch, ...)

    The loss is ½ Σ_g w_g mean_n |r_g|², a mean over the points of a group of squared
    norms of its residuals. The entry "weights" of a batch replaces weights for it, so
    that they can change from step to step.

    Args:
        residuals: name -> residual(params, points) -> [N_g, ...], row n that of point
            n. `points` is any tree of arrays [N_g, ...], or None for a residual of the
            parameters alone, such as a prior's. A residual whose rows depend on other
            points too is right, and slower.
        weights: name -> w_g >= 0, or [N_g], of each point; 1 where a name is missing.
        chunk_size: as for `Model`.

    Returns:
        The model; its inputs are a mapping from names to points.

    Raises:
        ValueError: for groups that are no functions, none or called "weights"; for
            weights of unknown groups, negative ones and NaN. When the model is called,
            for points of missing or unknown groups, none in a group, residuals of wrong
            shapes, and weights of wrong shapes; under jit, where values are not known,
            the outputs are NaN where a weight is negative or NaN.
    """
    apply = Residuals(residuals, {} if weights is None else weights)
    return LeastSquares(apply, SquaredError(), in_axes=None, chunk_size=chunk_size)


@dataclasses.dataclass(frozen=True)
class SquaredError(NormalMean):
    """The normal law of variance 1, its constant −½ log 2π left out of `log_prob`."""

    def log_prob(self, z: Array, y: Array) -> Array:
        """Σ −½ (y − z)²."""
        return -0.5 * jnp.sum((jnp.asarray(y, z.dtype) - z) ** 2)


class LeastSquares(Model):
    """A model of groups of residuals, whose labels are 0 and need not be given."""

    def loss(
        self, params: Params, inputs: Inputs, targets: ArrayLike | None = None
    ) -> Float[Array, ""]:
        """½ Σ_g w_g mean_n |r_g|².

        Args:
            params: θ.
            inputs: name -> points.
            targets: what the M outputs should be; None for 0.

        Raises:
            ValueError: as `least_squares` says.
        """
        return super().loss(params, inputs, self._zeros(params, inputs, targets))

    def log_prob(
        self, params: Params, inputs: Inputs, targets: ArrayLike | None = None
    ) -> Float[Array, " M"]:
        """−½ z² of each of the M outputs; arguments are those of `loss`."""
        return super().log_prob(params, inputs, self._zeros(params, inputs, targets))

    def losses(self, params: Params, inputs: Inputs) -> dict[str, Float[Array, ""]]:
        """name -> ½ mean_n |r_g|², without weights; arguments are those of `loss`."""
        parts = self.residuals.evaluate(params, inputs)
        return {name: jnp.sum(r**2) / (2 * len(r)) for name, (r, _) in parts.items()}

    def with_frozen(self, model_params: Params) -> Model:
        """As for `Model`."""
        apply = self.residuals.restricted(model_params)
        return dataclasses.replace(self, apply=apply)

    def examples(
        self,
        params: Params,
        inputs: Inputs,
        targets: ArrayLike | None = None,
        key: Key | None = None,
    ) -> tuple[batch.Example, Float[Array, ""]]:
        """As for `Model`, with labels 0 where none are given."""
        targets = self._zeros(params, inputs, targets)
        return super().examples(params, inputs, targets, key)

    @property
    def residuals(self) -> Residuals:
        """The groups.

        Raises:
            ValueError: `apply` was replaced by another function.
        """
        if not isinstance(self.apply, Residuals):
            raise ValueError(
                "This model's apply was replaced: it has no groups of residuals left. "
                "Build one with natgrad.least_squares."
            )
        return self.apply

    def _zeros(self, params, inputs, targets):
        if targets is not None:
            return targets
        z = jax.eval_shape(self.outputs, params, inputs)
        return jnp.zeros(z.shape, z.dtype)
