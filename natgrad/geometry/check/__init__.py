"""Certificates: the laws of information geometry, measured on a user's own family.

Each function measures what a theorem says and returns a `Report`; print it, or call
`raise_if_failed`. They run eagerly and look at values: use them in tests, not in loops,
and in float64, where the bounds are tight.

    fisher_agreement    five definitions of F agree, in the point's chart
    duality             ∇A = μ, ∇A* = η, KL = D_A = D_A*, KL − ½ dᵀFd of third order
    charts_agree        round trips, F_μ = F_η⁻¹ and ⟨g, v⟩ the same in all charts
    invariance_order    how fast the spread of a step between charts falls with h
    affine_exactness    a step is the same in affine coordinates
    monotone            a statistic's information is never more (Chentsov)
    sufficient          a sufficient statistic's is the same
    derivatives         forward and reverse derivatives equal central differences

Source: Amari (2016), chapters 1 to 3; Chentsov (1982), Statistical Decision Rules and
Optimal Inference, for the monotonicity and the uniqueness of F that follows from it.
"""

from natgrad.geometry.check.agreement import (
    charts_agree,
    duality,
    fisher_agreement,
    kl_order,
)
from natgrad.geometry.check.central_differences import derivatives
from natgrad.geometry.check.invariance import Step, affine_exactness, invariance_order
from natgrad.geometry.check.report import Check, Report
from natgrad.geometry.check.statistics import monotone, sufficient

__all__ = [
    "Check",
    "Report",
    "Step",
    "affine_exactness",
    "charts_agree",
    "derivatives",
    "duality",
    "fisher_agreement",
    "invariance_order",
    "kl_order",
    "monotone",
    "sufficient",
]
