"""Where the examples of a batch come from, and how cotangents are pulled back.

See `natgrad.curvature.visits`.
"""

from __future__ import annotations

import dataclasses
from collections.abc import Callable
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp

from natgrad import tree
from natgrad.model import Model, batch
from natgrad.model.residuals import Group
from natgrad.solvers.spectral import HIGHEST
from natgrad.tree import Layout
from natgrad.typing import Array, Inputs, Params

# Numbers alive at once.
ELEMENTS = 2**24

Pull = Callable[[Array], Params]
Visit = Callable[[Array, Pull, batch.Example], Any]


class Source(NamedTuple):
    """Where examples come from: see the attributes of `Visits` of these names."""

    each: Any
    at: Callable[[Visit, Any], Any]
    pulled: int
    chunk_size: int | None


def alone(
    model: Model, params: Params, inputs: Inputs, examples: batch.Example
) -> Source:
    """Each example through the model by itself."""
    batched, rebuild = batch.split_inputs(inputs, model.in_axes)

    def at(visit, each):
        rows, example = each

        def output(params):
            z = model.apply_real(params, rebuild(rows))[0]
            return z.astype(tree.working_dtype(z))

        z, vjp = jax.vjp(output, params)
        example = model.labelled(z, example)
        return visit(z, lambda cotangent: vjp(cotangent)[0], example)

    size = Layout.of(params).size
    return Source((batched, examples), at, size, model.chunk_size)


def of_groups(
    groups: list[Group], model: Model, params: Params, examples: batch.Example
) -> list[Source]:
    """The rows of each group through its residual by themselves."""
    sources, first = [], 0
    for group in groups:
        rows = slice(first, first := first + group.inputs[-1].size)
        own = jax.tree.map(lambda leaf, rows=rows: leaf[rows], examples)
        of_group = dataclasses.replace(model, apply=group.row, in_axes=0)
        sources.append(alone(of_group, params, group.inputs, own))
    return sources


def together(
    model: Model,
    params: Params,
    inputs: Inputs,
    examples: batch.Example,
    pulls: int,
) -> Source:
    """Rows of the whole batch's Jacobian, of which so many would be pulled back."""

    def outputs(params):
        return model.outputs(params, inputs)

    count, size = examples.weights.shape[0], Layout.of(params).size
    z, vjp = jax.vjp(outputs, params)
    # One row of outputs without inputs serves any number of targets.
    rows = jnp.arange(count) if z.shape[0] == count else jnp.zeros(count, jnp.int32)
    forward = _jacobian(outputs, params, z, pulls)

    def pull_from(row):
        """A cotangent of this row of the outputs, pulled back."""

        def pulled(cotangent):
            cotangent = cotangent.astype(z.dtype)
            if forward is None:
                return vjp(jnp.zeros_like(z).at[row].set(cotangent))[0]
            of_row, axes = forward[:, row], z.ndim - 1
            flat = jnp.tensordot(of_row, cotangent, axes, precision=HIGHEST)
            return Layout.of(params).unravel(flat)

        return pulled

    def at(visit, each):
        row, example = each
        example = model.labelled(z[row], example)
        return visit(z[row], pull_from(row), example)

    if forward is not None:
        return Source((rows, examples), at, size, model.chunk_size)
    alive = size + sum(jnp.size(leaf) for leaf in jax.tree.leaves(vjp))
    limit = max(1, ELEMENTS // alive)
    chunk_size = model.chunk_size and min(model.chunk_size, limit)
    return Source((rows, examples), at, alive, chunk_size)


def _jacobian(outputs: Callable, params, z: Array, pulls: int) -> Array | None:
    """∂z/∂θ, [P, N, ...], where P is less than the pulls, and it is small enough."""
    layout = Layout.of(params)
    if layout.size >= pulls or layout.size * z.size > ELEMENTS:
        return None
    try:
        _, push = jax.linearize(outputs, params)
    except TypeError:  # a custom_vjp has no forward mode
        return None
    unit = jnp.eye(layout.size, dtype=layout.dtype)
    alive = z.size + sum(jnp.size(leaf) for leaf in jax.tree.leaves(push))
    at_once = max(1, min(layout.size, ELEMENTS // alive))
    return jax.lax.map(
        lambda vector: push(layout.unravel(vector)), unit, batch_size=at_once
    )
