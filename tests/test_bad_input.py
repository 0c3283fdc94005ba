"""What cannot be done is refused in words, or skipped where only the program can know.

A refusal says what was given, what is expected, and what to do. Under jit the values
are unknown, so a bad value makes a skipped step: the update is 0, what the state has
learned stays, and `health` says so.
"""

from __future__ import annotations

import functools
import re

import jax
import jax.flatten_util
import jax.numpy as jnp
import numpy as np
import optax
import pytest

import natgrad as ng

N, CLASSES, LAMBDA = 4, 3, 0.5
RNG = np.random.default_rng(0)
X, Y = RNG.normal(size=(N, 2)), np.array([0, 2, 1, 1])
CATEGORICAL = ng.families.Categorical()
MODEL = ng.Model(
    lambda params, x: x @ params["w"] + params["b"][None],
    CATEGORICAL,
    example_inputs=jnp.zeros((1, 2)),
)
PARAMS = {"w": jnp.array(RNG.normal(size=(2, CLASSES))), "b": jnp.zeros(CLASSES)}
GRADS = {"w": jnp.full((2, CLASSES), 0.1), "b": jnp.array([0.2, -0.3, 0.1])}
DENSE = ng.curvature.Dense(MODEL)
TX = ng.scale_by_curvature(DENSE, damping=LAMBDA)

EVERY = pytest.mark.parametrize("name", list(ng.CURVATURES))


def refuses(*words, error=ValueError):
    """A context in which an error is raised whose message has all these words."""
    ahead = "".join(f"(?=.*{re.escape(word)})" for word in words)
    return pytest.raises(error, match=f"(?s){ahead}")


def refused(function, *words):
    """The same refusal when called directly and while being traced for jit."""
    for call in (function, lambda: jax.eval_shape(function)):
        with refuses(*words):
            call()


def flat(tree):
    return np.concatenate([np.asarray(leaf).ravel() for leaf in jax.tree.leaves(tree)])


def updated(tx=TX, grads=GRADS, params=PARAMS, **batch):
    """One update from a fresh state."""
    return tx.update(grads, tx.init(PARAMS), params, **batch)


# Refused: what was given, what is expected, the cure ---------------------------------


def test_an_update_without_inputs_says_what_to_pass():
    with refuses("update needs the batch", "inputs=x", "targets=y", "natgrad.observe"):
        updated()


@pytest.mark.parametrize("wrap", [lambda tx: tx, lambda tx: optax.MultiSteps(tx, 2)])
def test_under_jit_an_update_without_inputs_raises_when_the_program_runs(wrap):
    tx = wrap(TX)
    compiled = jax.jit(tx.update).lower(GRADS, tx.init(PARAMS), PARAMS).compile()
    with refuses("inputs=x", "natgrad.observe", error=jax.errors.JaxRuntimeError):
        jax.block_until_ready(compiled(GRADS, tx.init(PARAMS), PARAMS))
        jax.effects_barrier()


def test_under_vmap_one_unobserved_member_is_enough_to_raise():
    observed = ng.observe(DENSE, TX.init(PARAMS), PARAMS, inputs=X)
    members = [observed, TX.init(PARAMS)]
    states = jax.tree.map(lambda *leaves: jnp.stack(leaves), *members)
    program = jax.jit(jax.vmap(TX.update, (None, 0, None)))
    with refuses("inputs=x", "natgrad.observe", error=jax.errors.JaxRuntimeError):
        jax.block_until_ready(program(GRADS, states, PARAMS))
        jax.effects_barrier()


def test_a_curvature_without_statistics_asks_for_inputs_even_under_jit():
    curvature = ng.curvature.MatrixFree(MODEL)
    tx = ng.scale_by_curvature(curvature)
    state = tx.init(PARAMS)
    update = lambda: tx.update(GRADS, state, PARAMS)
    refused(update, "MatrixFree", "current batch", "inputs=x")
    observe = lambda: ng.observe(curvature, state, PARAMS, inputs=X)
    refused(observe, "MatrixFree", "nothing to observe", "inputs=")


def test_an_update_without_params_says_to_pass_them():
    refused(lambda: updated(params=None, inputs=X), "update(gradient, state, params")


@pytest.mark.parametrize(
    "grads", [{"w": GRADS["w"]}, {"w": GRADS["w"].T, "b": GRADS["b"]}, GRADS["w"]]
)
def test_a_gradient_of_another_structure_is_refused(grads):
    refused(
        lambda: updated(grads=grads, inputs=X),
        "The gradient must be shaped like the parameters",
        "Expected {'b': (3,), 'w': (2, 3)}",
        "got",
    )


def test_integer_parameters_are_refused_by_their_name():
    params = {"w": jnp.ones((2, 3)), "steps": {"n": jnp.arange(3)}}
    words = "['steps']['n']", "int64", "Cast it", "in_axes"
    refused(lambda: TX.init(params), *words)
    refused(lambda: TX.update(params, None, params, inputs=X), *words)
    refused(lambda: TX.init({}), "no array leaves")
    refused(lambda: TX.init(jnp.ones(3, complex)), "real floating", "complex")


def test_statistics_of_another_curvature_are_refused():
    statistics = ng.curvature.Diagonal(MODEL).estimate(PARAMS, X)
    refused(
        lambda: updated(statistics=statistics), "Dense", "float64[9, 9]", "float64[9]"
    )


@pytest.mark.parametrize("decay", [-0.1, 1.0, 1.5, float("nan")])
def test_a_decay_out_of_range_is_refused(decay):
    with refuses("decay must lie in [0, 1)", str(decay)):
        ng.scale_by_curvature(DENSE, decay=decay)
    with refuses("decay must lie in [0, 1)", str(decay)):
        ng.natural_gradient(0.1, MODEL, decay=decay)


def test_the_curvature_of_one_batch_cannot_be_averaged():
    with refuses("MatrixFree", "cannot be averaged", "decay at 0", "0.9"):
        ng.scale_by_curvature(ng.curvature.MatrixFree(MODEL), decay=0.9)


@pytest.mark.parametrize("damping", [-1e-3, float("nan"), float("inf")])
def test_an_impossible_constant_damping_is_refused(damping):
    for make in (
        lambda: ng.scale_by_curvature(DENSE, damping=damping),
        lambda: ng.natural_gradient(0.1, MODEL, damping=damping),
        lambda: ng.matrix_free(0.1, MODEL, damping=np.float32(damping)),
        lambda: ng.diagonal_fisher(0.1, MODEL, damping=jnp.asarray(damping)),
    ):
        with refuses("damping must be finite and at least 0", f"{damping}"):
            make()


def test_a_damping_that_is_not_a_scalar_is_refused():
    with refuses("damping must be a scalar or a schedule", "(3,)"):
        ng.scale_by_curvature(DENSE, damping=jnp.ones(3))


@pytest.mark.parametrize(
    ("name", "hint"), [("densee", "Did you mean 'dense'?"), ("hessian-ish", "Known: ")]
)
def test_an_unknown_curvature_name_lists_the_known_ones(name, hint):
    with refuses(repr(name), hint, *ng.CURVATURES):
        ng.curvature.by_name(name)


def test_masked_without_model_params_says_to_pass_them():
    for tx in (
        optax.masked(TX, {"w": True, "b": False}),
        optax.multi_transform({"a": TX, "b": optax.sgd(1.0)}, {"w": "a", "b": "b"}),
    ):
        state = tx.init(PARAMS)
        refused(
            lambda tx=tx, state=state: tx.update(GRADS, state, PARAMS, inputs=X),
            "optax.masked",
            "update(..., model_params=params)",
        )


def test_model_params_of_another_model_are_refused():
    tx = optax.masked(TX, {"w": True, "b": False})
    state = tx.init(PARAMS)
    refused(
        lambda: tx.update(
            GRADS, state, PARAMS, inputs=X, model_params={"w": PARAMS["w"]}
        ),
        "model_params must be the model's whole parameter tree",
    )


@pytest.mark.parametrize("make", [ng.curvature.Dense, ng.curvature.KLHessian])
def test_labels_that_need_data_or_a_key_say_so(make):
    empirical = make(MODEL, ng.curvature.Empirical())
    sampled = make(MODEL, ng.curvature.Sampled(2))
    refused(lambda: empirical.at(PARAMS, X), "Empirical()", "targets=y")
    refused(lambda: sampled.at(PARAMS, X), "Sampled(n=2)", "pass key=")
    refused(lambda: sampled.at(PARAMS, X, Y), "Sampled(n=2)", "pass key=")
    tx = ng.scale_by_curvature(empirical)
    refused(lambda: updated(tx, inputs=X), "Empirical()", "targets=y")
    state = tx.init(PARAMS)
    observe = lambda: ng.observe(empirical, state, PARAMS, inputs=X)
    refused(observe, "Empirical()", "targets=y")


@pytest.mark.parametrize("n", [0, -1, 1.5, None])
def test_a_number_of_samples_that_is_no_count_is_refused(n):
    with refuses("integer n >= 1", repr(n)):
        ng.curvature.Sampled(n)


def test_observing_with_another_curvature_is_refused():
    chain = optax.chain(TX, optax.scale(-1.0)).init(PARAMS)
    for curvature, state in (
        (ng.curvature.Diagonal(MODEL), chain),
        (DENSE, optax.adam(0.1).init(PARAMS)),
        (DENSE, TX.init({"w": PARAMS["w"]})),
    ):
        refused(
            lambda c=curvature, s=state: ng.observe(c, s, PARAMS, inputs=X),
            "No part of the optimizer state",
            type(curvature).__name__,
            "same transformation",
        )


# Refused: batches and models ---------------------------------------------------------


@pytest.mark.parametrize("targets", [Y[:-1], Y[:, None], np.append(Y, 0), 0])
def test_labels_of_the_wrong_shape_are_refused_with_both_shapes(targets):
    words = "targets must have shape (4,)", "(4, 3)", f"got {np.shape(targets)}"
    refused(lambda: MODEL.loss(PARAMS, X, targets), *words)
    refused(lambda: DENSE.value_and_grad(PARAMS, X, targets), *words)
    tx = ng.empirical_fisher(0.1, MODEL)
    refused(lambda: updated(tx, inputs=X, targets=targets), *words)


def test_an_empty_batch_is_refused():
    none = X[:0], Y[:0]
    refused(lambda: MODEL.loss(PARAMS, *none), "batch is empty", "(0, 2)")
    for make in ng.CURVATURES.values():
        tx = ng.scale_by_curvature(make(MODEL))
        with refuses("batch is empty", "(0, 2)"):
            updated(tx, inputs=none[0], targets=none[1])


def test_inputs_of_different_lengths_are_refused():
    model = ng.Model(lambda params, x: x["a"] @ params["w"] + x["b"], CATEGORICAL)
    x = {"a": X, "b": np.ones((N + 1, CLASSES))}
    words = "same leading axis", "(4, 2)", "(5, 3)", "in_axes"
    refused(lambda: model.loss(PARAMS, x, Y), *words)
    tx = ng.scale_by_curvature(ng.curvature.Dense(model))
    refused(lambda: updated(tx, inputs=x), *words)


@pytest.mark.parametrize("in_axes", [1, -1, "0", {"a": 0, "b": 1}])
def test_in_axes_other_than_0_and_none_are_refused(in_axes):
    model = ng.Model(
        lambda params, x: x["a"] @ params["w"] + x["b"], CATEGORICAL, in_axes=in_axes
    )
    x = {"a": X, "b": np.ones((N, CLASSES))}
    words = "in_axes=...) may hold 0 and None only", f"got {in_axes}"
    refused(lambda: model.loss(PARAMS, x, Y), *words)
    refused(lambda: ng.curvature.Dense(model).at(PARAMS, x), *words)


def test_in_axes_of_another_structure_than_the_inputs_are_refused():
    model = ng.Model(MODEL.apply, CATEGORICAL, in_axes={"x": 0})
    refused(lambda: model.loss(PARAMS, X, Y), "in_axes", "{'x': 0}")


@pytest.mark.parametrize(
    ("apply", "words"),
    [
        (lambda p, x: jnp.arange(N), ("one real floating array", "int")),
        (lambda p, x: (x @ p["w"], 0.0), ("one real floating array", "float64")),
        (lambda p, x: 1.0, ("one real floating array",)),
        (lambda p, x: jnp.sum(x @ p["w"], axis=1), ("at least 2 axes", "(4,)")),
        (lambda p, x: (x @ p["w"])[:2], ("2 rows for 4 examples", "(2, 3)")),
        (lambda p, x: (x @ p["w"])[:, :1], ("at least two logits", "Bernoulli()")),
    ],
)
def test_outputs_that_parametrise_no_law_are_refused(apply, words):
    model = ng.Model(apply, CATEGORICAL)
    refused(lambda: model.loss(PARAMS, X, 0 * Y), *words)
    refused(lambda: ng.curvature.Dense(model).at(PARAMS, X), *words)


@pytest.mark.parametrize("shape", [(N + 1,), (N, CLASSES), ()])
def test_weights_of_the_wrong_shape_are_refused(shape):
    weights = lambda x: jnp.ones(shape)
    model = ng.Model(MODEL.apply, CATEGORICAL, weights=weights)
    words = "weights(inputs) must have shape (4,)", f"got {shape}"
    refused(lambda: model.loss(PARAMS, X, Y), *words)
    refused(lambda: ng.curvature.Dense(model).at(PARAMS, X), *words)


def test_a_model_needs_a_function_a_family_and_a_positive_chunk():
    with refuses("(params, inputs) -> z", "3"):
        ng.Model(3, CATEGORICAL)
    with refuses("natgrad Family", "Categorical()", "categorical"):
        ng.Model(MODEL.apply, "categorical")
    with refuses("chunk_size must be at least 1", "0"):
        ng.Model(MODEL.apply, CATEGORICAL, chunk_size=0)


@pytest.mark.parametrize("label", [-1, CLASSES, 10**6])
def test_labels_out_of_range_are_refused_where_their_values_are_known(label):
    y = np.array([0, 1, label, 2])
    words = "impossible under Categorical", f"{min(0, label)} to {max(2, label)}"
    empirical = ng.empirical_fisher(0.1, MODEL)
    for call in (
        lambda: MODEL.loss(PARAMS, X, y),
        lambda: jax.grad(MODEL.loss)(PARAMS, X, y),
        lambda: DENSE.value_and_grad(PARAMS, X, y),
        lambda: updated(empirical, inputs=X, targets=y),
    ):
        with refuses(*words):
            call()


# Skipped: what only the running program can know --------------------------------------

NAN_X = np.where(np.arange(N)[:, None] == 2, np.nan, X)
NAN_GRADS = {**GRADS, "b": jnp.array([0.0, np.nan, 0.0])}
# What differs from a good step: gradient, inputs, labels, damping.
BAD = {
    "a gradient with a nan": {"grads": NAN_GRADS},
    "an infinite gradient": {"grads": {**GRADS, "w": GRADS["w"] + np.inf}},
    "inputs with a nan": {"x": NAN_X},
    "negative damping": {"damping": -0.1},
    "nan damping": {"damping": np.nan},
    "infinite damping": {"damping": np.inf},
}
AT_THE_LABELS = {"a label out of range": {"y": np.array([0, 1, CLASSES, 2])}}


@functools.cache
def program(name):
    """update(state, grads, x, y, damping), compiled; averaging where it can be."""
    curvature = ng.CURVATURES[name](MODEL)
    decay = 0.0 if curvature.instantaneous else 0.5

    def of(damping):
        return ng.scale_by_curvature(curvature, damping=damping, decay=decay)

    @jax.jit
    def update(state, grads=GRADS, x=X, y=Y, damping=LAMBDA):
        tx = of(damping)
        return tx.update(grads, state, PARAMS, inputs=x, targets=y)

    return update, of(LAMBDA).init(PARAMS)


def learned(state):
    """What the state has learned, and must keep when a step is skipped."""
    return state.estimates, state.statistics


def unchanged(tree, other, what):
    for a, b in zip(jax.tree.leaves(tree), jax.tree.leaves(other), strict=True):
        np.testing.assert_array_equal(a, b, err_msg=what)


@EVERY
def test_a_bad_step_is_skipped_and_leaves_no_trace(name, tolerance):
    rtol, (update, state) = tolerance("identity"), program(name)
    _, good = update(state)
    bad = dict(BAD)
    if name == "empirical":
        bad |= AT_THE_LABELS
    for what, change in bad.items():
        direction, after = update(good, **change)
        assert not np.any(flat(direction)), what
        assert after.health.skipped, what
        assert after.health.skips == 1, what
        assert after.count == 2, what
        unchanged(learned(after), learned(good), what)
        for field, value in after.health._asdict().items():
            assert field == "damping" or np.isfinite(value), (what, field)
        recovered, last = update(after)
        assert np.all(np.isfinite(flat(recovered))), what
        assert np.any(flat(recovered)), what
        assert not last.health.skipped, what
        assert last.health.skips == 1, what
        if name != "sampled":  # where the key has moved on
            np.testing.assert_allclose(flat(recovered), flat(update(good)[0]), rtol)


@EVERY
def test_a_bad_first_step_is_skipped_too(name, tolerance):
    rtol, (update, state) = tolerance("identity"), program(name)
    for what in ("a gradient with a nan", "inputs with a nan", "negative damping"):
        direction, after = update(state, **BAD[what])
        assert not np.any(flat(direction)), what
        assert after.health.skipped, what
        recovered, _ = update(after)
        if name != "sampled":
            np.testing.assert_allclose(flat(recovered), flat(update(state)[0]), rtol)


def test_a_label_out_of_range_under_jit_makes_a_skipped_step():
    @jax.jit
    def step(state, y):
        loss, grads = jax.value_and_grad(MODEL.loss)(PARAMS, X, y)
        return loss, *TX.update(grads, state, PARAMS, inputs=X)

    loss, direction, state = step(TX.init(PARAMS), np.array([0, 1, CLASSES, 2]))
    assert np.isnan(loss)
    assert not np.any(flat(direction))
    assert state.health.skipped
    _, direction, state = step(state, Y)
    assert np.any(flat(direction))
    assert not state.health.skipped
    assert state.health.skips == 1


def test_a_schedule_that_turns_negative_skips_its_steps_and_no_others():
    tx = ng.scale_by_curvature(DENSE, damping=lambda count: 0.15 - 0.1 * count)
    state, skipped = tx.init(PARAMS), []
    update = jax.jit(lambda state: tx.update(GRADS, state, PARAMS, inputs=X))
    for _ in range(3):
        direction, state = update(state)
        skipped.append(bool(state.health.skipped))
        assert np.any(flat(direction)) != skipped[-1]
    assert skipped == [False, False, True]


def test_a_bad_observation_is_skipped_and_the_plain_update_too():
    observe = jax.jit(lambda state, x: ng.observe(DENSE, state, PARAMS, inputs=x))
    plain = jax.jit(lambda state: TX.update(GRADS, state, PARAMS))
    unseen = observe(TX.init(PARAMS), NAN_X)
    assert unseen.health.skipped
    assert unseen.estimates == 0
    direction, skipped = plain(unseen)  # there is nothing to solve with yet
    assert not np.any(flat(direction))
    assert skipped.health.skipped
    assert skipped.health.skips == 1
    eager, _ = TX.update(GRADS, unseen, PARAMS)
    assert not np.any(flat(eager))
    seen = observe(skipped, X)
    assert not seen.health.skipped
    expected = np.linalg.solve(
        np.asarray(DENSE.at(PARAMS, X).dense()) + LAMBDA * np.eye(9), flat(GRADS)
    )
    np.testing.assert_allclose(flat(plain(seen)[0]), expected)
    again = observe(seen, NAN_X)  # the last good observation stays
    np.testing.assert_allclose(flat(plain(again)[0]), expected)


@EVERY
def test_without_damping_a_singular_metric_gives_the_step_of_least_norm(
    name, tolerance
):
    update, state = program(name)
    curvature = ng.CURVATURES[name](MODEL)
    drawn = jax.random.split(state.key)[1]
    matrix = np.asarray(curvature.at(PARAMS, X, Y, drawn).dense())
    # Adding a constant to all logits changes nothing, so F is singular; the gradient
    # of a likelihood has no part along such a direction, it lies in the range of F.
    gradient = matrix @ flat(GRADS)
    _, unravel = jax.flatten_util.ravel_pytree(GRADS)
    direction, after = update(state, unravel(jnp.array(gradient)), damping=0.0)
    expected = np.linalg.pinv(matrix, rcond=1e-10) @ gradient
    rtol = tolerance("iterative")
    np.testing.assert_allclose(flat(direction), expected, rtol, rtol)
    assert not after.health.skipped
    assert after.health.residual < rtol
    singular = np.linalg.matrix_rank(matrix) < len(matrix)
    assert singular or name in ("diagonal", "layer_diagonal")
    assert after.health.fallback == (singular and name != "matrix_free")
