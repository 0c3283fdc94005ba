"""Where rows of B come from, a chunk of examples at a time."""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from natgrad import tree
from natgrad.curvature.layer_rows import captured_layers
from natgrad.curvature.visits import Visits, visits
from natgrad.layers import RowFactors
from natgrad.model import batch
from natgrad.model.batch import Batch
from natgrad.solvers.score_jacobian import Jacobian
from natgrad.tree import Layout


class RowSource(NamedTuple):
    """Where the rows of a chunk come from.

    Attributes:
        each: what is known of every example; leaves [N, ...].
        rows: (some of them, which blocks) -> B of these examples.
    """

    each: Any
    rows: Callable[..., Jacobian]

    @property
    def count(self) -> int:
        """N."""
        return jax.tree.leaves(self.each)[0].shape[0]

    @classmethod
    def of(cls, of: Any, given: Batch, captured: bool) -> RowSource:
        """Taps on the layers of a chunk, or pullbacks example by example."""
        model, layout = of.model, Layout.of(given.params)
        if not captured:
            found, visit = visits(model, of.labels, given), of.visit(layout)
            assert isinstance(found, Visits)  # no groups of residuals
            total = of.over_devices(found.total)

            def written(each):
                visited = jax.vmap(lambda example: found.at(visit, example))(each)
                return of.written_rows(layout, total, *visited)

            return cls(found.each, written)
        rows, rebuild = batch.split_batch(given.inputs, model.in_axes)
        z = jax.eval_shape(model.outputs, given.params, given.inputs)
        keys = batch.keys(model.family, given.key, z, z.shape[0])
        total = of.over_devices(model.examples(given.params, given.inputs)[1])

        def tapped(each, wanted=lambda _: True):
            rows, targets, keys = each
            part = Batch(given.params, rebuild(rows), targets, keys)
            return of.layer_rows(part, captured_layers(of, part), wanted, total)

        return cls((rows, given.targets, keys), tapped)


def part_shapes(source: RowSource) -> list:
    """The parts of each piece of B, as shapes.

    Args:
        source: of the rows.
    """

    def pulled(each):
        rows = dataclasses.replace(source.rows(each), centre=None)
        ones = jnp.ones(rows.size, rows.layout.dtype)
        return [own.pull(ones) for own in rows.apart()]

    return jax.eval_shape(pulled, source.each)


def kept_factors(source: RowSource, size: int) -> Jacobian:
    """The columns of B of the layers whose factors are kept, not centred.

    Args:
        source: of the rows.
        size: examples at once.
    """

    def make(each):
        found = source.rows(each, RowFactors.are_cheaper)
        return dataclasses.replace(found, centre=None)

    def axis(leaf):  # of the examples: index [L, N, T], x [L, N, T, I], g [K, L, N, ..]
        return max(1, leaf.ndim - 3)

    shapes, structure = jax.tree.flatten(jax.eval_shape(make, source.each))
    leaves = tree.map_over_chunks(
        lambda each: [
            jnp.moveaxis(leaf, axis(leaf), 0) for leaf in jax.tree.leaves(make(each))
        ],
        source.each,
        size,
        tree.device_parts(source.count),
    )
    pairs = zip(leaves, shapes, strict=True)
    ordered = [jnp.moveaxis(leaf, 0, axis(shape)) for leaf, shape in pairs]
    return jax.tree.unflatten(structure, ordered)
