"""Statistical manifolds: exponential families as dually flat spaces.

    p = Point(Normal(), "mean/sd", jnp.array([0.0, 1.0]))    a law, by its coordinates
    v = natural_gradient(loss, p)                           a tangent, F⁻¹ ∇L
    q = retract(-v, 0.1)                                    a law again, always
    q.to("expectation"), fisher(q), distance(p, q)

Points, tangents and covectors know their chart, and are never mixed up.
"""

from natgrad.geometry import check
from natgrad.geometry.atlases import Atlas, Chart, charts, register, whole_space
from natgrad.geometry.connections import (
    EXPONENTIAL,
    LEVI_CIVITA,
    MIXTURE,
    amari_chentsov,
    christoffel,
    christoffel_contraction,
    lowered_christoffel,
)
from natgrad.geometry.distance_closed_forms import register_distance
from natgrad.geometry.distance_normal import (
    known_covariance_distance,
    known_mean_distance,
)
from natgrad.geometry.domain import retract_into_domain
from natgrad.geometry.duality import (
    DualPotential,
    Potential,
    Projection,
    e_projection,
    m_projection,
)
from natgrad.geometry.fisher_rao import distance, shooting_distance
from natgrad.geometry.geodesics import (
    Logarithm,
    e_geodesic,
    exponential,
    logarithm,
    m_geodesic,
    transported,
)
from natgrad.geometry.information import fisher, flat, gradient, inner, norm, sharp
from natgrad.geometry.points import Covector, Point, Tangent
from natgrad.geometry.steps import (
    Proximal,
    flow_step,
    geodesic_retract,
    geodesic_step,
    natural_gradient,
    natural_step,
    proximal_step,
    retract,
)
from natgrad.geometry.trust import (
    TrustRegionStep,
    quadratic_trust_region_step,
    trust_region_step,
)

__all__ = [
    "EXPONENTIAL",
    "LEVI_CIVITA",
    "MIXTURE",
    "Atlas",
    "Chart",
    "Covector",
    "DualPotential",
    "Logarithm",
    "Point",
    "Potential",
    "Projection",
    "Proximal",
    "Tangent",
    "TrustRegionStep",
    "amari_chentsov",
    "charts",
    "check",
    "christoffel",
    "christoffel_contraction",
    "distance",
    "e_geodesic",
    "e_projection",
    "exponential",
    "fisher",
    "flat",
    "flow_step",
    "geodesic_retract",
    "geodesic_step",
    "gradient",
    "inner",
    "known_covariance_distance",
    "known_mean_distance",
    "logarithm",
    "lowered_christoffel",
    "m_geodesic",
    "m_projection",
    "natural_gradient",
    "natural_step",
    "norm",
    "proximal_step",
    "quadratic_trust_region_step",
    "register",
    "register_distance",
    "retract",
    "retract_into_domain",
    "sharp",
    "shooting_distance",
    "transported",
    "trust_region_step",
    "whole_space",
]
