"""Explicit inverses of positive definite matrices, against NumPy's in float64."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from jax.test_util import check_grads

from natgrad.solvers import NewtonSchulz
from natgrad.solvers import block_elimination as elimination
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
    monkeypatch.setattr(elimination, "SMALL", 16)


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
    matrix = matrices(0, elimination.SMALL + 6, condition=1e4).astype(np.float32)
    exact = np.linalg.inv(matrix.astype(np.float64))
    error = lambda m: np.linalg.norm(m - exact) / np.linalg.norm(exact)
    halved = jax.jit(elimination.spd_inverse)(matrix)
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
    assert not jnp.isfinite(elimination.spd_inverse(matrix)).all()


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


@pytest.mark.parametrize("condition", [1e2, 1e6])
def test_newton_schulz_is_as_precise_as_elimination(condition):
    """In float32, also beside M: |M^½ X M^½ − I|, what a preconditioner is held to."""
    matrix = matrices(0, 120, condition=condition).astype(np.float32)
    values, vectors = np.linalg.eigh(matrix.astype(np.float64))
    exact = (vectors / values) @ vectors.T
    half = (vectors * np.sqrt(values)) @ vectors.T

    def errors(rule):
        given = [jnp.asarray(matrix)], [jnp.float32(1 / condition)]
        (found,), failed = jax.jit(lambda m, f: inverse.inverses(m, f, rule))(*given)
        assert not failed
        assert found.dtype == jnp.float32
        found = np.asarray(found, np.float64)
        off = half @ found @ half - np.eye(len(matrix))
        return np.array(
            [np.linalg.norm(found - exact) / np.linalg.norm(exact), abs(off).max()]
        )

    by_products, eliminated = errors(NewtonSchulz()), errors(elimination.ELIMINATION)
    assert (by_products < 4 * eliminated).all()
    assert (by_products < condition * np.finfo(np.float32).eps).all()


@pytest.mark.slow
def test_newton_schulz_at_the_size_of_a_layer():
    """784 rows at a condition of 10⁶ in float32: within 3 % of the default."""
    matrix = jnp.asarray(matrices(0, 784, condition=1e6), jnp.float32)
    by_products, vouched = jax.jit(NewtonSchulz())(matrix, jnp.float32(1e-6))
    eliminated = jax.jit(elimination.spd_inverse)(matrix)
    assert vouched
    off = jnp.linalg.norm(by_products - eliminated) / jnp.linalg.norm(eliminated)
    assert off < 0.03


def test_what_newton_schulz_does_not_vouch_for_is_inverted_by_eigenvalues():
    """Too few turns, a floor of 0, a lower rank; one converges beside them."""
    matrix = matrices(0, 30, condition=1e3)
    singular = matrix - 1e-3 * np.eye(30)
    stack = jnp.asarray(np.stack([matrix, matrix, singular]))
    floors = jnp.array([1e-3, 0.0, 0.0])
    for turns, failures in ((16, 2), (3, 3)):
        rule = NewtonSchulz(turns)
        _, vouched = jax.vmap(rule)(stack, floors)
        assert (~vouched).sum() == failures
        (found,), failed = jax.jit(lambda m, f, r=rule: inverse.inverses(m, f, r))(
            [stack], [floors]
        )
        assert failed
        np.testing.assert_allclose(found[0], np.linalg.inv(matrix), rtol=1e-8)
        np.testing.assert_allclose(found[1], np.linalg.inv(matrix), rtol=1e-8)
        expected = np.linalg.pinv(singular, rcond=1e-10)
        np.testing.assert_allclose(found[2], expected, rtol=1e-6, atol=1e-6)
    with pytest.raises(ValueError, match=r"turns=\.\.\.\) is an integer >= 1, got 0"):
        NewtonSchulz(0)
