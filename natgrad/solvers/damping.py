"""Damping by layer: F + Λ with a diagonal Λ that is constant in each leaf.

    1e-3                                   λ of all parameters, Λ = λI
    {"encoder": 1e-3, "decoder": 1e-2}     a number for each leaf of the parameters, or
                                           for a part of their tree (a prefix of it)
    ByPath({"layers/0": 1e-3, "": 1e-2})   by the beginning of a leaf's path
    Relative(1e-2)                         λ_b = c tr F_b / P_b of each block b of F
    ConditionNumber(1e6), ScaleInvariant(1e-2)      `natgrad.solvers.damping_of_metric`

Inside, one number for all stays a number; anything else is a `LeafDamping`, or an
`EntryDamping` where each parameter has its own λ.
"""

from __future__ import annotations

import abc
import itertools
from collections.abc import Mapping, Sequence
from typing import Any, TypeAlias, final

import jax
import jax.core
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float, PyTree

from natgrad import tree
from natgrad.tree import Layout, metric_pytree
from natgrad.typing import Array, ArrayLike


@final
@metric_pytree()
class ByPath:
    """λ by path: of the beginnings of a leaf's path that are named, the longest counts.

        ByPath({"layers/0": 1e-3, "layers/0/bias": 1e-1, "": 1e-2})

    Paths are those of `natgrad.tree.paths(params)`. Names count as wholes, so that
    "layers/1" does not begin "layers/10"; "" begins every path.

    Attributes:
        values: the beginning of a path -> λ >= 0, in the units of F.
    """

    values: Mapping[str, ArrayLike]


class OfMetric(abc.ABC):
    """A damping that F decides. As a tree it is one number, which multiplies it."""

    @abc.abstractmethod
    def of(self, metric: Any) -> Any:
        """λ, shape (), or what else `resolve_damping` gives.

        Args:
            metric: F.
        """


@final
@metric_pytree()
class Relative(OfMetric):
    """λ_b = c tr F_b / P_b: c times the mean of the diagonal of each block of F.

    Blocks are the layers of Kronecker-factored metrics, the groups of leaves of
    block-diagonal ones, the leaves of diagonal ones, and all of F otherwise; blocks
    that read parts of one leaf count as one. Where tr F_b is 0, as for parameters that
    no layer reads, it is c tr F / P. F is that of the solve, or of the refresh.

    Attributes:
        scale: c >= 0, a number without units.
    """

    scale: ArrayLike

    def of(self, metric: Any) -> Any:
        """c tr F_b / P_b of each block; see `OfMetric.of`."""
        return metric.relative_damping(self.scale)


@final
@metric_pytree("index", "zeros")
class LeafDamping:
    """Λ, with a structure that says which leaves have one λ, under jit too.

    Attributes:
        values: the different λ.
        index: for each leaf of the parameters the number of its λ.
        zeros: the numbers of those that are known to be 0.
    """

    values: Float[Array, " n"]
    index: tuple[int, ...]
    zeros: tuple[int, ...] = ()


@final
@metric_pytree()
class EntryDamping:
    """Λ with a λ for each parameter.

    Attributes:
        values: the diagonal of Λ, [P], in `ravel_pytree` order, in the units of F. 0 is
            for parameters whose row of F is 0 too.
    """

    values: Float[Array, " P"]


# What `damping=` may be.
DampingLike: TypeAlias = (
    ArrayLike | ByPath | OfMetric | LeafDamping | EntryDamping | PyTree
)


# What it is inside.
Resolved: TypeAlias = Array | LeafDamping | EntryDamping


def resolve_damping(damping: DampingLike, of: Any) -> Any:
    """λ, shape (), or a `LeafDamping` or `EntryDamping`.

    Args:
        damping: what was given.
        of: the metric F that is damped; or the layout of the parameters, for which an
            `OfMetric` stays what it is.

    Raises:
        ValueError: a λ is no scalar, or is known and negative or not finite; a leaf has
            no λ, or a λ no leaf.
    """
    layout = getattr(of, "layout", of)
    done = isinstance(damping, LeafDamping | EntryDamping)
    if jax.tree_util.all_leaves([damping]):
        check_damping(damping)
    elif not done:
        numbers = _numbers(damping)
        if not isinstance(damping, OfMetric):
            damping = _by_leaf(numbers, layout)
    found = jax.tree.map(lambda number: jnp.asarray(number, layout.dtype), damping)
    return found.of(of) if isinstance(found, OfMetric) and of is not layout else found


def is_by_layer(damping: DampingLike | None) -> bool:
    """Is it a damping by layer, and no single number?

    Args:
        damping: what was given; None for none is no number either.
    """
    return not jax.tree_util.all_leaves([damping])


def damping_of_step(own: DampingLike, given: DampingLike | None, layout: Layout) -> Any:
    """What an update is damped by, as `resolve_damping` gives it for a layout.

    Args:
        own: the transformation's.
        given: in its place; None for none. A number multiplies what is by layer.
        layout: of the parameters.
    """
    # Equal numbers by layer are by layer, too, and become one when they are resolved.
    multiplies = is_by_layer(own) and not is_by_layer(given)
    own = resolve_damping(own, layout)
    if given is None:
        return own
    given = resolve_damping(given, layout)
    return jax.tree.map(lambda number: given * number, own) if multiplies else given


def entries(
    damping: DampingLike, of: Any, leaves: Sequence[int] | None = None
) -> Array:
    """λ, shape (), or where leaves differ the diagonal of Λ over them.

    Args:
        damping: what was given.
        of: as for `resolve_damping`.
        leaves: their numbers, in the order of the diagonal; None for all.
    """
    found = _known(resolve_damping(damping, of))
    if isinstance(found, EntryDamping) and leaves is not None:
        layout = getattr(of, "layout", of)
        return found.values[np.concatenate([layout.positions(i) for i in leaves])]
    if isinstance(found, EntryDamping):
        return found.values
    if not isinstance(found, LeafDamping):
        return found
    leaves = range(len(found.index)) if leaves is None else leaves
    if len({found.index[leaf] for leaf in leaves}) == 1:
        return found.values[found.index[leaves[0]]]
    sizes = getattr(of, "layout", of).sizes
    parts = [jnp.full(sizes[leaf], found.values[found.index[leaf]]) for leaf in leaves]
    return jnp.concatenate(parts)


def by_leaf(damping: Resolved, like: PyTree) -> PyTree[Array]:
    """A tree with the λ of each leaf, or those of its entries.

    Args:
        damping: as `resolve_damping` gives it.
        like: a tree like the parameters.
    """
    structure, damping = jax.tree.structure(like), _known(damping)
    if isinstance(damping, EntryDamping):
        return Layout.of(like).split(damping.values)
    if not isinstance(damping, LeafDamping):
        return structure.unflatten([damping] * structure.num_leaves)
    return structure.unflatten([damping.values[i] for i in damping.index])


def mean_damping(damping: Resolved, layout: Layout) -> Float[Array, ""]:
    """tr Λ / P.

    Args:
        damping: as `resolve_damping` gives it.
        layout: of the parameters.
    """
    if isinstance(damping, EntryDamping):
        return jnp.mean(damping.values)
    if not isinstance(damping, LeafDamping):
        return damping
    shares = np.bincount(damping.index, layout.sizes) / layout.size
    return jnp.sum(jnp.asarray(shares, layout.dtype) * damping.values)


def _known(damping: Any) -> Any:
    if isinstance(damping, OfMetric):
        raise ValueError(
            f"natgrad.{type(damping).__name__} is relative to F, and here λ has to be "
            "known without F: give numbers, in a tree or in natgrad.ByPath."
        )
    return damping


def _numbers(damping: Any) -> dict[str, Any]:
    """The λ by their paths, floats where they are known."""
    paths, leaves = tree.paths(damping), jax.tree.leaves(damping)
    numbers: dict[str, Any] = dict(zip(paths, leaves, strict=True))
    numbers = dict(damping.values) if isinstance(damping, ByPath) else numbers
    for path, number in numbers.items():
        known = _value(number)
        if known is None:
            raise ValueError(
                f"damping must be finite numbers, at least 0, got {number!r} for "
                f"{path!r}: give one for each leaf, or for a part of the tree."
            )
        numbers[path] = known
    return numbers


def check_damping(damping: Any) -> None:
    """Raise a ValueError for a single damping that is known to be impossible.

    Args:
        damping: what was given as one number.
    """
    if _value(damping) is None:
        raise ValueError(
            f"damping must be finite and at least 0, got {damping!r}: it is added to "
            "the eigenvalues of a positive semi-definite matrix."
        )


def _value(number: Any) -> Any:
    """λ, a float where it is known; None where it is not a number, finite and >= 0."""
    traced = isinstance(number, jax.core.Tracer)
    try:
        known = 0.0 if traced else float(number)
    except (TypeError, ValueError):
        return None
    if np.shape(number) != () or not 0 <= known < np.inf:
        return None
    return number if traced else known


def _by_leaf(numbers: dict[str, Any], layout: Layout) -> Any:
    """The λ of each leaf, by the longest beginning of its path."""
    skeleton = layout.treedef.unflatten(layout.sizes)
    paths = tree.paths(skeleton)
    starts = [
        ["", *itertools.accumulate(path.split("/"), "{}/{}".format)] for path in paths
    ]
    over = [[start for start in each if start in numbers] for each in starts]
    bare = [path for path, found in zip(paths, over, strict=True) if not found]
    unused = sorted(set(numbers).difference(*over))
    if bare or (unused and not tree.has_placeholders(skeleton)):
        raise ValueError(
            f"damping has {f'no λ for {bare}' if bare else f'λ for {unused}'}, and the "
            f"parameters are {paths}: give a tree with a number for each, or for parts "
            "of it, or natgrad.ByPath({'beginning of a path': λ, '': λ of the others})."
        )
    chosen = [numbers[found[-1]] for found in over]
    keys = [each if isinstance(each, float) else id(each) for each in chosen]
    names = list(dict.fromkeys(keys))
    values = [jnp.asarray(chosen[keys.index(name)], layout.dtype) for name in names]
    if len(values) == 1:
        return values[0]
    zeros = tuple(i for i, name in enumerate(names) if name == 0)
    return LeafDamping(jnp.stack(values), tuple(map(names.index, keys)), zeros)
