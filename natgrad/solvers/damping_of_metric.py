"""Dampings that the metric decides: by its eigenvalues, by its diagonal.

    ConditionNumber(κ)     λ_b = max s / (κ − 1), s the eigenvalues of each block F_b
    ScaleInvariant(c)      Λ = c diag F

(max s + λ)/(min s + λ) <= κ holds for the first whatever min s >= 0 is, with equality
where F_b is singular, as it is with fewer score columns than parameters. Where min s is
above 0 a smaller λ would do, and to find it takes all eigenvalues. Max s alone takes
products with F_b, by Lanczos's method, and comes from inside.

With the second, parameters in other units get the same step in these units, and c is a
number without units: (F + c D)⁻¹ = D^-½ (D^-½ F D^-½ + cI)⁻¹ D^-½, D = diag F. Where D
is 0 the parameter has no effect, and its step is 0. `natgrad.scaling.Marquardt` has the
same with the largest diagonal so far.

Source: for c diag F, Marquardt (1963), An algorithm for least-squares estimation of
nonlinear parameters, and Sorella, Casula & Rocca (2007), Weak binding between two
aromatic rings, for stochastic reconfiguration.
"""

from __future__ import annotations

from collections.abc import Sequence
from typing import Any, final

import jax
import jax.core
import jax.numpy as jnp
import numpy as np
from jaxtyping import PyTree

from natgrad.solvers.damping import EntryDamping, LeafDamping, OfMetric
from natgrad.tree import metric_pytree
from natgrad.typing import Array, ArrayLike


@final
@jax.tree_util.register_pytree_node_class
class ConditionNumber(OfMetric):
    """λ_b = max s / (κ − 1): F_b + λ_b I has a condition number of at most κ.

    Blocks are those of `natgrad.Relative`; one whose eigenvalues are all 0 has the
    largest λ of the others.

    Attributes:
        scale: 1/(κ − 1), which a number multiplies that an optimizer adapts.
    """

    scale: Any

    def __init__(self, cap: ArrayLike):
        """For a cap κ.

        Args:
            cap: κ > 1, a number without units.

        Raises:
            ValueError: it is known, and is not above 1 or not finite.
        """
        if (
            not isinstance(cap, jax.core.Tracer)
            and not 1 < float(np.asarray(cap)) < np.inf
        ):
            raise ValueError(
                "ConditionNumber(cap) caps max s / min s, which is at least 1: give a "
                f"finite number above 1, such as 1e6, got {cap!r}."
            )
        self.scale = 1 / (cap - 1)

    def __repr__(self) -> str:
        return f"ConditionNumber({1 + 1 / self.scale:.12g})"

    def tree_flatten(self) -> tuple[tuple[ArrayLike], None]:
        """(its number, nothing that is static)."""
        return (self.scale,), None

    @classmethod
    def tree_unflatten(cls, static: None, numbers: Sequence[Any]) -> ConditionNumber:
        """The inverse of `tree_flatten`.

        Args:
            static: nothing.
            numbers: 1/(κ − 1), or what stands for it.
        """
        del static
        made = object.__new__(cls)
        (made.scale,) = numbers
        return made

    def of(self, metric: Any) -> Any:
        """max s / (κ − 1) of each block; see `OfMetric.of`."""
        largest = metric.largest_eigenvalues()
        count = len(metric.layout.shapes)
        return relative_to_largest(metric.leaf_groups(), largest, count, self.scale)


@final
@metric_pytree()
class ScaleInvariant(OfMetric):
    """Λ = c diag F.

    `KFAC` and `EKFAC` refuse it: their eigenbases are not those of F + Λ. `Gram` writes
    out the rows of B for it, M·P numbers, and for functions f(F + Λ) forms F.

    Attributes:
        scale: c >= 0, a number without units.
    """

    scale: ArrayLike

    def of(self, metric: Any) -> EntryDamping:
        """c diag F; see `OfMetric.of`."""
        diagonal = metric.layout.ravel(metric.diagonal())
        return EntryDamping(jnp.asarray(self.scale) * jnp.maximum(diagonal, 0))


def relative_to(
    groups: Sequence[Sequence[int]], diagonal: PyTree[Array], scale: Array
) -> Array | LeafDamping:
    """`Relative(scale)` for blocks that are groups of leaves.

    Args:
        groups: the numbers of the leaves of each block.
        diagonal: of F, a tree like the parameters.
        scale: c.
    """
    leaves = jax.tree.leaves(diagonal)
    index = _owners(groups, len(leaves))
    sums, sizes = jnp.stack(list(map(jnp.sum, leaves))), [leaf.size for leaf in leaves]
    traces = jnp.zeros(max(index) + 1, scale.dtype)
    traces = traces.at[np.array(index)].add(sums.astype(scale.dtype))
    means = traces / np.bincount(index, sizes).astype(scale.dtype)
    values = scale * jnp.where(traces > 0, means, jnp.sum(traces) / sum(sizes))
    return LeafDamping(values, index) if len(values) > 1 else values[0]


def relative_to_largest(
    groups: Sequence[Sequence[int]], largest: Sequence[Array], count: int, scale: Array
) -> Array | LeafDamping:
    """c times the largest eigenvalue of each block, or of F where a block's is 0.

    Args:
        groups: as of `relative_to`.
        largest: of each of them.
        count: of leaves of the parameters.
        scale: c.
    """
    index = _owners(groups, count)
    own = jnp.zeros(max(index) + 1, scale.dtype)
    owners = np.array([index[group[0]] for group in groups])
    own = own.at[owners].max(jnp.stack(list(largest)).astype(scale.dtype))
    values = scale * jnp.where(own > 0, own, jnp.max(own))
    return LeafDamping(values, index) if len(values) > 1 else values[0]


def _owners(groups: Sequence[Sequence[int]], count: int) -> tuple[int, ...]:
    """For each leaf the number of its block; groups that share a leaf are one."""
    owner = list(range(count))
    for group in groups:
        joined = {owner[leaf] for leaf in group}
        owner = [min(joined) if each in joined else each for each in owner]
    return tuple(map(int, np.unique(owner, return_inverse=True)[1]))
