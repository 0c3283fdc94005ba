"""The rows of groups of residuals in turn, as one batch of examples.

Curvatures by layers refuse several groups. Of group g a layer's part of F is A_g ⊗ G_g,
and means of x xᵀ and of g gᵀ over the rows of all groups would multiply the inputs of
one with the gradients of the other, weights of 1/100 and of 100 among them.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Iterator
from typing import Any

import jax
import jax.numpy as jnp

from natgrad import layers
from natgrad.layers import Dependence
from natgrad.model import Model, batch
from natgrad.model.residuals import Group
from natgrad.typing import Array, Params


@dataclasses.dataclass(frozen=True)
class GroupVisits:
    """The rows of several groups of residuals, one group after the other.

    Attributes and methods are those of `Visits`.
    """

    parts: tuple[Any, ...]
    columns: int
    total: Array

    @property
    def count(self) -> int:
        """N."""
        return sum(part.count for part in self.parts)

    def fold(self, visit: Any, collect: Any) -> Any:
        """As `Visits.fold`."""
        return _sum_of([part.fold(visit, collect) for part in self.parts])

    def stack(self, visit: Any) -> Any:
        """As `Visits.stack`."""
        stacks = [part.stack(visit) for part in self.parts]
        return jax.tree.map(lambda *leaves: jnp.concatenate(leaves), *stacks)

    def fold_columns(self, collect: Any, beside: Any = None) -> tuple[Any, Any]:
        """As `Visits.fold_columns`."""
        return _sum_of([part.fold_columns(collect, beside) for part in self.parts])


def rows_alone(group: Group, params: Params) -> bool:
    """Does each row of the residuals depend on its own point alone?

    Args:
        group: of residuals.
        params: θ.
    """
    if not jax.tree.leaves(group.points):
        return False
    found = layers.dependence(group.residual, params, group.points)
    return found is Dependence.NOTHING


def by_groups(
    groups: list[Group], model: Model, examples: batch.Example
) -> Iterator[tuple[Model, Any, batch.Example]]:
    """(model of a row, the points of the rows, the rows as examples) of each group.

    Args:
        groups: of residuals.
        model: of all of them.
        examples: the rows of all groups, one group after the other.
    """
    first = 0
    for group in groups:
        rows = slice(first, first := first + group.inputs[-1].size)
        own = jax.tree.map(lambda leaf, rows=rows: leaf[rows], examples)
        yield (
            dataclasses.replace(model, apply=group.row, in_axes=0),
            group.inputs,
            own,
        )


def _sum_of(sums: list[Any]) -> Any:
    return functools.reduce(lambda a, b: jax.tree.map(jnp.add, a, b), sums)
