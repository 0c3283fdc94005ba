"""Inverses renewed where they lie: NumPy's, for those that are due."""

import functools

import jax
import jax.numpy as jnp
import numpy as np
import pytest

import natgrad as ng
from natgrad.curvature import KFAC
from natgrad.metrics.kronecker import FactoredTikhonov
from natgrad.solvers import BlockElimination, NewtonSchulz
from natgrad.solvers import renewed_inverses as module
from natgrad.solvers.renewed_inverses import Kept, renewed_inverses

SHAPES = [(5, 5), (3, 4, 4), (2, 1, 2, 2), (6, 6), (5, 5)]
DUE = [True, True, False, False, True]
X = np.ones((3, 4))
PARAMS = {"w": np.ones((4, 2))}
MODEL = ng.Model(lambda params, x: jnp.tanh(x @ params["w"]), ng.families.NormalMean())


def moments(shapes, rng):
    rows = [rng.normal(size=(*shape[:-1], 2 * shape[-1])) for shape in shapes]
    return [x @ np.swapaxes(x, -1, -2) / x.shape[-1] for x in rows]


def given(seed=0):
    rng = np.random.default_rng(seed)
    matrices = moments(SHAPES, rng)
    old = [rng.normal(size=shape) for shape in SHAPES]
    shares = [rng.uniform(0.1, 1, shape[:-2]) for shape in SHAPES]
    return matrices, shares, old


@pytest.fixture(autouse=True, params=["one by one", "at once"])
def way(request, monkeypatch):
    """On CPUs, and as other devices do it."""
    if request.param == "at once":
        monkeypatch.setattr(module, "_one_by_one", module._at_once)
    jax.clear_caches()


@functools.partial(jax.jit, static_argnames="first")
def renewed(matrices, shares, due, old, first=False):
    kept = [Kept(*each) for each in zip(matrices, shares, due, old, strict=True)]
    return renewed_inverses(kept, jnp.array(first))


def expected(matrices, shares, old):
    return [
        np.linalg.inv(m + d[..., None, None] * np.eye(m.shape[-1])) if due else before
        for m, d, due, before in zip(matrices, shares, DUE, old, strict=True)
    ]


def close(found, right):
    for a, b in zip(found, right, strict=True):
        np.testing.assert_allclose(a, b, rtol=0, atol=1e-11)


def test_those_that_are_due_are_numpys_and_the_others_as_they_were():
    matrices, shares, old = given()
    found, failed, count = renewed(matrices, shares, jnp.array(DUE), old)
    close(found, expected(matrices, shares, old))
    assert count == 1 + 3 + 1  # matrices, those of stacks one by one
    assert not any(failed)


def test_one_that_is_not_finite_replaces_none_but_the_first():
    matrices, shares, old = given()
    matrices[0] = np.full_like(matrices[0], np.nan)
    found, _, _ = renewed(matrices, shares, jnp.array(DUE), old)
    np.testing.assert_array_equal(found[0], old[0])
    found, _, _ = renewed(matrices, shares, jnp.array(DUE), old, first=True)
    assert np.isnan(found[0]).any()


def test_a_singular_matrix_is_inverted_by_eigenvalues_and_named():
    matrices, shares, old = given()
    matrices[4] = np.diag([3.0, 2.0, 0.0, 1.0, 0.0])
    shares[4] = np.zeros(())
    found, failed, _ = renewed(matrices, shares, jnp.array(DUE), old)
    close(found[4:], [np.diag([1 / 3, 1 / 2, 0, 1, 0])])
    assert [bool(one) for one in failed] == [False] * 4 + [True]


def test_under_vmap_all_members_are_renewed_where_one_is_due():
    one, other = given(0), given(1)
    both = jax.tree.map(lambda *leaves: np.stack(leaves), one, other)
    due = jnp.array([DUE, [False] * len(DUE)])
    found, _, _ = jax.vmap(lambda m, s, d, o: renewed(m, s, d, o))(
        both[0], both[1], due, both[2]
    )
    for member, each in enumerate((one, other)):
        close([leaf[member] for leaf in found], expected(*each))


@pytest.mark.slow
def test_derivative_is_that_of_numpys_inverse():
    matrices, shares, old = given()
    change = moments(SHAPES, np.random.default_rng(2))

    def along(t):
        moved = [m + t * c for m, c in zip(matrices, change, strict=True)]
        return renewed(moved, shares, jnp.array(DUE), old)[0]

    _, tangents = jax.jvp(along, (0.0,), (1.0,))
    ends = [
        expected(
            [m + h * c for m, c in zip(matrices, change, strict=True)], shares, old
        )
        for h in (1e-5, -1e-5)
    ]
    for tangent, up, down in zip(tangents, *ends, strict=True):
        np.testing.assert_allclose(tangent, (up - down) / 2e-5, rtol=0, atol=1e-5)


def test_the_rule_of_the_solver_renews_too():
    """By products alone: no factorisation but that of the fallback."""
    metric = KFAC(MODEL).at(PARAMS, X)

    def text(rule):
        solver = FactoredTikhonov(rule=rule)
        old = solver.factorize(metric, 0.1, range(solver.num_blocks(metric)))

        def renew(due, old):
            return solver.renew(metric, 0.1, [due] * len(old), old, jnp.array(False))

        return jax.jit(renew).lower(jnp.array(True), old).as_text()

    assert "potrf" in text(BlockElimination())
    assert "potrf" not in text(NewtonSchulz())
