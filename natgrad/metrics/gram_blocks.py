"""The diagonal blocks of F = Bᵀ B, each in its own sample space."""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
from jaxtyping import Float

from natgrad.metrics.base import Metric
from natgrad.metrics.functions import Decomposition
from natgrad.metrics.gram import GramMetric, like_params
from natgrad.metrics.programs import one_program
from natgrad.solvers.base import Remainder, Solution
from natgrad.solvers.damping import (
    DampingLike,
    EntryDamping,
    LeafDamping,
    by_leaf,
    resolve_damping,
)
from natgrad.solvers.matrix_functions import Spectral
from natgrad.solvers.score_jacobian import Jacobian
from natgrad.tree import Layout, metric_pytree
from natgrad.typing import Array, Key, Params


@metric_pytree("layout")
class GramBlocksMetric(Metric):
    """The diagonal blocks F_b = B_bᵀ B_b of one batch, each in its own sample space.

    B_b are the columns of B that belong to block b. Parameters outside have F = 0.

    Attributes:
        layout: of the parameters.
        jacobian: B, [M, P], a piece for each block.
    """

    layout: Layout
    jacobian: Jacobian

    @property
    def blocks(self) -> list[GramMetric]:
        """F_b of each block, on the lists that `Jacobian.parts` gives."""
        return [GramMetric(apart.layout, apart) for apart in self.jacobian.apart()]

    def mv(self, v: Params) -> Params:
        """B_bᵀ (B_b v_b) for each block.

        Args:
            v: a tree like the parameters.
        """
        return like_params(
            self.layout,
            self.jacobian.params(
                list(map(GramMetric.mv, self.blocks, self.jacobian.parts(v)))
            ),
        )

    def solution(self, v: Params, damping: DampingLike = 0.0) -> Solution:
        """Of each block as of `GramMetric`; v/λ outside, and a fallback if λ = 0 there.

        Args:
            v: a tree like the parameters.
            damping: λ >= 0, in the units of F.
        """
        found = self._each(GramMetric.solution, damping, self.jacobian.parts(v))
        values, fallbacks, left, *_ = zip(*found, strict=True)
        dampings = by_leaf(resolve_damping(damping, self), v)
        zeros = [jnp.any(own == 0) for own in jax.tree.leaves(dampings)]
        singular = functools.reduce(jnp.logical_or, zeros)
        singular &= self._outside > 0
        remainder = None
        if None not in left:
            norms, inner = (jnp.stack(each) for each in zip(*left, strict=True))
            remainder = Remainder(jnp.linalg.norm(norms), jnp.sum(inner))

        def inverse(own):
            return jnp.where(own == 0, 0, 1 / jnp.where(own == 0, 1, own))

        value = self._joined(values, inverse, damping, v)
        fallback = functools.reduce(jnp.logical_or, fallbacks, singular)
        return Solution(value, fallback, remainder)

    def dense(self) -> Float[Array, "P P"]:
        """The blocks at their parameters' places, zero elsewhere."""
        total = jnp.zeros((self.layout.size,) * 2, self.layout.dtype)
        with jax.ensure_compile_time_eval():
            numbers = self.layout.split(jnp.arange(1.0 * self.layout.size))
            places = [
                np.concatenate([np.ravel(part).astype(int) for part in parts])
                for parts in self.jacobian.parts(numbers)
            ]
        for indices, block in zip(places, self.blocks, strict=True):
            total = total.at[np.ix_(indices, indices)].set(block.dense())
        return total

    def diagonal(self) -> Params:
        """That of Bᵀ B."""
        return self.jacobian.diagonal()

    def function(self, f: Spectral, v: Params, damping: DampingLike = 0.0) -> Params:
        """Each block as of `GramMetric`, f(λ) v outside; see `Metric.function`."""
        parts = self.jacobian.parts(v)
        blocks = [block.function for block in self.blocks]
        dampings = self._dampings(damping)
        found = [
            of(f, part, own)
            for of, part, own in zip(blocks, parts, dampings, strict=True)
        ]
        return self._joined(found, f, damping, v)

    def trace_of(self, f: Spectral, damping: DampingLike = 0.0) -> Float[Array, ""]:
        """Σ_b tr f(F_b), and f(λ) for each parameter outside; see `Metric.trace_of`."""

        def trace(block, own):
            return block.trace_of(f, own)

        return self._total(trace, f, damping)

    def diagonal_of(self, f: Spectral, damping: DampingLike = 0.0) -> Params:
        """That of each block, and f(λ) outside; see `Metric.diagonal_of`."""
        pairs = zip(self.blocks, self._dampings(damping), strict=True)
        found = [block.diagonal_of(f, own) for block, own in pairs]
        return self._joined(found, f, damping, self._ones())

    @one_program
    def sample(self, key: Key, damping: DampingLike) -> Params:
        """Of each block as of `GramMetric`, ε/√λ outside; see `Metric.sample`."""
        keys = jax.random.split(key, len(self.blocks) + 1)
        found = self._each(GramMetric.sample, damping, list(keys[1:]))
        noise = jax.random.normal(keys[0], (self.layout.size,), self.layout.dtype)
        draw = self.layout.unravel(noise)
        return self._joined(found, lambda own: own**-0.5, damping, draw)

    @one_program
    def logdet(self, damping: DampingLike = 0.0) -> Float[Array, ""]:
        """Σ_b log det(F_b + λI), and log λ for each parameter outside.

        Args:
            damping: λ >= 0, in the units of F.
        """
        return self._total(GramMetric.logdet, jnp.log, damping)

    @property
    def _outside(self) -> int:
        """The number of parameters in no block."""
        return self.layout.size - sum(block.layout.size for block in self.blocks)

    def largest_eigenvalues(self) -> list[Float[Array, ""]]:
        """Of each block as of `GramMetric`."""
        return [block.largest_eigenvalues()[0] for block in self.blocks]

    def decomposed(self) -> Decomposition:
        """Each block as of `GramMetric`; see `Metric.decomposed`."""
        found = [block.decomposed() for block in self.blocks]
        values = [each for one in found for each in one.values or ()]
        outside = self._outside + sum(one.outside for one in found)

        def function(f, v):
            pairs = zip(found, self.jacobian.parts(v), strict=True)
            parts = [one.function(f, part) for one, part in pairs]
            return self._joined(parts, f, 0.0, v)

        return Decomposition(values, outside, function)

    def leaf_groups(self) -> Sequence[Sequence[int]]:
        """The leaves of each block."""
        blocks = self.jacobian.blocks
        if blocks is None:
            return [[leaf] for leaf in range(len(self.layout.shapes))]
        return [block.leaves for block in blocks]

    def _ones(self) -> Params:
        return self.layout.split(jnp.ones(self.layout.size, self.layout.dtype))

    def _dampings(self, damping: DampingLike) -> list[Any]:
        """λ of each block; by layer one for each of its parts."""
        found = resolve_damping(damping, self)
        if not isinstance(found, LeafDamping | EntryDamping):
            return [found] * len(self.blocks)
        full = jax.tree.map(jnp.multiply, self._ones(), by_leaf(found, self._ones()))
        own = self.jacobian.parts(full)
        if isinstance(found, EntryDamping):
            return [EntryDamping(jnp.concatenate(list(map(jnp.ravel, p)))) for p in own]
        return [[part.ravel()[0] for part in parts] for parts in own]

    def _each(self, function: Callable, damping: DampingLike, operands: list) -> list:
        """function(block, its operand, its damping) of each block."""
        dampings = self._dampings(damping)
        return list(map(function, self.blocks, operands, dampings))

    def _total(
        self, of_block: Callable, f: Spectral, damping: DampingLike
    ) -> Float[Array, ""]:
        """The sum over blocks, and f(λ) for each parameter outside."""
        inside = list(map(of_block, self.blocks, self._dampings(damping)))
        total = functools.reduce(jnp.add, inside)
        if not self._outside:
            return total
        zeros = [
            jax.tree.map(jnp.zeros_like, p) for p in self.jacobian.parts(self._ones())
        ]
        rest = self._joined(zeros, f, damping, self._ones())
        return total + sum(jnp.sum(leaf) for leaf in jax.tree.leaves(rest))

    def _joined(
        self, values: Sequence[Any], f: Spectral, damping: DampingLike, v: Params
    ) -> Params:
        """The values of the blocks, and f(λ) v outside."""
        inside = self.jacobian.params(self.jacobian.parts(v))

        def of_leaf(x, v, inside, own):
            rest = v.astype(x.dtype) - inside
            return x + jnp.where(rest == 0, 0, rest * f(own))

        dampings = by_leaf(resolve_damping(damping, self), v)
        joined = jax.tree.map(
            of_leaf, self.jacobian.params(values), v, inside, dampings
        )
        return like_params(self.layout, joined)
