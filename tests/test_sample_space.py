"""Sample-space solves: accuracy for every conditioning, fallbacks, derivatives."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from problems import relative_error

import natgrad as ng
from natgrad.solvers.gram import gram_solution, sample_space_solution
from natgrad.solvers.jacobian_blocks import DenseRows, EmbeddingBlock, LinearBlock
from natgrad.solvers.score_jacobian import Jacobian

# (decay, λ) -> relative error in float32 of Cholesky with three refinements through B,
# or of QR where that diverges, as measured by others for M = 200.
REFINED = {
    (2, 1e-3): 3e-6,
    (2, 1e-6): 6e-5,
    (2, 1e-9): 6e-5,
    (4, 1e-3): 3e-6,
    (4, 1e-6): 6e-5,
    (4, 1e-9): 4e-4,
    (6, 1e-3): 3e-6,
    (6, 1e-6): 6e-5,
    (6, 1e-9): 5e-3,
}


def rows_of(decay, count=60, size=90, dtype="float32", seed=0):
    """B [M, P] with singular values from 1 to 10^−decay."""
    generator = np.random.default_rng(seed)
    left = np.linalg.qr(generator.standard_normal((count, count)))[0]
    right = np.linalg.qr(generator.standard_normal((size, count)))[0]
    return jnp.asarray((left * np.logspace(0, -decay, count)) @ right.T, dtype)


def jacobian(rows):
    """B given by its rows."""
    layout = ng.tree.Layout.of(rows[0])
    piece = DenseRows((rows[None, :, None, :, None],))
    return Jacobian(layout, None, (piece,), None)


@jax.jit
def solved(rows, v, damping):
    return sample_space_solution(jacobian(rows), v, damping)


@jax.jit
def kernel(rows, b, damping):
    return gram_solution(jacobian(rows), b, damping)


def by_svd(rows, v, damping):
    """(Bᵀ B + λI)⁻¹ v in float64."""
    _, singular, vectors = np.linalg.svd(np.asarray(rows, "float64"))
    values = np.zeros(len(vectors))
    values[: len(singular)] = singular**2
    return vectors.T @ ((vectors @ np.asarray(v, "float64")) / (values + damping))


@pytest.mark.parametrize(("decay", "damping"), REFINED)
def test_float32_kernels_are_never_worse_than_the_table(decay, damping):
    with jax.enable_x64(False):
        rows = rows_of(decay, 200, 300)
        b = jnp.asarray(np.random.default_rng(1).standard_normal(200), "float32")
        given, failed = kernel(rows, b, jnp.float32(damping))
    wide, lam = np.asarray(rows, "float64"), np.float64(np.float32(damping))
    left, singular, _ = np.linalg.svd(wide, full_matrices=False)
    exact = left @ ((left.T @ np.asarray(b, "float64")) / (singular**2 + lam))
    assert given.dtype == "float32"
    assert not failed
    assert relative_error(given, exact) < REFINED[decay, damping]


@pytest.mark.parametrize("damping", [1e-3, 1e-6, 1e-9])
@pytest.mark.parametrize("decay", [2, 4, 6])
def test_a_part_that_no_row_spans_is_divided_by_the_damping(decay, damping):
    with jax.enable_x64(False):
        rows = rows_of(decay)
        v = jnp.asarray(np.random.default_rng(2).standard_normal(90), "float32")
        given = solved(rows, v, jnp.float32(damping))
    exact = by_svd(rows, v, np.float64(np.float32(damping)))
    limit = 3e-5 if damping > 1e-6 else 1e-3  # condition numbers up to 1e9
    assert relative_error(given.value, exact) < limit


@pytest.mark.parametrize("damping", [1.0, 1e-4, 1e-8, 1e-12])
def test_float64_is_accurate_down_to_tiny_damping(damping):
    """For v in the range of Bᵀ; its own rounding is worth ε/(σ² + λ)."""
    rows = rows_of(4, dtype="float64")
    u = jnp.asarray(np.random.default_rng(1).standard_normal(60))
    given = solved(rows, rows.T @ u, damping)
    left, singular, right = np.linalg.svd(np.asarray(rows), full_matrices=False)
    exact = right.T @ (singular / (singular**2 + damping) * (left.T @ np.asarray(u)))
    assert relative_error(given.value, exact) < 1e-12 + 1e-15 / (1e-8 + damping)
    assert not given.fallback


def test_without_damping_the_step_has_least_norm_and_says_so():
    rows = rows_of(2, dtype="float64").at[3].set(0.0)
    v = jnp.asarray(np.random.default_rng(2).standard_normal(90))
    given = solved(rows, v, 0.0)
    exact = np.linalg.pinv(np.asarray(rows.T @ rows), rcond=1e-10) @ v
    assert given.fallback
    assert relative_error(given.value, exact) < 1e-9


def test_zero_rows_and_zero_vectors_give_finite_steps():
    v = jnp.ones(9)
    zero = jnp.zeros((4, 9))
    assert relative_error(solved(zero, v, 0.5).value, v / 0.5) < 1e-14
    assert (solved(zero, v, 0.0).value == 0).all()
    assert (solved(rows_of(1, 4, 9, "float64"), 0 * v, 0.1).value == 0).all()


def test_more_rows_than_parameters_make_no_difference():
    generator = np.random.default_rng(3)
    rows, v = generator.standard_normal((40, 7)), generator.standard_normal(7)
    given = solved(jnp.asarray(rows), jnp.asarray(v), 1e-3)
    exact = np.linalg.solve(rows.T @ rows + 1e-3 * np.eye(7), v)
    assert relative_error(given.value, exact) < 1e-10
    assert not given.fallback


def test_not_a_number_stays_not_a_number():
    rows = rows_of(1, 4, 9, "float64").at[0, 0].set(jnp.nan)
    assert not jnp.isfinite(solved(rows, jnp.ones(9), 0.1).value).any()


def test_a_batch_of_systems_equals_a_loop_where_one_member_falls_back():
    good, bad = rows_of(1, 4, 9, "float64"), rows_of(1, 4, 9, "float64").at[0].set(0.0)
    v = jnp.cos(jnp.arange(9.0))
    dampings = jnp.array([1e-2, 0.0])
    together = jax.jit(jax.vmap(solved, (0, None, 0)))(
        jnp.stack([good, bad]), v, dampings
    )
    assert together.fallback.tolist() == [False, True]
    for i, rows in enumerate((good, bad)):
        alone = solved(rows, v, dampings[i])
        assert relative_error(together.value[i], alone.value) < 1e-10


@pytest.mark.parametrize("count", [3, 9])
def test_derivatives_are_those_of_the_solution(count):
    """Of the rows, v and λ: forwards, backwards, and twice, for both shapes of B."""
    rows, v = rows_of(1, min(count, 5), 5, "float64"), jnp.cos(jnp.arange(5.0))
    rows = jnp.tile(rows, (count // rows.shape[0] + 1, 1))[:count]
    given = lambda rows, v, damping: solved(rows, v, damping).value
    exact = lambda rows, v, damping: jnp.linalg.solve(
        rows.T @ rows + damping * jnp.eye(5), v
    )
    arguments = (rows, v, 0.3)

    @jax.jit
    def derivatives(*arguments):
        first = lambda way, f: [way(f, argument)(*arguments) for argument in range(3)]
        twice = lambda f: jax.jacfwd(jax.jacrev(f, 2), 0)(*arguments)
        expected = first(jax.jacrev, exact)
        found = [first(way, given) for way in (jax.jacrev, jax.jacfwd)]
        return expected, found, twice(given), twice(exact)

    expected, found, twice, twice_expected = derivatives(*arguments)
    for way in found:
        for one, other in zip(way, expected, strict=True):
            assert relative_error(one, other) < 1e-9
    assert relative_error(twice, twice_expected) < 1e-8


# Pieces: each says of itself what its rows say -------------------------------------


def piece_of(kind):
    keys = jax.random.split(jax.random.PRNGKey(4), 3)
    layers, examples, positions = 2, 3, 2
    g = jax.random.normal(keys[0], (2, layers, examples, positions, 4))
    x = jax.random.normal(keys[1], (layers, examples, positions, 5))
    index = jax.random.randint(keys[2], (layers, examples, positions), 0, 6)
    return {
        "factored": LinearBlock(x, g, False),
        "factored with bias": LinearBlock(x, g, True),
        "one position": LinearBlock(x[:, :, :1], g[..., :1, :], True),
        "lookups": EmbeddingBlock(index.astype(g.dtype), g, 5),  # 5 is outside: no row
    }[kind]


@pytest.mark.parametrize(
    "kind", ["factored", "factored with bias", "one position", "lookups"]
)
def test_a_piece_agrees_with_its_own_rows(kind):
    piece = piece_of(kind)
    parts = piece.explicit()
    flat = lambda parts, lead: jnp.concatenate(
        [part.reshape((*part.shape[:lead], -1)) for part in parts], axis=-1
    )
    rows = flat(parts, 2).reshape((6, -1))
    v = [jnp.cos(jnp.arange(p[0, 0].size)).reshape(p.shape[2:]) for p in parts]
    u = jnp.sin(jnp.arange(1.0, 7.0)).reshape(2, 3)
    assert relative_error(piece.push(v).reshape(-1), rows @ flat(v, 0)) < 1e-13
    assert relative_error(flat(piece.pull(u), 0), u.reshape(-1) @ rows) < 1e-13
    assert relative_error(piece.gram().reshape(6, 6), rows @ rows.T) < 1e-13
    assert relative_error(flat(piece.squares(), 0), jnp.sum(rows**2, 0)) < 1e-13


def test_rows_of_a_factored_piece_are_sums_of_outer_products():
    piece = piece_of("factored with bias")
    matrix, bias = piece.explicit()
    for k, n, layer in np.ndindex(2, 3, 2):
        x, g = np.asarray(piece.x[layer, n]), np.asarray(piece.g[k, layer, n])
        assert relative_error(matrix[k, n, layer], x.T @ g) < 1e-14
        assert relative_error(bias[k, n, layer], g.sum(0, keepdims=True)) < 1e-14


def test_rows_of_lookups_lie_where_the_index_points():
    piece = piece_of("lookups")
    (rows,) = piece.explicit()
    expected = np.zeros(rows.shape)
    for k, layer, n, t in np.ndindex(*piece.g.shape[:-1]):
        index = int(piece.index[layer, n, t])
        if index < 5:
            expected[k, n, layer, index] += piece.g[k, layer, n, t]
    assert relative_error(rows, expected) < 1e-14
