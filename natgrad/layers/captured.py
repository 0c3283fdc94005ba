"""Captured: a traced model, its blocks, and one pass that gives their statistics."""

from __future__ import annotations

import collections
import dataclasses
from collections.abc import Callable, Mapping, Set
from typing import Any

import jax
import jax.numpy as jnp

from natgrad import tree
from natgrad.layers.blocks import Block, DeclaredBlock, LayerBlock
from natgrad.layers.embedding import LookupRows
from natgrad.layers.examples import Examples, Path
from natgrad.layers.interactions import Dependence, dependence
from natgrad.layers.interpreter import Interpreter, walked
from natgrad.layers.proof import Proof
from natgrad.layers.rows import Rows
from natgrad.layers.statistics import Statistic
from natgrad.layers.tap import Tap, Work
from natgrad.layers.uses import Use
from natgrad.model import batch
from natgrad.typing import Apply, Array, Inputs, Params

# Statistics by name, for all blocks alike or chosen block by block.
StatisticRequest = Mapping[str, Statistic] | Callable[[Block], Mapping[str, Statistic]]


@dataclasses.dataclass(frozen=True, eq=False)
class Captured:
    """A traced model with a tap at every use of its parameters.

    Valid for parameters and inputs of the shapes it was traced with.

    Attributes:
        blocks: what was found; static.
        uncovered: names of parameters that the outputs do not depend on, or that some
            entries of which are read by no block.
        proof: how Σ x gᵀ was checked against the gradient.
        precision: relative rounding that the model's coarsest type may show.
    """

    blocks: tuple[Block, ...]
    uncovered: tuple[str, ...]
    proof: Proof
    precision: float
    _apply: Apply
    _in_axes: Any
    _traced: Any
    _structure: Any
    _examples: Examples
    _marked: Set[int]

    @property
    def proven(self) -> str:
        """How Σ x gᵀ was checked against the gradient, in words."""
        return self.proof.text

    def outputs(
        self, params: Params, inputs: Inputs, statistics: Mapping, probes: Mapping
    ) -> Any:
        """apply(params, inputs), with taps whose probes are given."""
        live, taps = {}, {}
        stacked: dict[Path, set[str]] = collections.defaultdict(set)
        for block in self.blocks:
            if not isinstance(block, LayerBlock) or not statistics[block.name]:
                continue
            asked = statistics[block.name]
            context = {name: s.context(block) for name, s in asked.items()}
            live[block.name] = (probes[block.name], context)
            for use in block.uses:
                taps[use.path] = Tap(use, block.name, _maker(block, asked))
                for scan, _ in use.view.stack:
                    stacked[scan].add(block.name)
        walk = Interpreter(self._examples, taps, stacked, self._marked)
        results = walked(walk, self._traced, params, inputs, live)
        return jax.tree.unflatten(self._structure, results)

    def changed(
        self, params: Params, inputs: Inputs, change: Mapping[str, Callable]
    ) -> Any:
        """apply(params, inputs), with the ops of some blocks' uses replaced.

        Args:
            params: the parameters.
            inputs: the inputs.
            change: block's name -> (op, use) -> another op on the same operands.
        """
        taps = {
            use.path: Tap(use, block.name, change[block.name])
            for block in self.blocks
            if isinstance(block, LayerBlock) and block.name in change
            for use in block.uses
        }
        live = dict.fromkeys(change, (None, None))
        results = walked(
            Interpreter(self._examples, taps), self._traced, params, inputs, live
        )
        return jax.tree.unflatten(self._structure, results)

    def pull(
        self, wanted: StatisticRequest, params: Params, inputs: Inputs
    ) -> tuple[Any, Callable[[Any], tuple[Params, dict]]]:
        """One forward pass, and a pullback that can be called more than once.

        Args:
            wanted: name -> statistic, or a function from a block to such a mapping.
            params: the parameters.
            inputs: the inputs.

        Returns:
            z = apply(params, inputs), and pullback(cotangent of z) -> (gradient of
            ⟨z, cotangent⟩ in the parameters, {block's name: {name: statistic}}).
        """
        choose = wanted if callable(wanted) else lambda _: wanted
        asked = {block.name: dict(choose(block)) for block in self.blocks}
        probes = {
            block.name: {n: s.zero(block) for n, s in asked[block.name].items()}
            for block in self.blocks
            if isinstance(block, LayerBlock)
        }
        probes = tree.varying_like(probes, params)  # summed where gradients are
        z, vjp = jax.vjp(
            lambda params, probes: self.outputs(params, inputs, asked, probes),
            params,
            probes,
        )

        def pullback(cotangent):
            gradient, found = vjp(cotangent)
            for block in self.blocks:
                if isinstance(block, DeclaredBlock) and asked[block.name]:
                    rows = self._declared_rows(block, params, inputs, cotangent)
                    found[block.name] = {
                        name: s.of(block, rows, s.context(block))
                        for name, s in asked[block.name].items()
                    }
            finished = {
                block.name: {
                    name: s.finish(block, found[block.name][name])
                    for name, s in asked[block.name].items()
                }
                for block in self.blocks
            }
            return gradient, finished

        return z, pullback

    def to_matrices(self, params: Params) -> dict[str, Array]:
        """A tree like the parameters as each block's [stack.., batch.., I (+1), O]."""
        leaves = jax.tree.leaves(params)
        return {block.name: block.to_matrix(leaves) for block in self.blocks}

    def from_matrices(self, matrices: Mapping[str, Array], params: Params) -> Params:
        """`params` with the entries that the matrices hold replaced by them."""
        leaves, structure = jax.tree.flatten(params)
        for block in self.blocks:
            leaves = block.from_matrix(matrices[block.name], leaves)
        return jax.tree.unflatten(structure, leaves)

    def _declared_rows(self, block: Block, params, inputs, cotangent) -> Rows:
        """Per-example gradients of a declared block, through the model once more."""
        leaves, structure = jax.tree.flatten(params)

        def outputs(mine, inputs):
            full = list(leaves)
            for index, leaf in zip(block.leaves, mine, strict=True):
                full[index] = leaf
            return self._apply(jax.tree.unflatten(structure, full), inputs)

        own = [leaves[index] for index in block.leaves]
        found = dependence(self._apply, params, inputs, self._in_axes)
        pulled = _alone if found is Dependence.NOTHING else _together
        mine = pulled(outputs, own, inputs, self._in_axes, cotangent)
        flat = [g.reshape((g.shape[0], -1)).astype(block.dtype) for g in mine]
        each = jnp.concatenate(flat, axis=1)
        g = each.T[:, :, None, None] if block.batch else each[:, None, :]
        return Rows(jnp.ones((*g.shape[:-1], 1), g.dtype), g)


def _alone(outputs, own, inputs, in_axes, cotangent) -> list[Array]:
    """Gradients [N, ...] of leaves, one example through the model."""
    batched, rebuild = batch.split_inputs(inputs, in_axes)

    def gradient(example, cotangent):
        _, pull = jax.vjp(lambda mine: outputs(mine, rebuild(example)), own)
        return pull(jax.tree.map(lambda g: g[None], cotangent))[0]

    return jax.vmap(gradient)(batched, cotangent)


def _together(outputs, own, inputs, in_axes, cotangent) -> list[Array]:
    """Gradients [N, ...] of leaves, where an example alone gives another output."""
    del in_axes
    _, pull = jax.vjp(lambda mine: outputs(mine, inputs), own)
    cotangent = jax.tree.map(jnp.asarray, cotangent)

    def gradient(n):
        return pull(
            jax.tree.map(lambda g: jnp.zeros_like(g).at[n].set(g[n]), cotangent)
        )

    count = jax.tree.leaves(cotangent)[0].shape[0]
    return jax.lax.map(gradient, jnp.arange(count))[0]


def _maker(block: LayerBlock, asked: Mapping[str, Statistic]):
    """make(op, use): what the taps of this block's uses do."""

    def make(op, use: Use) -> Work:
        def statistic(operands, scale, g, context):
            def of(use, operands, g):
                rows = use.rows(operands, scale, g.astype(block.dtype))
                if use.path in block.swapped:
                    rows = dataclasses.replace(rows, x=rows.g, g=rows.x, swapped=True)
                if block.shift is not None:
                    rows = dataclasses.replace(rows, bias=use.path in block.shifted)
                if isinstance(rows, LookupRows):
                    rows = dataclasses.replace(rows, dense=not block.diagonal_inputs)
                return {n: s.of(block, rows, context[n]) for n, s in asked.items()}

            if all(s.additive(block) for s in asked.values()):
                return use.summed(of, operands, g)
            return of(use, operands, g)

        return Work(op, statistic)

    return make
