"""Layers without registration: what each parameter is used for, read off the jaxpr.

`capture(apply, params, inputs)` traces a model and follows every parameter through
reshapes, casts, slices, scans, branches and rematerialisation to the ops that use it.
Each use becomes rows: inputs X and output gradients G, whose Σ x gᵀ is the gradient.
When a model is captured it is checked that no parameter reaches the outputs around its
uses, and within `verify` that identity itself, so nothing can be missed silently.

    captured = capture(model.apply, params, inputs)         # traced
    z, pullback = captured.pull({"factors": Expand()}, params, inputs)
    gradient, statistics = pullback(cotangent)              # one vjp, twice if need be
    for block in captured.blocks:                           # static descriptions
        A = statistics[block.name]["factors"]["A"]          # [lead.., I(+1), I(+1)]
        G = statistics[block.name]["factors"]["G"]          # [lead.., O, O]
        V = block.to_matrix(jax.tree.leaves(gradient))      # [lead.., I(+1), O]

with lead = block.lead = (stack..., batch...): scans over layers, then heads, groups or
members. `captured.to_matrices(tree)` and `captured.from_matrices(matrices, tree)` do
all blocks at once. Statistics are raw sums over examples for the caller's cotangent.

What may be asked: `Expand`, `Reduce` (K-FAC's two readings of weight sharing),
`Gradient`, `Squares` (diagonal Fisher), `ProjectedSquares` (EKFAC), `PerExample` and
`RowFactors` (sample space). Each is a `Statistic`; write another by its three methods.

Policies, all of them shown by `report`:

- A parameter read both as W and as Wᵀ (tied decoders, reverse-mode derivatives) is one
  block with two roles. Its Fisher has two Kronecker terms, A ⊗ G and
  A_swapped ⊗ G_swapped, which are kept apart because their units differ.
- A parameter whose uses disagree otherwise, or are not understood, falls back to an
  exact block from per-example gradients, up to 1024 entries. Beyond, a vector keeps its
  diagonal, and a parameter of two axes or more is an error unless it is named in
  `declared` (path -> `DenseBlock()` or `DiagonalBlock()`).
- Statistics that need to know which rows belong to which example refuse, with the
  reason, where that could not be found out.
"""

from natgrad.layers.blocks import Block, DeclaredBlock, LayerBlock
from natgrad.layers.captured import Captured
from natgrad.layers.capturing import capture, verify
from natgrad.layers.declared import DenseBlock, DiagonalBlock
from natgrad.layers.embedding import LookupRows
from natgrad.layers.interactions import Dependence, dependence
from natgrad.layers.jaxprs import trace
from natgrad.layers.listing import report, table
from natgrad.layers.liveness import live_bytes
from natgrad.layers.muon import muon_dimension_numbers
from natgrad.layers.recombined import Recombined, recombinable
from natgrad.layers.rows import Rows
from natgrad.layers.statistics import (
    Expand,
    Gradient,
    PerExample,
    ProjectedSquares,
    Reduce,
    RowFactors,
    Squares,
    Statistic,
)
from natgrad.layers.views import NotCapturedError

__all__ = [
    "Block",
    "Captured",
    "DeclaredBlock",
    "DenseBlock",
    "Dependence",
    "DiagonalBlock",
    "Expand",
    "Gradient",
    "LayerBlock",
    "LookupRows",
    "NotCapturedError",
    "PerExample",
    "ProjectedSquares",
    "Recombined",
    "Reduce",
    "RowFactors",
    "Rows",
    "Squares",
    "Statistic",
    "capture",
    "dependence",
    "live_bytes",
    "muon_dimension_numbers",
    "recombinable",
    "report",
    "table",
    "trace",
    "verify",
]
