"""The figures of one part of the parameters: all of them, or one block.

A is the approximation, F the reference, λ the damping; d_A = (A + λI)⁻¹ g and d_F are
steps of all parameters, of which a block sees its own entries. Inside a block A and F
stand for their diagonal blocks. With μ_i the eigenvalues of (F + λI)⁻¹(A + λI),

    KL(N(0, (F + λI)⁻¹) ‖ N(0, (A + λI)⁻¹)) = ½ Σ_i (μ_i − 1 − log μ_i)

is the divergence, in nats, between the posteriors that F and A stand for (Laplace's
approximation with prior precision λ), and Σ_i a_i/(a_i + λ) over the eigenvalues a_i of
A its effective dimension: the directions that outweigh the damping (MacKay 1992).
"""

from __future__ import annotations

import dataclasses
import math
from collections.abc import Mapping
from typing import Any, SupportsFloat

import numpy as np

from natgrad import layers
from natgrad.layers import Captured, NotCapturedError
from natgrad.model import Model
from natgrad.tree import Layout, paths
from natgrad.typing import Inputs, Params


@dataclasses.dataclass(frozen=True)
class Figures:
    """An approximation A of F on one part of the parameters.

    A figure that is not known is NaN. Without matrices, figures are means over random
    probes, whose standard errors stand in `standard_errors`; then the spectral error
    and the extreme ratios, from Krylov spaces, are bounds from inside.

    Attributes:
        name: of the block, "" for all parameters.
        parameters: how many.
        relative_error: ‖A − F‖_F / ‖F‖_F.
        spectral_error: ‖A − F‖₂ / ‖F‖₂.
        trace_ratio: tr A / tr F.
        divergence: KL(N(0, (F + λI)⁻¹) ‖ N(0, (A + λI)⁻¹)), nats.
        step_cosine: between d_A and d_F.
        step_norm_ratio: |d_A| / |d_F|.
        lowest_ratio: the smallest eigenvalue μ of (F + λI)⁻¹(A + λI).
        median_ratio: the middle one.
        highest_ratio: the largest.
        effective_dimension: Σ a/(a + λ).
        exact_effective_dimension: the same of F.
        standard_errors: figure -> its standard error, where it is an estimate.
    """

    name: str
    parameters: int
    relative_error: float
    spectral_error: float
    trace_ratio: float
    divergence: float
    step_cosine: float
    step_norm_ratio: float
    lowest_ratio: float
    median_ratio: float
    highest_ratio: float
    effective_dimension: float
    exact_effective_dimension: float
    standard_errors: Mapping[str, float] = dataclasses.field(default_factory=dict)


@dataclasses.dataclass(frozen=True)
class Spectrum:
    """Eigenvalues, largest first, thinned.

    Attributes:
        ranks: values[i] is about the ranks[i]-th largest; fractions where estimated.
        values: eigenvalues.
    """

    ranks: tuple[float, ...]
    values: tuple[float, ...]


def vector(tree: Params) -> np.ndarray:
    """A tree of parameters as one vector in float64, [P]."""
    return np.asarray(Layout.of(tree).ravel(tree), np.float64)


def step_figures(step: np.ndarray, exact: np.ndarray) -> dict[str, Any]:
    """Cosine and ratio of lengths of two steps."""
    own, other = np.linalg.norm(step), np.linalg.norm(exact)
    cosine = ratio(step @ exact, own * other)
    return {"step_cosine": cosine, "step_norm_ratio": ratio(own, other)}


def ratio(numerator: SupportsFloat, denominator: SupportsFloat) -> float:
    """numerator / denominator, NaN where the denominator is 0."""
    return float(numerator) / float(denominator) if float(denominator) else math.nan


@dataclasses.dataclass(frozen=True, eq=False)
class Part:
    """Some of the parameters: all, or a block.

    A block is a layer as `natgrad.layers` reads it, weight and bias together. Blocks
    that share a parameter are one. A model that cannot be read has a block a parameter.
    """

    name: str  # "" for all parameters
    positions: np.ndarray  # of its entries in the vector [P], ascending

    size = property(lambda part: len(part.positions))


def captured(model: Model, params: Params, inputs: Inputs) -> Captured | None:
    """The layers of the model, None where it cannot be read."""
    try:
        return layers.capture(model.apply_real, params, inputs, in_axes=model.in_axes)
    except NotCapturedError:
        return None


def parts(model: Model, params: Params, inputs: Inputs) -> list[Part]:
    """All parameters as one part, then the blocks."""
    layout, names = Layout.of(params), paths(params)
    read = captured(model, params, inputs)
    leaves = [set(block.leaves) for block in read.blocks] if read else []
    groups = _merged([*leaves, *({leaf} for leaf in range(len(names)))])
    blocks = [
        Part(
            _title([names[leaf] for leaf in group]),
            np.concatenate([layout.positions(leaf) for leaf in group]),
        )
        for group in groups
    ]
    return [Part("", np.arange(layout.size)), *blocks]


def _merged(sets: list[set[int]]) -> list[list[int]]:
    """The connected components, in the order of the leaves."""
    components: list[set[int]] = []
    for members in sets:
        touching = [c for c in components if c & members]
        components = [c for c in components if not c & members]
        components.append(members.union(*touching))
    return sorted(sorted(component) for component in components)


def _title(names: list[str]) -> str:
    """'dense/bias + kernel' for 'dense/bias' and 'dense/kernel'."""
    first, *others = names
    prefix = first.rpartition("/")[0] + "/"
    return " + ".join([first, *(name.removeprefix(prefix) for name in others)])
