"""The charts of each family: a table of the library's, and `register` for a user's own.

    ATLASES[family type](family) -> Atlas

A subclass has the charts of the class it derives from, unless it has a line of its own.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax.numpy as jnp
import numpy as np

from natgrad import families
from natgrad.families.base import ExponentialFamily, Family
from natgrad.families.product import ExponentialProduct
from natgrad.families.transformed import ExponentialTransformed
from natgrad.geometry import atlas, atlas_counts, atlas_positive, atlas_vectors
from natgrad.geometry.coordinates import Atlas, Chart, Map, inside, whole_space
from natgrad.typing import Array

__all__ = [
    "Atlas",
    "Chart",
    "Map",
    "chart_of",
    "charts",
    "inside",
    "register",
    "whole_space",
]


def register(cls: type) -> Callable:
    """Registers the charts and domains of a class of families, as a decorator.

    Args:
        cls: the class of families; its subclasses use the same atlas.

    Returns:
        A decorator of a function from a family of this class to its `Atlas`.
    """

    def keep(make: Callable[[Any], Atlas]) -> Callable[[Any], Atlas]:
        ATLASES[cls] = make
        _known_charts.cache_clear()
        return make

    return keep


def charts(family: Family) -> dict[str, Chart]:
    """The charts that are known for a family.

    Args:
        family: an exponential family.

    Returns:
        Name -> chart: "natural", "expectation", then the source charts.

    Raises:
        ValueError: the family is not an `ExponentialFamily`.
    """
    if not isinstance(family, ExponentialFamily):
        raise ValueError(
            f"{family!r} was given; expected an ExponentialFamily, whose natural and "
            "expectation parameters the charts are. A family under other parameters "
            "is the exponential family in a source chart."
        )
    return dict(_known_charts(family))


def chart_of(family: ExponentialFamily, chart: Chart | str) -> Chart:
    """A chart by its name.

    Args:
        family: whose charts are searched.
        chart: the name, or a chart, which is returned as it is.

    Returns:
        The chart.

    Raises:
        ValueError: the family has no chart of that name.
    """
    if isinstance(chart, Chart):
        return chart
    known = charts(family)
    if chart not in known:
        raise ValueError(
            f"chart {chart!r} was given; {family!r} has the charts "
            f"{', '.join(map(repr, known))}. Make another with geometry.Chart."
        )
    return known[chart]


@functools.lru_cache(maxsize=256)
def _known_charts(family: ExponentialFamily) -> tuple[tuple[str, Chart], ...]:
    for cls in type(family).__mro__:
        if cls in ATLASES:
            known = ATLASES[cls](family)
            break
    else:
        known = Atlas(_unknown(family, "natural"), _unknown(family, "expectation"))
    identity = lambda x: x
    natural = Chart(
        "natural", identity, identity, known.natural, family.mean, known.gauge
    )
    mean = Chart(
        "expectation", family.natural, family.mean, known.mean, None, known.gauge
    )
    return tuple((chart.name, chart) for chart in (natural, mean, *known.sources))


def _unknown(family: ExponentialFamily, name: str) -> Map:
    def margins(x: Array) -> Array:
        del x
        raise ValueError(
            f"The {name} domain of {family!r} is not known, so no step can promise to "
            "stay in it: give it with geometry.register, or step in a Chart with "
            "margins."
        )

    return margins


def _product(family: ExponentialProduct) -> Atlas:
    """The blocks' margins, joined, and their gauges, block by block."""
    ends = np.cumsum(family.sizes)[:-1].tolist()
    split = lambda x: jnp.split(x, ends, axis=-1)

    def joined(name: str) -> Map:
        blocks = [charts(block)[name] for block in family.families]
        if all(chart.margins is whole_space for chart in blocks):
            return whole_space
        return lambda x: jnp.concatenate(
            [c.margins(part) for c, part in zip(blocks, split(x), strict=True)]
        )

    gauges = [charts(block)["natural"].gauge for block in family.families]

    def gauge(v: Array) -> Array:
        parts = zip(gauges, split(v), strict=True)
        return jnp.concatenate(
            [jnp.zeros_like(part) if g is None else g(part) for g, part in parts], -1
        )

    none = all(g is None for g in gauges)
    return Atlas(joined("natural"), joined("expectation"), (), None if none else gauge)


def _transformed(family: ExponentialTransformed) -> Atlas:
    """The charts of the family of x: the parameters are the same."""
    natural, mean, *sources = charts(family.family).values()
    return Atlas(natural.margins, mean.margins, tuple(sources), natural.gauge)


ATLASES: dict[type, Callable[[Any], Atlas]] = {
    families.Bernoulli: atlas.bernoulli_atlas,
    families.Beta: atlas_positive.proportions_atlas,
    families.Binomial: atlas_counts.binomial_atlas,
    families.Categorical: atlas.categorical_atlas,
    families.Dirichlet: atlas_positive.proportions_atlas,
    families.Exponential: atlas.exponential_atlas,
    families.Gamma: atlas.gamma_atlas,
    families.Geometric: atlas_counts.failures_atlas,
    families.InverseGamma: atlas_positive.inverse_gamma_atlas,
    families.InverseGaussian: atlas_positive.inverse_gaussian_atlas,
    families.MultivariateNormal: atlas_vectors.multivariate_normal_atlas,
    families.MultivariateNormalDiag: atlas_vectors.diagonal_normal_atlas,
    families.NegativeBinomial: atlas_counts.failures_atlas,
    families.Normal: atlas.normal_atlas,
    families.Poisson: atlas.poisson_atlas,
    families.VonMises: atlas_vectors.von_mises_atlas,
    families.Weibull: atlas_positive.weibull_atlas,
    ExponentialProduct: _product,
    ExponentialTransformed: _transformed,
}
