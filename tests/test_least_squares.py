"""Groups of residuals: loss, gradient and Gauss-Newton matrix are numpy's."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
import test_nist
from residual_groups import MODEL, PARAMS, RESIDUALS, WEIGHTS, X, by_hand, flat, joined

import natgrad as ng
from natgrad import adaptive
from natgrad.curvature.group_visits import GroupVisits
from natgrad.curvature.visits import visits
from natgrad.model.batch import Batch

ALL_OF_F = ("Dense", "KLHessian", "Gram", "MatrixFree")


@pytest.mark.parametrize("name", ALL_OF_F)
def test_the_fisher_information_is_the_gauss_newton_matrix(name):
    _, jacobian, w = joined()
    expected = jacobian.T @ (w[:, None] * jacobian)
    curvature = getattr(ng.curvature, name)(MODEL)
    found = jax.jit(lambda p: curvature.at(p, X).dense())(PARAMS)
    np.testing.assert_allclose(found, expected, 1e-12, 1e-12)


def test_loss_and_gradient_are_half_the_weighted_squares():
    r, jacobian, w = joined()
    found = jax.jit(ng.curvature.Dense(MODEL).value_and_grad)(PARAMS, X, None)
    for loss, gradient in (jax.value_and_grad(MODEL.loss)(PARAMS, X), found[:2]):
        np.testing.assert_allclose(loss, np.sum(w * r**2) / 2, 1e-12)
        np.testing.assert_allclose(flat(gradient), jacobian.T @ (w * r), 1e-12)
    for name, loss in MODEL.losses(PARAMS, X).items():
        r, points = by_hand()[name][0], len(X[name])
        np.testing.assert_allclose(loss, np.sum(r**2) / (2 * points), 1e-12)


def test_each_point_is_evaluated_alone():
    """So a row of J costs what one point costs, not what all do."""
    found = visits(MODEL, ng.curvature.Exact(), Batch(PARAMS, X))
    assert isinstance(found, GroupVisits)
    assert [part.count for part in found.parts] == [5, 6, 1]


def test_a_step_in_sample_space_is_the_dense_one():
    gradient = jax.grad(MODEL.loss)(PARAMS, X)

    def steps(p):
        return [
            getattr(ng.curvature, name)(MODEL).at(p, X).solve(gradient, 1e-3)
            for name in ("Dense", "Gram")
        ]

    dense, gram = map(flat, jax.jit(steps)(PARAMS))
    np.testing.assert_allclose(gram, dense, 1e-10)


def test_points_that_see_each_other_and_residuals_without_points():
    """The mean over a group's points, and a prior of the parameters."""
    model = ng.least_squares(
        {
            "centred": lambda p, x: p["a"][0] * (x - jnp.mean(jnp.tanh(p["k"] * x))),
            "prior": lambda p, _: p["a"] / 2,
        },
        {"prior": 3.0},
    )
    x = X["decay"]
    a, k = float(PARAMS["a"][0]), float(PARAMS["k"])
    mean, slope = np.mean(np.tanh(k * x)), np.mean(x / np.cosh(k * x) ** 2)
    centred = np.stack([x - mean, 0 * x, -a * slope * np.ones(5)], 1)
    prior = np.eye(2, 3) / 2
    expected = centred.T @ centred / 5 + 3 * prior.T @ prior / 2
    batch = {"centred": x, "prior": None}
    for name in ("Dense", "Gram"):
        curvature = getattr(ng.curvature, name)(model)
        found = jax.jit(lambda p, c=curvature: c.at(p, batch).dense())(PARAMS)
        np.testing.assert_allclose(found, expected, 1e-12, 1e-12)


def test_weights_of_the_batch_replace_the_models():
    replaced = {"decay": jnp.array(0.25), "one": 4.0}
    other = ng.least_squares(RESIDUALS, WEIGHTS | replaced)
    loss = jax.jit(MODEL.loss)(PARAMS, X | {"weights": replaced})
    np.testing.assert_allclose(loss, other.loss(PARAMS, X), 1e-12)


def test_a_group_of_weight_0_does_not_count_whatever_it_holds():
    residuals = RESIDUALS | {"one": lambda p, x: jnp.log(-x * p["k"] ** 2)}
    without = {name: RESIDUALS[name] for name in ("decay", "pair")}
    model = ng.least_squares(residuals, WEIGHTS | {"one": 0.0})
    expected = ng.least_squares(without, WEIGHTS)
    points = {name: X[name] for name in without}

    @jax.jit
    def both(params):
        found = jax.grad(model.loss)(params, X), ng.curvature.Gram(model).at(params, X)
        dense = ng.curvature.Dense(expected).at(params, points)
        right = jax.grad(expected.loss)(params, points), dense
        return [(gradient, metric.dense()) for gradient, metric in (found, right)]

    (found, f), (gradient, dense) = both(PARAMS)
    np.testing.assert_allclose(flat(found), flat(gradient), 1e-12)
    np.testing.assert_allclose(f, dense, 1e-12, 1e-12)


def test_a_part_of_the_parameters_sees_its_own_block():
    part = {"a": PARAMS["a"], "k": optax.MaskedNode()}
    found = ng.curvature.Gram(MODEL.with_frozen(PARAMS)).at(part, X).dense()
    _, jacobian, w = joined()
    expected = (jacobian.T @ (w[:, None] * jacobian))[:2, :2]
    np.testing.assert_allclose(found, expected, 1e-12, 1e-12)


def test_balanced_groups_have_equal_shares():
    """Traces (1/N) tr JᵀJ, and lengths of gradients Jᵀr/N, by numpy."""
    traces, lengths = {}, {}
    for name, (r, jacobian, _) in by_hand().items():
        traces[name] = np.sum(jacobian**2) / len(X[name])
        lengths[name] = np.linalg.norm(jacobian.T @ r) / len(X[name])
    both = {adaptive.balance_traces: traces, adaptive.balance_gradients: lengths}
    for balance, sizes in both.items():
        for name, weight in balance(MODEL, PARAMS, X).items():
            np.testing.assert_allclose(weight * sizes[name], sum(sizes.values()), 1e-12)


# Optimizers -----------------------------------------------------------------------


def update(tx, params, state, model=MODEL, batch=X):
    loss, gradient = jax.value_and_grad(model.loss)(params, batch)
    more = {"inputs": batch, "value": loss, "value_fn": model.loss}
    updates, state = tx.update(gradient, state, params, grad=gradient, **more)
    return optax.apply_updates(params, updates), state


EXACT = {"learning_rate": 1.0, "trust_region": None}
OPTIMIZERS = {
    "natural_gradient": lambda: ng.natural_gradient(model=MODEL),
    "gram": lambda: ng.gram(model=MODEL, labels=ng.curvature.Exact(), **EXACT),
    "matrix_free": lambda: ng.matrix_free(model=MODEL, **EXACT),
    "quadratic model": lambda: optax.chain(
        ng.scale_by_curvature(ng.curvature.Dense(MODEL), damping=1e-3),
        ng.scale_by_quadratic_model(MODEL),
    ),
    "line search": lambda: optax.chain(
        ng.scale_by_curvature(ng.curvature.Dense(MODEL), damping=1e-3),
        optax.scale(-1.0),
        optax.scale_by_backtracking_linesearch(10),
    ),
}


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_every_exact_optimizer_takes_it(name):
    tx, params = OPTIMIZERS[name](), PARAMS
    run = jax.jit(lambda p: update(tx, *update(tx, p, tx.init(p))))
    params, _ = run(PARAMS)
    assert MODEL.loss(params, X) < 0.95 * MODEL.loss(PARAMS, X)


def marquardt(model, accelerated=False):
    direction = ng.scale_by_curvature(
        ng.curvature.Dense(model), solver=ng.scaling.Marquardt()
    )
    if accelerated:
        direction = ng.geodesic_acceleration(direction, model)
    return ng.levenberg_marquardt(
        optax.chain(direction, optax.scale(-1.0)),
        model,
        damping=100.0,
        rule=adaptive.Nielsen(),
    )


def test_certified_parameters_of_nist_from_two_groups_of_data():
    """Groups of 5 and 9 points, weighted by their numbers: the sum of squares of all"""
    problem = test_nist.read("Misra1a")
    curve = test_nist.CURVES["Misra1a"]
    residual = lambda b, points: curve(b, points[:, 0]) - points[:, 1]
    model = ng.least_squares(
        {"few": residual, "many": residual}, {"few": 5.0, "many": 9.0}
    )
    points = np.concatenate([problem.x[:, None], problem.y], 1)
    batch = {"few": points[:5], "many": points[5:]}
    tx = marquardt(model)

    def run(b):
        step = lambda carry, _: (update(tx, *carry, model, batch), None)
        return jax.lax.scan(step, (b, tx.init(b)), length=100)[0][0]

    b = jax.jit(run)(jnp.asarray(problem.parameters[0]))
    np.testing.assert_allclose(b, problem.parameters[2], 1e-6)
    np.testing.assert_allclose(2 * model.loss(b, batch), problem.squares, 1e-8)


def test_steps_do_not_depend_on_the_units_of_an_unknown_coefficient():
    """κ in units of 1e-9: λ diag F damps it as it does κ in units of 1."""
    scales = (1.0, 1e-9)
    found = []
    for scale in scales:
        in_units = lambda p, s=scale: p | {"k": p["k"] / s}
        model = ng.least_squares(
            {n: lambda p, x, f=f, u=in_units: f(u(p), x) for n, f in RESIDUALS.items()},
            WEIGHTS,
        )
        tx, params = marquardt(model), PARAMS | {"k": scale * PARAMS["k"]}
        run = lambda p, tx=tx, m=model: update(tx, *update(tx, p, tx.init(p), m), m)
        found.append(in_units(jax.jit(run)(params)[0]))
    np.testing.assert_allclose(flat(found[1]), flat(found[0]), 1e-9)
    assert abs(found[0]["k"] - PARAMS["k"]) > 1e-4


def test_an_accelerated_step_is_judged_by_what_its_first_order_part_promised():
    """ρ = fall / (M(0) − M(v)), also where M thinks v + a/2 no descent."""
    tx = marquardt(MODEL, accelerated=True)
    loss, gradient = jax.value_and_grad(MODEL.loss)(PARAMS, X)
    metric = ng.curvature.Dense(MODEL).at(PARAMS, X)
    f, g = np.asarray(metric.dense()), flat(gradient)
    v = -np.linalg.solve(f + 100 * np.diag(np.diag(f)), g)
    params, state = jax.jit(lambda p: update(tx, p, tx.init(p)))(PARAMS)
    assert not state.rejected
    assert state.inner[0].ratio > 0
    predicted = -(g @ v + v @ f @ v / 2)
    fall = loss - MODEL.loss(params, X)
    np.testing.assert_allclose(state.ratio, fall / predicted, 1e-8)


# Errors ---------------------------------------------------------------------------

IMPOSSIBLE = {
    "mapping from names": lambda: ng.least_squares([RESIDUALS["one"]]),
    "no functions": lambda: ng.least_squares({"one": 3}),
    "called": lambda: ng.least_squares({"weights": RESIDUALS["one"]}),
    r"which are \['decay'": lambda: ng.least_squares(RESIDUALS, {"edge": 1.0}),
    "finite and at least 0, got nan": lambda: ng.least_squares(
        RESIDUALS, {"one": jnp.nan}
    ),
    "finite and at least 0, got -1": lambda: MODEL.loss(
        PARAMS, X | {"weights": {"one": -1}}
    ),
    r"no points for \['pair'\]": lambda: MODEL.loss(
        PARAMS, {"decay": X["decay"], "one": X["one"]}
    ),
    r"points for \['edge'\]": lambda: MODEL.loss(PARAMS, X | {"edge": X["one"]}),
    "mapping from the groups": lambda: MODEL.loss(PARAMS, X["decay"]),
    "points of 'one' must": lambda: MODEL.loss(PARAMS, X | {"one": np.ones(0)}),
    r"one a point \[3\]": lambda: MODEL.loss(
        PARAMS, X | {"pair": np.ones((4, 2))[:3]} | {"weights": {"pair": np.ones(2)}}
    ),
    r"\[5, ...\], a row a point": lambda: ng.least_squares(
        {"one": lambda p, x: jnp.sum(p["k"] * x)}
    ).loss(PARAMS, {"one": np.ones(5)}),
    r"groups \['decay', .* each has another. Use Dense": lambda: ng.curvature.KFAC(
        MODEL
    ).at(PARAMS, X),
    "^KFAC has one product of": lambda: ng.ekfac(0.1, MODEL).init(PARAMS),
    "apply was replaced": lambda: ng.curvature.columns.law_of_outputs(MODEL).losses(
        PARAMS, X
    ),
}


@pytest.mark.parametrize("message", IMPOSSIBLE)
def test_what_is_impossible_says_what_to_do(message):
    with pytest.raises(ValueError, match=message):
        IMPOSSIBLE[message]()


def test_a_negative_weight_under_jit_is_nan():
    loss = jax.jit(lambda w: MODEL.loss(PARAMS, X | {"weights": {"one": w}}))
    assert jnp.isnan(loss(-1.0))
    assert jnp.isfinite(loss(1.0))


def test_chunks_of_examples_are_refused_and_auto_takes_all():
    """Groups have an axis each."""
    gram = ng.curvature.Gram
    with pytest.raises(ValueError, match="groups of residuals"):
        gram(MODEL, chunk_size=2).at(PARAMS, X)
    with pytest.raises(ValueError, match="leave chunk_size out"):
        ng.curvature.MatrixFree(MODEL, chunk_size=2).at(PARAMS, X).mv(PARAMS)
    found = gram(MODEL, chunk_size="auto", memory_budget=1).at(PARAMS, X).dense()
    np.testing.assert_allclose(found, gram(MODEL).at(PARAMS, X).dense(), 1e-12, 1e-12)
