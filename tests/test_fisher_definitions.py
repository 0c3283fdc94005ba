"""Three definitions of the Fisher information agree, and labels do what they say."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from problems import CASES, mlp, mlp_params, ravel, relative_error

import natgrad as ng
from natgrad import families
from natgrad.curvature import (
    BlockDiagonal,
    Dense,
    Diagonal,
    Empirical,
    Exact,
    KLHessian,
    MatrixFree,
    Sampled,
)

LABELS = {"exact": Exact(), "sampled": Sampled(3), "empirical": Empirical()}
KEY = jax.random.PRNGKey(5)


def dense_of(curvature, *batch):
    return jax.jit(lambda *batch: curvature.at(*batch).dense())(*batch)


@pytest.mark.parametrize("dtype", ["float32", "float64"])
@pytest.mark.parametrize("name", CASES)
def test_hessian_of_kl_score_products_and_operator_agree(name, dtype, tolerance):
    model, params, x, _ = CASES[name].problem(dtype)
    matrices = [dense_of(C(model), params, x) for C in (KLHessian, Dense, MatrixFree)]
    for matrix in matrices:
        assert matrix.dtype == dtype
        assert relative_error(matrix, matrices[1]) < tolerance("identity", dtype)
    assert jnp.linalg.matrix_rank(matrices[1]) > 1


@pytest.mark.parametrize("labels", LABELS)
def test_every_form_keeps_the_same_outer_products(labels, tolerance):
    model, params, x, y = CASES["categorical"].problem()
    matrix = dense_of(Dense(model, LABELS[labels]), params, x, y, KEY)
    for form in (KLHessian, MatrixFree):
        other = dense_of(form(model, LABELS[labels]), params, x, y, KEY)
        assert relative_error(other, matrix) < tolerance("identity")
    diagonal = dense_of(Diagonal(model, LABELS[labels]), params, x, y, KEY)
    assert relative_error(jnp.diag(diagonal), jnp.diag(matrix)) < tolerance("identity")
    blocks = dense_of(BlockDiagonal(model, LABELS[labels]), params, x, y, KEY)
    owner = np.repeat(range(4), [leaf.size for leaf in jax.tree.leaves(params)])
    inside = owner[:, None] == owner[None]
    expected = np.where(inside, matrix, 0)
    assert relative_error(blocks, expected) < tolerance("identity")


def test_blocks_by_a_users_grouping_are_the_layers(tolerance):
    model, params, x, _ = CASES["categorical"].problem()
    by_layer = BlockDiagonal(model, grouping=lambda path: path.split("/")[0])
    blocks = dense_of(by_layer, params, x)
    matrix = dense_of(Dense(model), params, x)
    first = sum(leaf.size for leaf in jax.tree.leaves(params["in"]))
    inside = np.arange(len(matrix)) < first
    expected = np.where(inside[:, None] == inside[None], matrix, 0)
    assert relative_error(blocks, expected) < tolerance("identity")


def test_one_group_over_all_leaves_in_any_order_is_the_dense_matrix(tolerance):
    model, params, x, _ = CASES["categorical"].problem()
    whole = dense_of(BlockDiagonal(model, grouping=lambda path: 0), params, x)
    assert relative_error(whole, dense_of(Dense(model), params, x)) < tolerance(
        "identity"
    )


@pytest.mark.parametrize("form", [KLHessian, Dense, MatrixFree, Diagonal])
@pytest.mark.parametrize("labels", ["exact", "empirical"])
def test_duplicating_the_data_changes_nothing(form, labels, tolerance):
    model, params, x, y = CASES["normal_mean_log_scale"].problem()
    once = dense_of(form(model, LABELS[labels]), params, x, y)
    twice = dense_of(
        form(model, LABELS[labels]),
        params,
        jnp.concatenate([x, x]),
        jnp.concatenate([y, y]),
    )
    assert relative_error(twice, once) < tolerance("identity")


@pytest.mark.parametrize("chunk_size", [1, 3, 100])
def test_chunks_change_memory_not_results(chunk_size, tolerance):
    model, params, x, y = CASES["categorical"].problem()
    chunked = CASES["categorical"].model(chunk_size=chunk_size)
    for labels in (Exact(), Sampled(2)):
        whole = jax.jit(Dense(model, labels).value_and_grad)(params, x, y, KEY)
        parts = jax.jit(Dense(chunked, labels).value_and_grad)(params, x, y, KEY)
        for given, expected in zip(parts, whole, strict=True):
            assert relative_error(ravel(given), ravel(expected)) < tolerance("identity")


def test_chunks_bound_the_memory():
    case = CASES["categorical"]
    _, params, x, _ = case.problem(examples=512)

    def temporary(chunk_size):
        curvature = Diagonal(case.model(chunk_size=chunk_size))
        compiled = jax.jit(curvature.estimate).lower(params, x).compile()
        return compiled.memory_analysis().temp_size_in_bytes

    assert temporary(16) < temporary(512) / 8


@pytest.mark.parametrize("labels", LABELS)
@pytest.mark.parametrize("form", [Dense, KLHessian])
def test_value_and_grad_is_the_loss_its_gradient_and_the_statistics(
    form, labels, tolerance
):
    model, params, x, y = CASES["poisson"].problem()
    curvature = form(model, LABELS[labels])
    value, gradient, statistics = jax.jit(curvature.value_and_grad)(params, x, y, KEY)
    expected, expected_gradient = jax.value_and_grad(model.loss)(params, x, y)
    estimate = jax.jit(curvature.estimate)(params, x, y, KEY)
    assert relative_error(value, expected) < tolerance("identity")
    assert relative_error(ravel(gradient), ravel(expected_gradient)) < tolerance(
        "identity"
    )
    for given, estimated in zip(
        jax.tree.leaves(statistics),
        jax.tree.leaves(estimate),
        strict=True,
    ):
        assert relative_error(given.astype(float), estimated.astype(float)) < tolerance(
            "identity"
        )


def test_gradient_and_statistics_share_one_forward_pass():
    """The loss's cotangent is one more column of the same pullback."""
    model, params, x, y = CASES["categorical"].problem()
    dots = lambda f, *a: str(jax.make_jaxpr(f)(*a)).count("dot_general")
    forward = dots(model.outputs, params, x)
    gradient = dots(jax.grad(model.loss), params, x, y)
    curvature = Diagonal(model)
    alone = dots(curvature.estimate, params, x)
    together = dots(curvature.value_and_grad, params, x, y)
    assert forward == 2
    assert together == alone
    assert together < alone + gradient


# Labels ---------------------------------------------------------------------------


def test_sampled_labels_are_unbiased_for_every_entry():
    model, params, x, _ = CASES["categorical"].problem()
    exact = dense_of(Dense(model), params, x)
    keys = jax.random.split(KEY, 400)
    draw = lambda key: Dense(model, Sampled(2)).estimate(params, x, key=key)
    draws = jax.jit(jax.vmap(draw))(keys)
    error = draws.std(0, ddof=1) / np.sqrt(len(keys))
    z = (draws.mean(0) - exact)[error > 0] / error[error > 0]
    assert jnp.abs(z).max() < 5
    assert 0.5 < z.std() < 1.6


def test_sampled_labels_converge_like_the_square_root_of_their_number():
    model, params, x, _ = CASES["normal_mean_log_scale"].problem()
    exact = dense_of(Dense(model), params, x)

    def mean_square_error(n):
        draw = lambda key: Dense(model, Sampled(n)).estimate(params, x, key=key)
        draws = jax.jit(jax.vmap(draw))(jax.random.split(KEY, 200))
        return float(((draws - exact[None]) ** 2).sum((1, 2)).mean())

    slope = np.log(mean_square_error(64) / mean_square_error(4)) / np.log(64 / 4)
    assert abs(slope + 1) < 0.25  # of the square: the error falls as n^(-1/2)


def test_a_key_gives_the_same_labels_whatever_the_chunks():
    model, params, x, _ = CASES["categorical"].problem()
    chunked = CASES["categorical"].model(chunk_size=2)
    estimate = jax.jit(
        lambda key: Dense(model, Sampled(2)).estimate(params, x, key=key)
    )
    one, different = estimate(KEY), estimate(jax.random.PRNGKey(6))
    other = Dense(chunked, Sampled(2)).estimate(params, x, key=KEY)
    assert relative_error(one, other) < 1e-12
    assert relative_error(one, different) > 1e-3


@pytest.mark.parametrize("name", ["bernoulli", "poisson", "normal_mean_log_scale"])
def test_the_derivative_of_a_sampled_fisher_is_that_of_the_exact_one(name):
    """With labels held fixed it would miss the Amari-Chentsov term (0 in natural
    coordinates)."""
    family = CASES[name].family
    shape = (1, CASES[name].outputs)
    z = 0.3 + 0.4 * jnp.arange(1.0, 1 + shape[1]).reshape(shape)
    model = ng.Model(lambda params, _: params, family)
    entry = lambda labels: (
        lambda z, key: Dense(model, labels).estimate(z, None, key=key)[0, 0]
    )
    exact = jax.grad(entry(Exact()))(z, None)
    draws = jax.jit(jax.vmap(jax.grad(entry(Sampled(1))), (None, 0)))(
        z, jax.random.split(KEY, 40_000)
    )
    error = draws.std(0, ddof=1) / np.sqrt(len(draws))
    assert jnp.abs(exact).max() > 0.05
    assert (jnp.abs(draws.mean(0) - exact) < 5 * error).all()
    assert (error < jnp.abs(exact).max() / 5).all()


def test_empirical_is_exact_for_logistic_regression_at_zero():
    """There r² = p(1 − p) = 1/4 whatever the labels: a coincidence, to the bit."""
    x = jax.random.normal(KEY, (20, 4))
    y = jax.random.bernoulli(KEY, 0.3, (20, 1)).astype(int)
    model = ng.Model(lambda w, x: x @ w, families.Bernoulli())
    w = jnp.zeros((4, 1))
    exact = dense_of(Dense(model), w, x)
    empirical = dense_of(Dense(model, Empirical()), w, x, y)
    assert relative_error(empirical, exact) < 1e-15
    elsewhere = w + 0.5
    exact = dense_of(Dense(model), elsewhere, x)
    assert (
        relative_error(dense_of(Dense(model, Empirical()), elsewhere, x, y), exact)
        > 0.1
    )


def test_empirical_is_four_times_too_large_when_residuals_are_twice_too_large():
    """Model variance σ², residuals of exactly ±2σ: E = (1/N) Σ r²/σ⁴ xxᵀ = 4 F."""
    sigma = 0.6
    x = jax.random.normal(KEY, (12, 3))
    w = jnp.array([[1.0], [-2.0], [0.5]])
    signs = jnp.where(jnp.arange(12) % 3 == 0, 1.0, -1.0)[:, None]
    y = x @ w + 2 * sigma * signs
    model = ng.Model(lambda w, x: x @ w, families.NormalMean(sigma))
    exact = dense_of(Dense(model), w, x)
    empirical = dense_of(Dense(model, Empirical()), w, x, y)
    assert relative_error(exact, x.T @ x / 12 / sigma**2) < 1e-12
    assert relative_error(empirical, 4 * exact) < 1e-12


# Masks, weights, factors ------------------------------------------------------------


def masked(case, **options):
    """The case's model with weights in its inputs."""
    apply = lambda params, inputs: case.link(mlp(params, inputs["x"]))
    return ng.Model(apply, case.family, weights=lambda i: i["weights"], **options)


@pytest.mark.parametrize("name", ["categorical", "normal_mean_log_scale"])
@pytest.mark.parametrize("labels", LABELS)
def test_a_mask_does_what_removing_the_rows_does(name, labels, tolerance):
    case = CASES[name]
    model, params, x, y = case.problem()
    # Sampled labels depend on the example's index, so the removed rows are the last.
    mask = jnp.array([1, 1, 1, 1, 1, 0, 0], float)
    integers = jnp.issubdtype(y.dtype, jnp.integer)
    padded = jnp.full_like(y[5:], -7 if integers else jnp.nan)
    inputs = {"x": x, "weights": mask}
    y_padded = jnp.concatenate([y[:5], padded])
    with_mask = masked(case)
    other = jax.tree.map(lambda leaf: leaf + 0.1, params)

    def figures(model, x, y):
        value, gradient = jax.value_and_grad(model.loss)(params, x, y)
        divergence = model.kl(params, other, x)
        return jnp.concatenate([jnp.stack([value, divergence]), ravel(gradient)])

    given = jax.jit(lambda x, y: figures(with_mask, x, y))(inputs, y_padded)
    expected = jax.jit(lambda x, y: figures(model, x, y))(x[:5], y[:5])
    assert relative_error(given, expected) < tolerance("identity")
    for form in (Dense, KLHessian, MatrixFree):
        given = dense_of(form(with_mask, LABELS[labels]), params, inputs, y_padded, KEY)
        expected = dense_of(form(model, LABELS[labels]), params, x[:5], y[:5], KEY)
        assert relative_error(given, expected) < tolerance("identity")


def test_an_integer_weight_does_what_repeating_the_row_does(tolerance):
    case = CASES["categorical"]
    model, params, x, y = case.problem()
    weights = jnp.array([1, 2, 3, 1, 0, 1, 2])
    inputs = {"x": x, "weights": weights}
    x2, y2 = jnp.repeat(x, weights, axis=0), jnp.repeat(y, weights, axis=0)
    assert relative_error(
        masked(case).loss(params, inputs, y), model.loss(params, x2, y2)
    ) < tolerance("identity")
    for labels in (Exact(), Empirical()):
        given = dense_of(Dense(masked(case), labels), params, inputs, y)
        expected = dense_of(Dense(model, labels), params, x2, y2)
        assert relative_error(given, expected) < tolerance("identity")


def test_scaling_all_weights_changes_nothing(tolerance):
    case = CASES["bernoulli"]
    _, params, x, y = case.problem()
    model = masked(case)
    weights = jnp.linspace(0.2, 3, len(x))
    for labels in (Exact(), Empirical()):
        one = dense_of(Dense(model, labels), params, {"x": x, "weights": weights}, y)
        two = dense_of(
            Dense(model, labels), params, {"x": x, "weights": 9 * weights}, y
        )
        assert relative_error(one, two) < tolerance("identity")


def sequence_problem():
    """Four sequences of up to three positions with three classes, padded."""
    params = mlp_params(KEY, 3)
    x = jax.random.normal(KEY, (4, 3, 3))
    y = jax.random.randint(KEY, (4, 3), 0, 3)
    mask = jnp.array([[1, 1, 1], [1, 0, 0], [1, 1, 0], [0, 0, 0]], float)
    apply = lambda params, inputs: jax.vmap(lambda x: mlp(params, x))(inputs["x"])
    model = ng.Model(apply, families.Categorical(), weights=lambda i: i["mask"])
    return model, params, {"x": x, "mask": mask}, jnp.where(mask > 0, y, -1)


def by_hand(params, inputs, y):
    """Loss, exact and empirical Fisher of the sequences, one position at a time."""
    x, mask = inputs["x"], np.asarray(inputs["mask"])
    vector, unravel = jax.flatten_util.ravel_pytree(params)
    logits = lambda vector, x: mlp(unravel(vector), x[None])[0]
    loss, exact, empirical, count = 0.0, 0.0, 0.0, 0
    for n in range(len(x)):
        score = 0.0
        for t in np.flatnonzero(mask[n]):
            p = np.asarray(jax.nn.softmax(logits(vector, x[n, t])))
            jacobian = np.asarray(jax.jacrev(logits)(vector, x[n, t]))
            loss -= np.log(p[y[n, t]])
            exact += jacobian.T @ (np.diag(p) - np.outer(p, p)) @ jacobian
            score += jacobian.T @ (np.eye(3)[y[n, t]] - p)
        empirical += np.outer(score, score)
        count += bool(mask[n].any())
    return loss / count, exact / count, empirical / count


def test_padded_positions_of_sequences_count_neither_in_the_loss_nor_in_the_fisher():
    model, params, inputs, y = sequence_problem()
    loss, exact, empirical = by_hand(params, inputs, y)
    assert relative_error(model.loss(params, inputs, y), loss) < 1e-12
    for form in (Dense, KLHessian, MatrixFree):
        assert relative_error(dense_of(form(model), params, inputs), exact) < 1e-10
        given = dense_of(form(model, Empirical()), params, inputs, y)
        assert relative_error(given, empirical) < 1e-10
    assert jnp.isfinite(ravel(jax.grad(model.loss)(params, inputs, y))).all()


def test_sampled_labels_of_sequences_are_unbiased():
    model, params, inputs, y = sequence_problem()
    _, exact, _ = by_hand(params, inputs, y)
    draw = lambda key: Dense(model, Sampled(1)).estimate(params, inputs, key=key)
    draws = jax.jit(jax.vmap(draw))(jax.random.split(KEY, 400))
    error = draws.std(0, ddof=1) / np.sqrt(len(draws))
    assert jnp.abs((draws.mean(0) - exact) / error).max() < 5


def test_a_model_without_inputs_serves_any_number_of_labels(tolerance):
    model = ng.Model(lambda z, _: z[None], families.NormalMeanLogScale())
    z = jnp.array([0.3, -0.2])
    y = jax.random.normal(KEY, (9,))
    scale = jnp.exp(z[1])
    expected = jnp.diag(jnp.array([1 / scale**2, 2.0]))
    for form in (Dense, KLHessian, MatrixFree):
        assert relative_error(dense_of(form(model), z, None), expected) < 1e-10
    residual = (y - z[0]) / scale
    scores = jnp.stack([residual / scale, residual**2 - 1], -1)
    empirical = dense_of(Dense(model, Empirical()), z, None, y)
    assert relative_error(empirical, scores.T @ scores / 9) < tolerance("identity")


def test_collections_that_all_examples_share_travel_in_the_inputs(tolerance):
    case = CASES["categorical"]
    plain, params, x, y = case.problem()

    def apply(params, inputs):
        mean, variance = inputs["statistics"]
        return mlp(params, (inputs["x"] - mean[None]) / jnp.sqrt(variance)[None])

    model = ng.Model(apply, case.family, in_axes={"x": 0, "statistics": None})
    mean, variance = x.mean(0), x.var(0)
    inputs = {"x": x, "statistics": (mean, variance)}
    normalised = (x - mean[None]) / jnp.sqrt(variance)[None]
    assert relative_error(
        model.loss(params, inputs, y), plain.loss(params, normalised, y)
    ) < tolerance("identity")
    for form in (Dense, MatrixFree, KLHessian):
        given = dense_of(form(model), params, inputs)
        expected = dense_of(form(plain), params, normalised)
        assert relative_error(given, expected) < tolerance("identity")


@pytest.mark.parametrize("form", [KLHessian, Dense, MatrixFree, Diagonal])
def test_large_float32_reductions_are_compiled_right(form):
    """jaxlib 0.10.2 compiles sums of products with a broadcast factor wrongly on the
    CPU once they pass 2^15 elements (jax issue 39103); ours must not be among them."""
    k1, k2, k3 = jax.random.split(KEY, 3)
    model = ng.Model(mlp, families.Categorical())
    params = mlp_params(k1, 10, jnp.float32, inputs=8, hidden=10)
    x = jax.random.normal(k2, (512, 8), jnp.float32)
    given = dense_of(form(model), params, x)
    vector, unravel = jax.flatten_util.ravel_pytree(params)
    jacobian = np.asarray(
        jax.vmap(jax.jacrev(lambda v, x: mlp(unravel(v), x[None])[0]), (None, 0))(
            vector, x
        ),
        "float64",
    )
    p = np.asarray(jax.nn.softmax(mlp(params, x)), "float64")
    middle = p[:, :, None] * np.eye(10) - p[:, :, None] * p[:, None]
    exact = (
        np.einsum("ncp,ncd,ndq->pq", jacobian, middle, jacobian, optimize=True) / 512
    )
    if form is Diagonal:
        exact = np.diag(np.diag(exact))
    assert relative_error(given, exact) < 1e-5
    v = jax.random.normal(k3, vector.shape, jnp.float32)
    product = jax.jit(lambda p, x, v: form(model).at(p, x).mv(v))
    given = ravel(product(params, x, unravel(v)))
    assert relative_error(given, exact @ np.asarray(v)) < 1e-5
