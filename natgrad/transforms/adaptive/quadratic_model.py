"""The quadratic model of the loss, and its minimum over two directions a group.

    M(d) = ⟨g, d⟩ + ½ ⟨d, (F + Λ + η I) d⟩

is minimised over d = α u + μ d₀, u a direction, d₀ the update before: two equations in
two unknowns. Λ is λI, or diagonal by layer. With the parameters in G groups, such as
layers, each group has an α and a μ of its own, 2 G equations in 2 G unknowns: F couples
the groups, which an approximation of it without blocks off the diagonal knows nothing
of.

Source: as for `natgrad.transforms.adaptive.learning_rates`.
"""

from __future__ import annotations

import dataclasses
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float

from natgrad.control_flow import symmetric_solve
from natgrad.solvers.damping import EntryDamping, LeafDamping, Resolved, by_leaf
from natgrad.solvers.spectral import HIGHEST, damped_reciprocal, eigh
from natgrad.transforms.adaptive.quadratic_forms import Forms, Groups, grouped_inner
from natgrad.typing import Array, ArrayLike, Params


class Minimum(NamedTuple):
    """The step d where M is least.

    Attributes:
        usable: is it downhill, and finite?
        step: d in the dtypes of the parameters; 0 where not usable.
        coefficients: (α, μ) of each group, [G, 2].
        decrease: −M(d), in nats.
        undamped: −M(d) without Λ.
    """

    usable: Bool[Array, ""]
    step: Params
    coefficients: Float[Array, "G 2"]
    decrease: Float[Array, ""]
    undamped: Float[Array, ""]


@dataclasses.dataclass(frozen=True)
class QuadraticModel:
    """M of one batch at θ, over the steps d = α u + μ d₀ of each of G groups.

    Attributes:
        forms: the quadratic forms of F between the parts in groups.
        groups: the leaves of each group.
        gradient: g.
        damping: λ, or Λ as `natgrad.solvers.damping.resolve_damping` gives it.
        weight_decay: η.
    """

    forms: Forms
    groups: Groups
    gradient: Params
    damping: Resolved
    weight_decay: ArrayLike

    def minimum(self, direction: Params, previous: Params) -> Minimum:
        """M at its minimum over α u + μ d₀ of each group.

        Where the equations are singular (d₀ = 0, or parallel to u) the coefficients are
        those of least norm, each direction scaled to M's curvature 1. Without any u the
        model is not minimised, and M is 0.

        Args:
            direction: u, shaped like the parameters.
            previous: d₀, shaped like the parameters.

        Returns:
            The minimum, its step in the dtypes of d₀.
        """
        fisher = self.forms((direction, previous))
        dtype = fisher.dtype
        gram, slopes = self._gram_and_slopes(direction, previous, dtype)
        undamped_matrix = fisher + jnp.asarray(self.weight_decay, dtype) * gram
        matrix = undamped_matrix + self._damped(gram, direction, previous)
        finite = jnp.isfinite(jnp.sum(slopes) + jnp.sum(matrix))
        coefficients = _least_norm_solution(matrix, slopes, finite)
        decrease = _decrease(matrix, slopes, coefficients)
        undamped = _decrease(undamped_matrix, slopes, coefficients)
        squares = jnp.diagonal(gram)[::2]  # |u|² of each group
        usable = finite & (decrease > 0) & (jnp.sum(squares) > 0)
        coefficients, decrease, undamped = (
            jnp.where(usable, value, 0) for value in (coefficients, decrease, undamped)
        )
        coefficients = coefficients.reshape(-1, 2)
        step = self._combine(usable, coefficients, direction, previous)
        return Minimum(usable, step, coefficients, decrease, undamped)

    def _gram_and_slopes(
        self, direction: Params, previous: Params, dtype: jnp.dtype
    ) -> tuple[Float[Array, "2G 2G"], Float[Array, " 2G"]]:
        """Inner products of (u, d₀) of each group, [2 G, 2 G], and with g, [2 G]."""
        blocks = self._blocks(direction, previous, direction, previous, dtype)
        slopes = [
            grouped_inner(self.gradient, v, self.groups).astype(dtype)
            for v in (direction, previous)
        ]
        slopes = jnp.stack(slopes, -1).reshape(-1)
        return jax.scipy.linalg.block_diag(*blocks), slopes

    def _damped(self, gram: Array, direction: Params, previous: Params) -> Array:
        """⟨v, Λ w⟩ of all v, w of (u, d₀) of each group, [2 G, 2 G]."""
        if not isinstance(self.damping, LeafDamping | EntryDamping):
            return jnp.asarray(self.damping, gram.dtype) * gram
        own = by_leaf(self.damping, direction)
        u_image, d_image = (
            jax.tree.map(jnp.multiply, own, v) for v in (direction, previous)
        )
        blocks = self._blocks(direction, previous, u_image, d_image, gram.dtype)
        return jax.scipy.linalg.block_diag(*blocks)

    def _blocks(
        self, u: Params, d: Params, u_image: Params, d_image: Params, dtype: jnp.dtype
    ) -> Float[Array, "G 2 2"]:
        """Inner products of (u, d) of each group with symmetric images of them."""

        def inner(a, b):
            return grouped_inner(a, b, self.groups).astype(dtype)

        mixed = inner(u, d_image)
        products = [inner(u, u_image), mixed, mixed, inner(d, d_image)]
        return jnp.stack(products, -1).reshape(len(self.groups), 2, 2)

    def _combine(
        self, usable: Array, coefficients: Array, direction: Params, previous: Params
    ) -> Params:
        """α u + μ d₀ of each group in the dtypes of d₀, or 0."""
        us, structure = jax.tree.flatten(direction)
        ds, steps = jax.tree.leaves(previous), list(us)
        for group, (alpha, mu) in zip(self.groups, coefficients, strict=True):
            for i in group:
                u, d = us[i].astype(ds[i].dtype), ds[i]
                step = alpha.astype(d.dtype) * u + mu.astype(d.dtype) * d
                steps[i] = jnp.where(usable, step, 0)
        return jax.tree.unflatten(structure, steps)


def _least_norm_solution(
    matrix: Float[Array, "2G 2G"], slopes: Float[Array, " 2G"], finite: Bool[Array, ""]
) -> Float[Array, " 2G"]:
    """The minimum c of ⟨slopes, c⟩ + ½ ⟨c, matrix c⟩; 0 where not finite.

    All directions are scaled to length 1, so that rounding shows in the correlations.
    """
    diagonal = jnp.diagonal(matrix)
    present = diagonal > 0
    root = jnp.sqrt(jnp.where(present, diagonal, 1))
    correlations = matrix / (root[:, None] * root[None])
    identity = jnp.eye(len(root), dtype=matrix.dtype)
    correlations = jnp.where(finite, correlations, identity)
    right_side = jnp.where(present & finite, slopes / root, 0)

    def solve(right_side):
        values, vectors = eigh(jax.lax.stop_gradient(correlations))  # ascending
        top = jnp.maximum(values[-1], 0)
        reciprocal, _ = damped_reciprocal(values, 0, largest=top)
        parts = jnp.matmul(vectors.T, right_side, precision=HIGHEST)
        return jnp.matmul(vectors, reciprocal * parts, precision=HIGHEST)

    solution = symmetric_solve(
        lambda x: jnp.matmul(correlations, x, precision=HIGHEST), right_side, solve
    )
    return -solution / root


def _decrease(matrix: Array, slopes: Array, coefficients: Array) -> Array:
    """−⟨slopes, c⟩ − ½ ⟨c, matrix c⟩."""
    slope = jnp.vdot(slopes, coefficients, precision=HIGHEST)
    product = jnp.matmul(matrix, coefficients, precision=HIGHEST)
    return -slope - jnp.vdot(coefficients, product, precision=HIGHEST) / 2
