"""Three definitions of the Fisher information agree, however it is computed."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from as_shipped import shipped
from problems import (
    CASES,
    LABELS,
    dense_of,
    dense_of_each,
    mlp,
    mlp_params,
    ravel,
    relative_error,
)

import natgrad as ng
from natgrad import families
from natgrad.curvature import (
    BlockDiagonal,
    Dense,
    Diagonal,
    Exact,
    KLHessian,
    MatrixFree,
    Sampled,
)

KEY = jax.random.PRNGKey(5)


IN_BOTH = [(name, "float64") for name in CASES]
IN_BOTH += [(n, "float32") for n in ("categorical", "normal_mean_log_scale", "poisson")]


@pytest.mark.parametrize(("name", "dtype"), IN_BOTH)
def test_hessian_of_kl_score_products_and_operator_agree(name, dtype, tolerance):
    model, params, x, _ = CASES[name].problem(dtype)
    forms = [KLHessian, Dense, MatrixFree]
    matrices = dense_of_each([form(model) for form in forms], params, x)
    for matrix in matrices:
        assert matrix.dtype == dtype
        assert relative_error(matrix, matrices[1]) < tolerance("identity", dtype)
    assert np.linalg.matrix_rank(matrices[1]) > 1


@pytest.mark.parametrize("labels", LABELS)
def test_every_form_keeps_the_same_outer_products(labels, tolerance):
    model, params, x, y = CASES["categorical"].problem()
    forms = [Dense, KLHessian, MatrixFree, Diagonal, BlockDiagonal]
    curvatures = [form(model, LABELS[labels]) for form in forms]
    matrix, hessian, free, diagonal, blocks = map(
        np.asarray, dense_of_each(curvatures, params, x, y, KEY)
    )
    for other in (hessian, free):
        assert relative_error(other, matrix) < tolerance("identity")
    assert relative_error(np.diag(diagonal), np.diag(matrix)) < tolerance("identity")
    owner = np.repeat(range(4), [leaf.size for leaf in jax.tree.leaves(params)])
    inside = owner[:, None] == owner[None]
    expected = np.where(inside, matrix, 0)
    assert relative_error(blocks, expected) < tolerance("identity")


def test_blocks_by_a_users_grouping_are_the_layers(tolerance):
    model, params, x, _ = CASES["categorical"].problem()
    by_layer = BlockDiagonal(model, grouping=lambda path: path.split("/")[0])
    blocks, matrix = dense_of_each([by_layer, Dense(model)], params, x)
    first = sum(leaf.size for leaf in jax.tree.leaves(params["in"]))
    inside = np.arange(len(matrix)) < first
    expected = np.where(inside[:, None] == inside[None], matrix, 0)
    assert relative_error(blocks, expected) < tolerance("identity")


def test_one_group_over_all_leaves_in_any_order_is_the_dense_matrix(tolerance):
    model, params, x, _ = CASES["categorical"].problem()
    one_group = BlockDiagonal(model, grouping=lambda path: 0)
    whole, matrix = dense_of_each([one_group, Dense(model)], params, x)
    assert relative_error(whole, matrix) < tolerance("identity")


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


def test_chunks_change_memory_not_results(tolerance):
    case = CASES["categorical"]
    model, params, x, y = case.problem()
    models = [model, *(case.model(chunk_size=size) for size in (1, 3, 100))]
    for labels in (Exact(), Sampled(2)):
        whole, *chunked = jax.jit(
            lambda *batch, labels=labels: [
                Dense(model, labels).value_and_grad(*batch) for model in models
            ]
        )(params, x, y, KEY)
        for parts in chunked:
            for given, expected in zip(parts, whole, strict=True):
                error = relative_error(ravel(given), ravel(expected))
                assert error < tolerance("identity")


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

    @jax.jit
    def both(params, x, y):
        expected = jax.value_and_grad(model.loss)(params, x, y)
        estimate = curvature.estimate(params, x, y, KEY)
        return curvature.value_and_grad(params, x, y, KEY), (*expected, estimate)

    (value, gradient, statistics), others = both(params, x, y)
    expected, expected_gradient, estimate = others
    assert relative_error(value, expected) < tolerance("identity")
    assert relative_error(ravel(gradient), ravel(expected_gradient)) < tolerance(
        "identity"
    )
    for given, estimated in zip(
        jax.tree.leaves(statistics),
        jax.tree.leaves(estimate),
        strict=True,
    ):
        assert relative_error(given, estimated) < tolerance("identity")


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


@pytest.mark.parametrize("form", [KLHessian, Dense, MatrixFree, Diagonal])
def test_large_float32_reductions_are_compiled_right(form):
    """jaxlib 0.10.2 compiles sums of products with a broadcast factor wrongly on the
    CPU once they pass 2^15 elements (jax issue 39103); ours must not be among them."""
    k1, k2, k3 = jax.random.split(KEY, 3)
    model = ng.Model(mlp, families.Categorical())
    params = mlp_params(k1, 10, jnp.float32, inputs=8, hidden=10)
    x = jax.random.normal(k2, (512, 8), jnp.float32)
    given = shipped(lambda p, x: form(model).at(p, x).dense())(params, x)
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
    product = shipped(lambda p, x, v: form(model).at(p, x).mv(v))
    given = ravel(product(params, x, unravel(v)))
    assert relative_error(given, exact @ np.asarray(v)) < 1e-5
