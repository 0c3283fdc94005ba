"""Functions of a F + Λ with a damping by layer, against the matrix written out."""

from __future__ import annotations

import jax
import jax.flatten_util
import numpy as np
import pytest
from problems import CASES

import natgrad as ng

DAMPING = {"in": 0.3, "out": 0.05}


def ravel(params):
    return jax.flatten_util.ravel_pytree(params)[0]


@pytest.mark.parametrize("kind", ["KFAC", "EKFAC", "Gram", "GramBlocks"])
def test_functions_of_a_multiple_damped_by_layer(kind):
    model, params, x, y = CASES["categorical"].problem()

    @jax.jit
    def given(params):
        metric = 3.0 * getattr(ng.curvature, kind)(model).at(params, x, y)
        root = metric.function(lambda s: s**-0.5, params, DAMPING)
        size = metric.effective_dimension(DAMPING)
        logdet = metric.logdet(DAMPING)
        inverse = metric.inverse_diagonal(DAMPING)
        return metric.dense(), ravel(root), ravel(inverse), size, logdet

    dense, root, inverse, size, logdet = given(params)
    parts = [np.full(ravel(params[name]).size, DAMPING[name]) for name in params]
    values, vectors = np.linalg.eigh(dense + np.diag(np.concatenate(parts)))
    expected = vectors @ ((vectors.T @ ravel(params)) / np.sqrt(values))
    np.testing.assert_allclose(root, expected, rtol=1e-9, atol=1e-11)
    full = vectors / values @ vectors.T
    np.testing.assert_allclose(inverse, np.diag(full), rtol=1e-10)
    np.testing.assert_allclose(size, np.trace(dense @ full), rtol=1e-10)
    np.testing.assert_allclose(logdet, np.log(values).sum(), rtol=1e-10)
