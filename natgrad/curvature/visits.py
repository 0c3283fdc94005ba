"""Every example of a batch in turn: its output z_n, and cotangents pulled back from it.

    visit(z_n, ζ -> J_nᵀ ζ, example n)

Where an example's output depends on nothing but its own inputs, which
`natgrad.layers.dependence` finds out, the model is evaluated on each alone, and a
pullback costs what one example costs. Elsewhere J_n is that of the batch's joint law,
from one linearisation of the whole batch: by pulling cotangents that are 0 for all
examples but one, or, where the parameters are fewer than those pulls, by pushing the
parameters' unit vectors forward once.

Examples are taken in chunks, and score columns where those of one example are too
many, so that about 2^24 numbers are alive at once.
"""

from __future__ import annotations

import dataclasses
import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp
from jaxtyping import Float

from natgrad import layers, tree
from natgrad.curvature.columns import law_of_outputs, score
from natgrad.curvature.group_visits import GroupVisits, by_groups, rows_alone
from natgrad.curvature.labels import Labels
from natgrad.layers import Dependence
from natgrad.model import Model, batch
from natgrad.model.residuals import Residuals
from natgrad.solvers.spectral import HIGHEST
from natgrad.tree import Layout
from natgrad.typing import Array, Inputs, Params

# Numbers alive at once.
ELEMENTS = 2**24

Pull = Callable[[Array], Params]
Visit = Callable[[Array, Pull, batch.Example], Any]
Beside = Callable[[Array, batch.Example], tuple[Array, Array]]


@dataclasses.dataclass(frozen=True)
class Visits:
    """The examples of a batch.

    Attributes:
        model: the model.
        labels: whose score columns are pulled back.
        columns: K.
        total: Σ_n max_t w_nt.
        each: what is known of every example; arrays with a leading axis N.
        at: (visit, one example's part of `each`) -> what visit gives.
        pulled: numbers alive for one pullback.
        chunk_size: examples at once, or None.
    """

    model: Model
    labels: Labels
    columns: int
    total: Array
    each: Any
    at: Callable[[Visit, Any], Any]
    pulled: int
    chunk_size: int | None

    @property
    def count(self) -> int:
        """N."""
        return jax.tree.leaves(self.each)[0].shape[0]

    def chunk(self, width: int) -> int:
        """How many examples to take at once, of so many numbers each."""
        chunk = self.chunk_size or max(1, ELEMENTS // max(width, 1))
        return min(max(chunk, self.parts), self.count)

    @property
    def parts(self) -> int:
        """In how many parts the examples may lie on devices."""
        return tree.device_parts(self.count)

    def fold(self, visit: Visit, collect: Callable[[Any], Any]) -> Any:
        """Σ over chunks of examples of collect(what visit gave for the chunk)."""

        def visited(chunk):
            return collect(jax.vmap(lambda e: self.at(visit, e))(chunk))

        chunk = self._chunk(visit, 1)
        return tree.sum_over_chunks(visited, self.each, chunk, self.parts)

    def stack(self, visit: Visit) -> Any:
        """What visit, which may pull back K cotangents, gave for each example."""
        chunk = self._chunk(visit, self.columns)
        return tree.map_over_chunks(
            jax.vmap(lambda example: self.at(visit, example)),
            self.each,
            chunk,
            self.parts,
        )

    def fold_columns(
        self, collect: Callable[[Array, Array], Any], beside: Beside | None = None
    ) -> tuple[Any, Any]:
        """Σ over chunks of examples and columns of collect(g [M, P], w [M]).

        Args:
            collect: (J_nᵀ s_nk of the chunk, w_nk) -> what shall be summed.
            beside: (z_n, example n) -> (a number, a cotangent), summed over the
                examples too: the number, and what the cotangent is pulled back to, [P].

        Returns:
            the sum, and that of `beside`, () where there is none.
        """
        chunk = self.chunk(self.columns * self.pulled)
        at_once = min(self.columns, max(1, ELEMENTS // (chunk * self.pulled)))
        if self.labels.centred:  # means are taken column by column
            at_once = self.columns
        ks = jnp.arange(self.columns)

        def of_columns(ks, examples, beside):
            visit = functools.partial(self._pull_columns, ks, beside)
            g, w, more = jax.vmap(lambda e: self.at(visit, e))(examples)
            more = jax.tree.map(lambda leaf: jnp.sum(leaf, axis=0), more)
            return collect(g.reshape(-1, g.shape[-1]), w.reshape(-1)), more

        def of_examples(examples):
            sums = of_columns(ks[:at_once], examples, beside)
            if at_once == self.columns:
                return sums
            others = tree.sum_over_chunks(
                lambda ks: of_columns(ks, examples, None)[0], ks[at_once:], at_once
            )
            return jax.tree.map(jnp.add, sums[0], others), sums[1]

        return tree.sum_over_chunks(of_examples, self.each, chunk, self.parts)

    def _pull_columns(self, ks, beside, z, pull, example):
        """J_nᵀ s_nk [K, P] and w_nk of some columns, and what stands beside them."""
        found = self.labels.each(self.model, z, example)
        cotangents = jax.vmap(lambda k: score(self.model, found, k, z))(ks)
        cotangents = tree.varying_like(cotangents, z)  # constants are not yet
        flat = jax.vmap(lambda cotangent: _flat(pull(cotangent)))
        if beside is None:
            return flat(cotangents), found.weights[ks], ()
        value, cotangent = beside(z, example)
        g = flat(jnp.concatenate([cotangents, cotangent[None]]))
        return g[:-1], found.weights[ks], (value, g[-1])

    def _chunk(self, visit: Visit, pulls: int) -> int:
        """How many examples to visit at once, with so many pullbacks each."""
        first = jax.tree.map(lambda leaf: leaf[0], self.each)
        visited = jax.eval_shape(lambda e: self.at(visit, e), first)
        given = sum(leaf.size for leaf in jax.tree.leaves(visited))
        return self.chunk(max(pulls * self.pulled, given))


def visits(model: Model, labels: Labels, given: batch.Batch) -> Visits | GroupVisits:
    """The examples of a batch.

    Args:
        model: the model.
        labels: over which labels.
        given: the batch. Its targets are handed to visit, and its key, folded with the
            example's index.
    """
    params, inputs, targets, key = given
    program = layers.trace(model.raw_outputs, params, inputs)
    law = law_of_outputs(model)
    examples, total = law.examples(program.shape, inputs, targets, key)
    columns = labels.count(model, program.shape, examples)
    made = functools.partial(Visits, model, labels, columns, total)
    if isinstance(model.apply, Residuals):
        groups = model.apply.groups(params, inputs)
        if all(rows_alone(group, params) for group in groups):
            each = by_groups(groups, model, examples)
            parts = [made(*_alone(of, params, *rows)) for of, *rows in each]
            return GroupVisits(tuple(parts), columns, total)
    found = layers.dependence(model.apply_real, params, inputs, model.in_axes, program)
    if found is Dependence.NOTHING:
        return made(*_alone(model, params, inputs, examples))
    pulls = columns * examples.weights.shape[0]
    return made(*_together(model, params, inputs, examples, pulls))


def _alone(
    model: Model, params: Params, inputs: Inputs, examples: batch.Example
) -> tuple:
    """The last fields of `Visits`: each example through the model by itself."""
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
    return (batched, examples), at, size, model.chunk_size


def _together(
    model: Model,
    params: Params,
    inputs: Inputs,
    examples: batch.Example,
    pulls: int,
) -> tuple:
    """The same from the Jacobian of the whole batch, with so many pulls in all."""

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
        return (rows, examples), at, size, model.chunk_size
    alive = size + sum(jnp.size(leaf) for leaf in jax.tree.leaves(vjp))
    limit = max(1, ELEMENTS // alive)
    chunk_size = model.chunk_size and min(model.chunk_size, limit)
    return (rows, examples), at, alive, chunk_size


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


def _flat(params: Params) -> Float[Array, " P"]:
    return Layout.of(params).ravel(params)
