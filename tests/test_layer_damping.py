"""Damping by layer: (F + Λ)⁻¹ with Λ constant in each leaf, however it is given."""

from __future__ import annotations

import re

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from problems import CASES, ravel, relative_error

import natgrad as ng
from natgrad import curvature as curvatures
from natgrad.metrics import DenseMetric, DiagonalMetric
from natgrad.solvers.damping import (
    LeafDamping,
    by_leaf,
    resolve_damping,
)
from natgrad.solvers.damping_of_metric import relative_to

KEY = jax.random.PRNGKey(3)
CASE = CASES["categorical"]
# The λ of in/b, in/w, out/b, out/w and of a leaf that no layer reads: each its own, or
# one for each layer.
BY_LEAF, BY_LAYER = np.array([0.03, 0.1, 0.02, 0.3, 0.05]), np.array([0.03, 0.2, 0.05])
LAYERS, LAYER_OF = [[0, 1], [2, 3], [4]], [0, 0, 1, 1, 2]
# Curvature, may leaves of a layer have different λ, and its blocks.
KINDS = {
    "dense": (curvatures.Dense, True, [range(5)]),
    "block_diagonal": (
        lambda m: curvatures.BlockDiagonal(m, grouping=lambda path: path[:2]),
        True,
        LAYERS,
    ),
    "diagonal": (curvatures.Diagonal, True, [[i] for i in range(5)]),
    "kfac": (curvatures.KFAC, False, LAYERS),
    "ekfac": (curvatures.EKFAC, False, LAYERS),
    "gram": (curvatures.Gram, True, [range(5)]),
    "gram_blocks": (curvatures.GramBlocks, True, LAYERS),
    "matrix_free": (curvatures.MatrixFree, True, [range(5)]),
}


def problem(examples=7):
    """(model, params, x, y), with parameters that nothing reads."""
    model, params, x, y = CASE.problem(examples=examples)
    return model, params | {"unused": jnp.ones(2)}, x, y


def tree_of(values):
    """A tree of the λs of leaves, or a prefix of it with those of layers."""
    if len(values) == 3:
        return dict(zip(["in", "out", "unused"], values, strict=True))
    b, w, c, v, unused = values
    return {"in": {"b": b, "w": w}, "out": {"b": c, "w": v}, "unused": unused}


def entries_of(values, params):
    """Λ's diagonal, from the λs of leaves."""
    return np.repeat(values, [leaf.size for leaf in jax.tree.leaves(params)])


@pytest.mark.parametrize("kind", KINDS)
def test_each_metric_solves_as_its_matrix_does(kind):
    """Solution, log det, their gradients in the λs, diagonal, λ_b = c tr F_b / P_b."""
    curvature, every_leaf, blocks = KINDS[kind]
    model, params, x, y = problem()
    v = jax.tree.map(lambda leaf: leaf + 0.3, params)
    values = BY_LEAF if every_leaf else BY_LAYER
    index = np.arange(5) if every_leaf else np.array(LAYER_OF)
    w = np.linspace(1, 2, ravel(params).size)

    @jax.jit
    def given(values, params, x, y):
        metric = curvature(model).at(params, x, y, KEY)

        def functional(values):
            damping = tree_of(values)
            solution = ravel(metric.solve(v, damping))
            if kind == "matrix_free":  # from as many probes as parameters: exact
                exactly = {"num_probes": w.size, "damping": damping}
                logdet = metric.estimate_of_trace(jnp.log, KEY, **exactly).value
                diagonal = metric.estimate_of_diagonal(jnp.reciprocal, KEY, **exactly)
                diagonal = diagonal.value
            else:
                logdet = metric.logdet(damping)
                diagonal = metric.inverse_diagonal(damping)
            return solution @ w + logdet, (solution, logdet, ravel(diagonal))

        relative = resolve_damping(ng.Relative(0.2), metric)
        relative = jnp.stack(jax.tree.leaves(by_leaf(relative, params)))
        return metric.dense(), jax.grad(functional, has_aux=True)(values), relative

    dense, (gradient, found), relative = given(values, params, x, y)
    solution, logdet, diagonal = found
    inverse = np.linalg.inv(dense + np.diag(entries_of(values[index], params)))
    expected = inverse @ ravel(v)
    assert relative_error(solution, expected) < 1e-10
    assert relative_error(logdet, -np.linalg.slogdet(inverse)[1]) < 1e-10
    assert relative_error(diagonal, np.diag(inverse)) < 1e-9
    rates = np.diag(inverse) - (inverse @ w) * expected
    slots = entries_of(index, params)
    assert relative_error(gradient, np.bincount(slots, rates)) < 1e-9
    leaf, diagonal = entries_of(range(5), params), np.diag(dense)
    own = np.full(5, diagonal.mean())  # that of the unused leaf too, where F_b = 0
    for block in map(list, blocks):
        inside = np.isin(leaf, block)
        own[block] = diagonal[inside].mean() if diagonal[inside].any() else own[block]
    assert relative_error(relative, 0.2 * own) < 1e-12


def test_sample_space_takes_a_damping_of_its_own_for_a_bias_and_a_table():
    """B Λ^-½ without rows of B, for layers that are not written out."""
    _, params, x, _ = problem(4)
    params = params | {"table": jnp.arange(15.0).reshape(5, 3) / 7}
    inputs = {"x": x, "row": jnp.array([0, 3, 3, 1])}

    def apply(p, inputs):
        x = inputs["x"] + p["table"][inputs["row"]]
        hidden = jnp.tanh(x @ p["in"]["w"] + p["in"]["b"][None])
        return hidden @ p["out"]["w"] + p["out"]["b"][None]

    model = ng.Model(apply, ng.families.Categorical(), example_inputs=inputs)
    damping = ng.ByPath({"": 0.1, "in/b": 0.02, "table": 0.4, "out/b": 0.3})

    @jax.jit
    def given(params):
        metric = curvatures.Gram(model).at(params, inputs)
        pieces = {type(piece).__name__ for piece in metric.jacobian.pieces}
        assert pieces == {"LinearBlock", "EmbeddingBlock"}
        return metric.dense(), ravel(metric.solve(params, damping))

    dense, solution = given(params)
    values = [0.02, 0.1, 0.3, 0.1, 0.4, 0.1]
    damped = dense + np.diag(entries_of(values, params))
    assert relative_error(solution, np.linalg.solve(damped, ravel(params))) < 1e-10


def spd(size, rank, seed=0):
    """A matrix of some rank."""
    rows = np.random.default_rng(seed).normal(size=(rank, size))
    return rows.T @ rows


PARAMS = {"a": jnp.arange(1.0, 4.0), "b": {"c": jnp.ones((2, 1)), "d": jnp.array(2.0)}}


def test_every_dense_solver_takes_it_and_0_for_some_gives_the_least_norm():
    layout, matrix = ng.tree.Layout.of(PARAMS), spd(6, 1)
    solvers = [ng.solvers.cholesky, ng.solvers.pseudo_inverse, ng.solvers.cg]

    @jax.jit
    def given(matrix, v, values):
        damping = {"a": values[0], "b": values[1]}
        metric, v = DenseMetric(layout, matrix), layout.unravel(v)
        return [ravel(solve(metric, v, damping)) for solve in solvers]

    for values in ([0.3, 0.5], [0.3, 0.0]):
        damped = matrix + np.diag(np.repeat(values, 3))
        v = damped @ np.arange(6.0)  # in the range, as CG needs it to be
        for result in given(matrix, v, np.array(values)):
            expected = np.linalg.pinv(damped, 1e-12) @ v
            assert relative_error(result, expected) < 1e-10


def factored(values, metric, params):
    """(A + π√λ I)⁻¹ V (G + √λ/π I)⁻¹ with π² and λ of the layer, and V/λ outside."""
    found = {"unused": np.asarray(params["unused"]) / values[2]}
    for a, g, damping, name in zip(
        metric.inputs, metric.outputs, values[:2], ["in", "out"], strict=True
    ):
        pi = np.sqrt((np.trace(a) / len(a)) / (np.trace(g) / len(g)))
        a = a + pi * np.sqrt(damping) * np.eye(len(a))
        g = g + np.sqrt(damping) / pi * np.eye(len(g))
        matrix = np.concatenate([params[name]["w"], params[name]["b"][None]])
        matrix = np.linalg.solve(a, matrix) @ np.linalg.inv(g)
        found[name] = {"b": matrix[-1], "w": matrix[:-1]}
    return ravel(dict(sorted(found.items())))


def test_kept_inverses_have_the_damping_of_each_layer():
    """Their derivatives are central differences of the formula."""
    model, params, x, y = problem()
    mesh = jax.sharding.Mesh(np.array(jax.devices()[:1]), ("data",))
    solver = ng.kronecker.FactoredTikhonov()
    spread = ng.spread.DistributedInverse(solver, mesh)

    @jax.jit
    def given(values, params):
        metric = curvatures.KFAC(model).at(params, x, y, KEY)
        solve = lambda solver, d: ravel(solver(metric, params, tree_of(d)))
        jacobian = jax.jacrev(lambda values: solve(solver, values))(values)
        return metric, solve(solver, values), solve(spread, values), jacobian

    metric, one, shared, jacobian = given(BY_LAYER, params)
    expected = factored(BY_LAYER, metric, params)
    assert relative_error(one, expected) < 1e-10
    assert relative_error(shared, expected) < 1e-10
    for i, step in enumerate(1e-5 * np.eye(3)):
        ends = [factored(BY_LAYER + s * step, metric, params) for s in (1, -1)]
        assert relative_error(jacobian[:, i], (ends[0] - ends[1]) / 2e-5) < 1e-7


def test_paths_prefixes_and_numbers():
    """The longest beginning counts, names are wholes, equal numbers are one λ."""
    params = {"a": {"w": 1.0, "b": 1.0}, "ab": [1.0, 1.0], "net/~/linear": {"w": 1.0}}
    params = jax.tree.map(jnp.asarray, params)
    layout = ng.tree.Layout.of(params)
    assert ng.tree.paths(params) == ["a/b", "a/w", "ab/0", "ab/1", "net/~/linear/w"]

    def read(damping):
        found = resolve_damping(damping, layout)
        return [float(each) for each in jax.tree.leaves(by_leaf(found, params))]

    assert read(0.5) == [0.5] * 5
    assert read(ng.ByPath({"": 3, "a": 1, "a/w": 2})) == [1, 2, 3, 3, 3]
    assert read(ng.ByPath({"": 3, "net/~/linear": 4, "ab/1": 5})) == [3, 3, 3, 5, 4]
    assert read({"a": 1, "ab": [2, 3], "net/~/linear": 4}) == [1, 1, 2, 3, 4]
    equal = resolve_damping(jax.tree.map(lambda _: 0.1, params), layout)
    assert equal.shape == ()
    assert equal == 0.1
    two = resolve_damping({"a": 0.0, "ab": [2, 2.0], "net/~/linear": 2}, layout)
    assert isinstance(two, LeafDamping)
    assert (two.index, two.zeros) == ((0, 0, 1, 1, 1), (0,))
    traced = jax.eval_shape(
        lambda one: resolve_damping(ng.ByPath({"": one, "a": 1.0}), layout), 1.0
    )
    assert traced.index == (0, 0, 1, 1, 1)


def test_blocks_that_read_parts_of_one_leaf_are_relative_to_their_mean():
    diagonal = {"a": jnp.array([1.0, 3.0]), "b": jnp.array([5.0]), "c": jnp.zeros(2)}
    found = by_leaf(relative_to([[0], [0, 1]], diagonal, jnp.array(2.0)), diagonal)
    assert [float(each) for each in jax.tree.leaves(found)] == [6, 6, 3.6]


OPTIMIZERS = [
    "natural_gradient",
    "gram",
    "spring",
    "matrix_free",
    "kfac",
    "ekfac",
    "diagonal_fisher",
    "empirical_fisher",
]


def updated(name, damping, params, x, y):
    """The first update by an optimizer."""
    tx = getattr(ng, name)(0.1, problem()[0], damping=damping)
    return tx.update(params, tx.init(params), params, inputs=x, targets=y)[0]


@pytest.mark.parametrize("name", OPTIMIZERS)
def test_equal_numbers_are_the_same_program_as_one(name):
    _, params, x, y = problem()

    def program(damping):
        update = lambda *batch: updated(name, damping, *batch)
        return re.sub("0x[0-9a-f]+", "", str(jax.make_jaxpr(update)(params, x, y)))

    assert program(jax.tree.map(lambda _: 1e-2, params)) == program(1e-2)


def test_numbers_not_known_to_be_equal_give_the_same_step_as_one():
    _, params, x, y = problem()

    @jax.jit
    def both(damping, *batch):
        by_layer = dict(zip(["in", "out", "unused"], damping, strict=True))
        return updated("kfac", 0.05, *batch), updated("kfac", by_layer, *batch)

    one, three = both(jnp.full(3, 0.05), params, x, y)
    assert relative_error(ravel(three), ravel(one)) < 1e-12


def test_a_schedule_of_paths_and_what_health_says():
    """g/(f + λ_b), then the λ of the next count; a negative one skips the step."""
    model, params, x, _ = problem()
    curvature = curvatures.Diagonal(model)
    rule = lambda k: ng.ByPath({"": 0.1 / (k + 1), "out/w": 0.3 - 0.2 * k})
    tx = ng.scale_by_curvature(curvature, damping=rule)

    @jax.jit
    def steps(params, x):
        state, found = tx.init(params), []
        for _ in range(3):
            update, state = tx.update(params, state, params, inputs=x)
            found.append((ravel(update), optax.tree.get(state, "health")))
        return found, curvature.at(params, x).entries

    found, entries = steps(params, x)
    for k, (update, health) in enumerate(found):
        values = np.array([0.1 / (k + 1)] * 3 + [0.3 - 0.2 * k, 0.1 / (k + 1)])
        damping = entries_of(values, params)
        expected = ravel(params) / (entries + damping) * (k < 2)
        assert relative_error(update, expected) < 1e-12
        assert relative_error(health.damping, damping.mean()) < 1e-12
        assert health.skipped == (k == 2)
        assert health.residual < 1e-12
    assert health.reason == 2


def test_a_number_that_is_adapted_multiplies_damping_by_layer():
    """As levenberg_marquardt has it; all else is in place of that of the rule."""
    model, params, x, _ = problem()
    own = {"in": 0.1, "out": 0.3, "unused": 0.2}
    tx = ng.scale_by_curvature(curvatures.Diagonal(model), damping=own)
    state = tx.init(params)
    diagonal = jax.jit(lambda p, x: curvatures.Diagonal(model).at(p, x).diagonal())
    diagonal = diagonal(params, x)
    means = [leaf.mean() for leaf in jax.tree.leaves(diagonal)]
    means[4] = ravel(diagonal).mean()
    for damping, values in (
        (3.0, [0.3, 0.3, 0.9, 0.9, 0.6]),
        (ng.ByPath({"": 1, "in": 2}), [2, 2, 1, 1, 1]),
        (ng.Relative(0.2), 0.2 * np.array(means)),
    ):
        update, state = tx.update(params, state, params, inputs=x, damping=damping)
        damped = ravel(diagonal) + entries_of(values, params)
        assert relative_error(ravel(update), ravel(params) / damped) < 1e-12
        assert optax.tree.get(state, "health").residual < 1e-12


def test_spring_pulls_each_layer_with_its_own_damping():
    """(F + Λ) φ = g + Λ μ φ_before."""
    model, params, x, _ = problem()
    tx = ng.scale_by_spring(
        curvatures.Diagonal(model), damping=tree_of(list(BY_LEAF)), momentum=0.7
    )
    before = jax.tree.map(lambda leaf: leaf**2 + 1, params)

    @jax.jit
    def given(params, x):
        state = tx.init(params)._replace(direction=before)
        update, _ = tx.update(params, state, params, inputs=x)
        return ravel(update), curvatures.Diagonal(model).at(params, x).entries

    update, entries = given(params, x)
    damping = entries_of(BY_LEAF, params)
    right = ravel(params) + 0.7 * damping * ravel(before)
    assert relative_error(update, right / (entries + damping)) < 1e-12


def test_preconditioners_and_marquardt_take_it():
    """Preconditioners do not change the solution; Marquardt has F + Λ diag F; robust.

    What F decides it takes from F in its own units, S⁻¹ F S⁻¹ as one block.
    """
    model, params, x, y = problem()
    damping = tree_of(list(BY_LAYER))
    chosen = [curvatures.Jacobi(), curvatures.Nystrom(3), curvatures.Kronecker()]

    @jax.jit
    def given(params, x):
        forms = [curvatures.MatrixFree(model, preconditioner=p) for p in chosen]
        found = [f.at(params, x, y, KEY).solve(params, damping) for f in forms]
        metric = curvatures.Dense(model).at(params, x)
        scaled = ng.scaling.Marquardt(ng.solvers.cg)(metric, params, damping)
        marquardt = ng.scaling.Marquardt()
        robust = ng.solvers.RobustDamping(gamma=2.0)(metric, params, damping)
        decided = [ng.Relative(0.2), ng.ConditionNumber(11.0), ng.ScaleInvariant(0.2)]
        decided = [marquardt(metric, params, each) for each in decided]
        return metric.dense(), [
            ravel(tree) for tree in (robust, *found, scaled, *decided)
        ]

    dense, (robust, *found) = given(params, x)
    values = entries_of(BY_LAYER[LAYER_OF], params)
    inverse = np.linalg.inv(dense + np.diag(values))
    expected = inverse @ (dense + 2 * np.diag(values**2)) @ inverse @ ravel(params)
    assert relative_error(robust, expected) < 1e-9
    diagonal = np.where(np.diag(dense) > 0, np.diag(dense), 1)
    unitless = dense / np.sqrt(np.outer(diagonal, diagonal))
    dampings = [values] * 3 + [
        values * diagonal,
        0.2 * np.trace(unitless) / len(values) * diagonal,
        np.linalg.eigvalsh(unitless)[-1] / 10 * diagonal,
        0.2 * np.diag(unitless) * diagonal,
    ]
    seen = np.diag(dense) > 0
    for solution, own in zip(found, dampings, strict=True):
        damped = (dense + np.diag(own))[np.ix_(seen, seen)]
        expected = np.linalg.solve(damped, ravel(params)[seen])
        assert relative_error(ravel(solution)[seen], expected) < 1e-9


WRONG = {
    "a leaf has none": (ng.ByPath({"in": 1.0}), "no λ for .'out/b', 'out/w'"),
    "a part has none": ({"in": {"w": 1.0}, "out": 2.0}, "no λ for .'in/b'"),
    "nothing begins so": (ng.ByPath({"": 1.0, "i": 2.0}), "λ for .'i'.*are .'in/b'"),
    "no such leaf": ({"in": 1.0, "out": {"b": 1.0, "w": 1, "x": 2}}, "λ for .'out/x'"),
    "negative": (ng.ByPath({"": 1.0, "in": -2.0}), "at least 0, got -2.0 for 'in'"),
    "not finite": ({"in": 1.0, "out": np.inf}, "got inf for 'out'"),
    "an array": ({"in": 1.0, "out": np.ones(2)}, "for 'out': give one for each leaf"),
    "a word": ({"in": "small", "out": 1.0}, "got 'small' for 'in'"),
    "negative multiple": (ng.Relative(-1.0), "got -1.0 for 'scale'"),
}


@pytest.mark.parametrize("case", WRONG)
def test_what_does_not_fit_is_refused_under_jit_too(case):
    damping, words = WRONG[case]
    model, params, x, _ = CASE.problem()
    tx = ng.kfac(0.1, model, damping=lambda _: damping)
    with pytest.raises(ValueError, match=words):
        jax.eval_shape(lambda p: tx.update(p, tx.init(p), p, inputs=x), params)
    metric = DiagonalMetric(ng.tree.Layout.of(params), jnp.ones(ravel(params).size))
    with pytest.raises(ValueError, match=words):
        metric.solve(params, damping)


def test_methods_say_what_they_cannot_take():
    model, params, x, _ = CASE.problem()
    by_leaf = ng.ByPath({"": 1.0, "out/b": 0.0})

    def update(tx):
        state = jax.eval_shape(tx.init, params)
        return jax.eval_shape(lambda s, p: tx.update(p, s, p, inputs=x), state, params)

    for build in (ng.kfac, ng.ekfac):
        with pytest.raises(ValueError, match=r"'out/b'. are one layer.*natgrad.ByPath"):
            update(build(0.1, model, damping=by_leaf))
    with pytest.raises(ValueError, match=r"that of some is 0.*curvature.Dense"):
        update(ng.scale_by_curvature(curvatures.Gram(model), damping=by_leaf))


def test_a_part_of_the_parameters_takes_its_part_of_the_paths():
    """Inside optax.masked the λ of what is not seen are left alone."""
    model, params, x, _ = CASE.problem()
    damping = ng.ByPath({"in": 0.1, "out/w": 0.2, "out/b": 0.3})
    tx = ng.scale_by_curvature(curvatures.Diagonal(model), damping=damping)
    mask = {"in": False, "out": True}
    masked = optax.masked(tx, mask)

    @jax.jit
    def given(params, x):
        state = masked.init(params)
        update, _ = masked.update(params, state, params, inputs=x, model_params=params)
        return update, curvatures.Diagonal(model).at(params, x).diagonal()

    update, diagonal = given(params, x)
    for leaf, own in (("w", 0.2), ("b", 0.3)):
        expected = params["out"][leaf] / (diagonal["out"][leaf] + own)
        assert relative_error(update["out"][leaf], expected) < 1e-12
