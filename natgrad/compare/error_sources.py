"""Where K-FAC's error comes from: between layers, or within one.

    ‖F − K‖² = ‖F − blockdiag F‖² + Σ_b ‖F_b − A_b ⊗ G_b‖²

in Frobenius norms, for K-FAC's factors of exact labels. Beside each block's term stands
the least that any A ⊗ G could make of it, that of `natgrad.curvature.KFOC`. All comes
from the rows of F = Bᵀ B, without a matrix [P, P] where M < P:

    ‖F‖ = ‖B Bᵀ‖,     ⟨F_b, A ⊗ G⟩ = ⟨G, Σ_m V_mᵀ A V_m⟩,     ‖A ⊗ G‖ = ‖A‖ ‖G‖
"""

from __future__ import annotations

import dataclasses
import functools
import math

import jax
import jax.numpy as jnp

from natgrad.compare.figures import Budget
from natgrad.curvature import KFAC, KFOC, Gram
from natgrad.curvature.kfoc import outputs_moment
from natgrad.layers import NotCapturedError
from natgrad.metrics.gram import GramMetric
from natgrad.metrics.gram_blocks import GramBlocksMetric
from natgrad.model import Model
from natgrad.model.errors import DoesNotFitError
from natgrad.typing import Array, Inputs, Params


@dataclasses.dataclass(frozen=True)
class ErrorSource:
    """A part of F and what is missed of it, all as shares of ‖F‖².

    Attributes:
        name: of the block; "between layers", or "in all".
        square: ‖F_b‖².
        kfac: ‖F_b − A ⊗ G‖² of K-FAC.
        nearest: the same of the nearest A ⊗ G.
    """

    name: str
    square: float
    kfac: float
    nearest: float


def error_sources(
    model: Model, params: Params, inputs: Inputs, budget: Budget
) -> tuple[ErrorSource, ...]:
    """Each block, what lies between the layers, and all of it.

    Args:
        model: the statistical model.
        params: θ.
        inputs: a batch of inputs.
        budget: the memory that the rows and their products may take.

    Returns:
        Nothing where that is too little, or where the layers do not show their rows.
    """
    try:
        rows = jax.eval_shape(Gram(model).at, params, inputs).jacobian
        if rows.blocks is None or _bytes(rows) > budget.memory:
            return ()
        whole, *terms = jax.tree.map(float, _terms(model, params, inputs))
    except (DoesNotFitError, NotCapturedError):
        return ()
    scale = 1 / whole if whole else math.nan
    blocks = [
        ErrorSource(block.name, *(max(scale * term, 0.0) for term in each))
        for block, each in zip(rows.blocks, terms, strict=True)
    ]
    left = max(1 - sum(block.square for block in blocks), 0.0)
    parts = [*blocks, ErrorSource("between layers", left, left, left)]
    sums = [sum(getattr(part, name) for part in parts) for name in _SHARES]
    return (*parts, ErrorSource("in all", *sums))


def in_words(sources: tuple[ErrorSource, ...]) -> list[str]:
    """A sentence, where K-FAC's error is more than a tenth of ‖F‖."""
    if not sources or not sources[-1].kfac > 0.01:
        return []
    *_, between, whole = sources
    parts = (between.kfac, whole.kfac - whole.nearest, whole.nearest - between.kfac)
    outside, choice, form = (f"{part / whole.kfac:.0%}" for part in parts)
    return [
        f"K-FAC's matrix is off by {math.sqrt(whole.kfac):.0%} of ‖F‖. Of the square "
        f"of that {outside} lies between layers, which gram_blocks misses too, "
        f"{choice} in its choice of A ⊗ G, of which kfoc is the nearest to F, and "
        f"{form} in what no A ⊗ G of a layer can hold."
    ]


_SHARES = ("square", "kfac", "nearest")


def _bytes(rows) -> float:
    """Of the rows, written out where P < M, and of their smaller product."""
    samples, size = rows.size, rows.layout.size
    own = sum(leaf.size for leaf in jax.tree.leaves(rows))
    numbers = samples * size + size**2 if size < samples else samples**2
    return (own + numbers) * jnp.dtype(rows.layout.dtype).itemsize


@functools.partial(jax.jit, static_argnames="model")
def _terms(model: Model, params: Params, inputs: Inputs) -> list:
    """‖F‖², and for each block ‖F_b‖² and the squared errors of K-FAC and KFOC."""
    gram = Gram(model)
    rows = gram.jacobian(gram.estimate(params, inputs), params, inputs, None)
    forms = [form(model).estimate(params, inputs) for form in (KFAC, KFOC)]
    nearly = zip(*(zip(*factors, strict=True) for factors in forms), strict=True)
    blocks = GramBlocksMetric(rows.layout, rows).blocks
    terms: list = [GramMetric(rows.layout, rows).square()]
    for block, piece, factors in zip(blocks, rows.pieces, nearly, strict=True):
        square = block.square()
        terms.append([square, *(square + _excess(piece, a, g) for a, g in factors)])
    return terms


def _excess(piece, a: Array, g: Array) -> Array:
    """‖A ⊗ G‖² − 2 ⟨F_b, A ⊗ G⟩."""
    own = 1 if a.ndim < g.ndim else 2  # a diagonal has no lead axes
    a, g = a.reshape((-1, *a.shape[a.ndim - own :])), g.reshape((-1, *g.shape[-2:]))
    norms = jnp.sum(a**2, axis=tuple(range(1, a.ndim))) * jnp.sum(g**2, axis=(1, 2))
    return jnp.sum(norms) - 2 * jnp.sum(g * outputs_moment(piece, a))
