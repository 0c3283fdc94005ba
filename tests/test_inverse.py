"""Explicit inverses of positive definite matrices, against NumPy's in float64."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from natgrad.solvers import spd_inverse as inverse


def matrices(seed, *shape, condition=1e3):
    """Symmetric matrices [..., d, d] with eigenvalues from 1 down to 1/condition."""
    generator = np.random.default_rng(seed)
    vectors = np.linalg.qr(generator.standard_normal((*shape, shape[-1])))[0]
    values = np.logspace(0, -np.log10(condition), shape[-1])
    return (vectors * values) @ np.swapaxes(vectors, -1, -2)


def with_floors(given):
    """The matrices, and eigenvalues that none of them goes below."""
    given = [jnp.asarray(m) for m in given]
    return given, [jnp.full(m.shape[:-2], 1e-3) for m in given]


@pytest.fixture
def halves(monkeypatch):
    """LAPACK up to 16 rows only, so that small matrices are halved more than once."""
    monkeypatch.setattr(inverse, "_SMALL", 16)


def test_many_sizes_are_inverted_together(halves):
    """Size 37 shares a program with 41, and [2, 3, d, d] is six matrices."""
    given = [matrices(i, *s) for i, s in enumerate([(41,), (37,), (2, 3, 20), (70,)])]
    found, failed = jax.jit(inverse.inverses)(*with_floors(given))
    assert not failed
    for matrix, result in zip(given, found, strict=True):
        np.testing.assert_allclose(result, np.linalg.inv(matrix), atol=1e-9)


def test_equal_and_near_sizes_share_one_program():
    given = [jnp.asarray(matrices(i, size)) for i, size in enumerate([30, 31, 31, 200])]
    traced = jax.jit(inverse.inverses).trace(*with_floors(given))
    for platform, call in {"cpu": "lapack_dpotrf", "cuda": "cusolver_potrf"}.items():
        text = traced.lower(lowering_platforms=(platform,)).as_text()
        assert text.count(f"custom_call @{call}") == 2


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


@pytest.mark.parametrize("floor", [0.1, 0.0], ids=["halves", "eigenvalues"])
def test_derivatives_are_those_of_the_inverse(halves, floor):
    matrix = jnp.asarray(matrices(0, 35, condition=10))
    given = lambda m: inverse.inverses([(m + m.T) / 2], [jnp.array(floor)])[0][0]
    check_grads(given, (matrix,), order=2, modes=["fwd", "rev"], rtol=1e-3)


@pytest.mark.parametrize("row", [0, 34])
def test_what_is_not_positive_definite_is_not_finite(halves, row):
    matrix = jnp.asarray(matrices(0, 35)).at[row, row].set(-1.0)
    assert not jnp.isfinite(inverse.spd_inverse(matrix)).all()


def test_eigenvalues_below_the_floor_count_as_the_floor():
    """What elimination cannot invert; its neighbour is inverted as before."""
    singular, regular = matrices(0, 9), matrices(1, 9, condition=10)
    values, vectors = np.linalg.eigh(singular)
    values[:3] = [-1e-3, 0.0, 1e-4]
    given = [jnp.asarray((vectors * values) @ vectors.T), jnp.asarray(regular)]
    for floor in (1e-2, 0.0):
        floors = [jnp.array(floor), jnp.array(0.05)]
        found, failed = jax.jit(inverse.inverses)(
            [jnp.asarray(m) for m in given], floors
        )
        assert failed
        kept = np.maximum(values, floor)
        inverted = np.where(kept > 1e-6, 1 / np.where(kept > 1e-6, kept, 1), 0)
        expected = (vectors * inverted) @ vectors.T
        np.testing.assert_allclose(found[0], expected, rtol=1e-9, atol=1e-7)
        np.testing.assert_allclose(found[1], np.linalg.inv(regular), rtol=1e-9)
