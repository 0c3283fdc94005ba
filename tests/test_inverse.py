"""Explicit inverses of positive definite matrices, against NumPy's in float64."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from natgrad import inverse


def matrices(seed, *shape, condition=1e3):
    """Symmetric matrices [..., d, d] with eigenvalues from 1 down to 1/condition."""
    generator = np.random.default_rng(seed)
    vectors = np.linalg.qr(generator.standard_normal((*shape, shape[-1])))[0]
    values = np.logspace(0, -np.log10(condition), shape[-1])
    return (vectors * values) @ np.swapaxes(vectors, -1, -2)


@pytest.fixture
def halves(monkeypatch):
    """LAPACK up to 16 rows only, so that small matrices are halved more than once."""
    monkeypatch.setattr(inverse, "_SMALL", 16)


def test_many_sizes_are_inverted_together(halves):
    """Size 37 shares a program with 41, and [2, 3, d, d] is six matrices."""
    given = [matrices(i, *s) for i, s in enumerate([(41,), (37,), (2, 3, 20), (70,)])]
    found = jax.jit(inverse.inverses)([jnp.asarray(m) for m in given])
    for matrix, result in zip(given, found, strict=True):
        np.testing.assert_allclose(result, np.linalg.inv(matrix), atol=1e-9)


def test_equal_and_near_sizes_share_one_program():
    given = [jnp.asarray(matrices(i, size)) for i, size in enumerate([30, 31, 31, 90])]
    text = str(jax.make_jaxpr(inverse.inverses)(given))
    assert text.count("= cholesky") == 2


def test_large_matrices_are_inverted_as_precisely_as_by_cholesky():
    """In float32, at a condition of 10⁴, at the size at which halving begins."""
    matrix = matrices(0, inverse._SMALL + 6, condition=1e4).astype(np.float32)
    exact = np.linalg.inv(matrix.astype(np.float64))
    error = lambda m: np.linalg.norm(m - exact) / np.linalg.norm(exact)
    halved = jax.jit(inverse.spd_inverse)(matrix)
    assert halved.dtype == jnp.float32
    lower = jnp.linalg.cholesky(matrix)
    whole = jax.scipy.linalg.cho_solve((lower, True), np.eye(len(matrix), dtype="f"))
    assert error(halved) < 5 * error(whole) < 1e-2


def test_derivatives_are_those_of_the_inverse(halves):
    matrix = jnp.asarray(matrices(0, 35, condition=10))
    symmetric = lambda m: inverse.spd_inverse((m + m.T) / 2)
    check_grads(symmetric, (matrix,), order=2, modes=["fwd", "rev"], rtol=1e-3)


@pytest.mark.parametrize("row", [0, 34])
def test_what_is_not_positive_definite_is_not_finite(halves, row):
    matrix = jnp.asarray(matrices(0, 35)).at[row, row].set(-1.0)
    assert not jnp.isfinite(inverse.spd_inverse(matrix)).all()
