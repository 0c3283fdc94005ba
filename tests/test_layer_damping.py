"""Damping by layer: (F + Λ)⁻¹ with Λ constant in each leaf, however it is given."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from layer_damping import (
    BY_LAYER,
    BY_LEAF,
    CASE,
    KEY,
    LAYER_OF,
    LAYERS,
    entries_of,
    problem,
    tree_of,
)
from problems import ravel, relative_error

import natgrad as ng
from natgrad import curvature as curvatures
from natgrad.metrics import DenseMetric, DiagonalMetric
from natgrad.solvers.damping import (
    LeafDamping,
    by_leaf,
    resolve_damping,
)
from natgrad.solvers.damping_of_metric import relative_to

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
