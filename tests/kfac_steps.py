"""Steps of K-FAC and EKFAC on one small problem."""

from __future__ import annotations

import jax
import pytest
from problems import CASES

import natgrad as ng
from natgrad.curvature import EKFAC, KFAC
from natgrad.metrics.kronecker import Eigenbasis, FactoredTikhonov

CASE = CASES["categorical"]


MODEL, PARAMS, X, Y = CASE.problem()


BATCHES = jax.random.normal(jax.random.PRNGKey(7), (12, *X.shape))


def transformation(name, damping=0.1, decay=0.5, period=3, statistics=1):
    """K-FAC or EKFAC with everything that is kept between refreshes."""
    refresh = ng.Refresh(statistics=statistics, inverses=period)
    if name == "ekfac":
        return ng.scale_by_curvature(
            EKFAC(MODEL, period=period),
            damping=damping,
            decay=decay,
            refresh=ng.Refresh(statistics=statistics),
        )
    solver = {"eigen": Eigenbasis(), "tikhonov": FactoredTikhonov()}[name]
    return ng.scale_by_curvature(
        KFAC(MODEL), damping=damping, decay=decay, solver=solver, refresh=refresh
    )


NAMES = pytest.mark.parametrize("name", ["eigen", "tikhonov", "ekfac"])
