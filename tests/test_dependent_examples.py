"""Examples that depend on each other, or on their places in the batch.

F is that of the batch's joint law, for every curvature, or an error names the cure.
"""

from __future__ import annotations

import dataclasses
import gc
import weakref

import dependent
import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from dependent import CASES, KEY, NOTHING, OTHERS, PARAMS, PLACE, X, Y
from problems import relative_error

import natgrad as ng
from natgrad import layers
from natgrad.curvature import KFAC, Dense, Empirical, Exact, LayerDiagonal, Sampled

LAYERWISE = {"kfac", "kfoc", "ekfac", "layer_diagonal"}
FORMS = {**ng.CURVATURES, "layer_diagonal": LayerDiagonal}
OF_LEAVES = np.repeat(range(3), [PARAMS[name].size for name in sorted(PARAMS)])

# What is kept of F, by the name of the curvature; the whole of it otherwise.
KEPT = {
    "diagonal": np.eye(len(OF_LEAVES)),
    "layer_diagonal": np.eye(len(OF_LEAVES)),
    "block_diagonal": OF_LEAVES[:, None] == OF_LEAVES[None],
}
OF_LAYERS = OF_LEAVES == 1  # in the order of b, v, w
LAYERS = OF_LAYERS[:, None] == OF_LAYERS[None]


def compared(case, labels, names):
    """name -> the matrix that the curvature gives, all in one program."""
    of = lambda name: dataclasses.replace(FORMS[name](case.model()), labels=labels)
    forms = {name: of(name) for name in names}

    @jax.jit
    def matrices(params):
        return {n: f.at(params, case.inputs, Y, KEY).dense() for n, f in forms.items()}

    return matrices(PARAMS)


KINDS = {"exact": Exact(), "sampled": Sampled(1), "empirical": Empirical()}
# Labels of other kinds with one case of each dependence.
OTHER_LABELS = ("dropout by example", "dropout", "batch norm")
PAIRS = [(name, "exact") for name in CASES]
PAIRS += [(name, kind) for name in OTHER_LABELS for kind in ("sampled", "empirical")]


@pytest.mark.parametrize(("name", "labels"), PAIRS)
def test_every_curvature_is_that_of_the_joint_law(name, labels):
    case = CASES[name]
    drawn = {
        "exact": lambda: None,
        "sampled": lambda: case.model().sample(KEY, PARAMS, case.inputs),
        "empirical": lambda: Y,
    }[labels]()
    expected = dependent.brute_force(case, drawn)
    others = {"kfac", "kfoc", "ekfac", "sampled", "empirical"}
    names = [name for name in FORMS if name not in others]
    kept_of = KEPT | {"gram_blocks": LAYERS}
    if case.expected is OTHERS:
        names.remove("layer_diagonal")
        kept_of["gram_blocks"] = KEPT["block_diagonal"]
    for form, given in compared(case, KINDS[labels], names).items():
        kept = np.where(kept_of.get(form, True), expected, 0)
        assert relative_error(given, kept) < 1e-9, form


@pytest.mark.parametrize("name", [n for n in CASES if CASES[n].expected is OTHERS])
@pytest.mark.parametrize("form", sorted(LAYERWISE))
def test_layers_refuse_examples_that_interact_and_name_the_cure(name, form):
    case = CASES[name]
    estimate = FORMS[form](case.model()).estimate
    with pytest.raises(ValueError, match="Gram, MatrixFree or Dense"):
        jax.eval_shape(estimate, PARAMS, case.inputs)


def test_a_part_of_examples_that_interact_is_refused():
    part = ng.curvature.SubBatch(Dense(CASES["batch norm"].model()), 2)
    with pytest.raises(ValueError, match="curvature itself, of the whole batch"):
        jax.eval_shape(part.estimate, PARAMS, X)


def test_kfac_of_a_linear_layer_with_dropped_inputs_is_exact():
    """G = I for normal outputs, so F = (1/N) Σ x xᵀ ⊗ I with the batch's own masks."""
    apply = lambda p, i: dependent.dropped(i["key"], i["x"]) @ p["w"]
    inputs = CASES["dropout"].inputs
    model = ng.Model(
        apply,
        ng.families.NormalMean(1.0),
        example_inputs=inputs,
        in_axes={"x": 0, "key": None},
    )
    params = {"w": PARAMS["w"]}
    x = np.asarray(dependent.dropped(KEY, X))
    expected = np.kron(x.T @ x / len(x), np.eye(params["w"].shape[1]))
    for declared in (None, {"w": layers.DenseBlock()}):
        matrix = jax.jit(KFAC(model, declared=declared).at)(params, inputs).dense()
        assert relative_error(matrix, expected) < 1e-9


JOINT = {"closed over": (None, 0), "shared": (X, None)}


@pytest.mark.parametrize("name", JOINT)
def test_data_that_no_axis_of_examples_tells_apart_are_one_joint_law(name):
    inputs, in_axes = JOINT[name]
    apply = lambda p, x: dependent.means(p, X if x is None else x)
    model = ng.Model(apply, ng.families.Categorical(), X, in_axes=in_axes)
    expected = dependent.brute_force(CASES["means"])
    forms = {n: FORMS[n](model) for n in ("dense", "gram", "matrix_free", "diagonal")}
    run = jax.jit(lambda p: {n: f.at(p, inputs).dense() for n, f in forms.items()})
    for form, given in run(PARAMS).items():
        kept = np.where(KEPT.get(form, True), expected, 0)
        assert relative_error(given, kept) < 1e-9, form
    for form in LAYERWISE if inputs is not None else ():
        with pytest.raises(ValueError, match="axis of examples"):
            jax.eval_shape(FORMS[form](model).estimate, PARAMS, inputs)


def test_layers_ask_for_data_that_are_closed_over():
    model = ng.Model(lambda p, _: dependent.hidden(p, X), ng.families.Categorical())
    with pytest.raises(ValueError, match="closes over its data"):
        KFAC(model).init(PARAMS)


def test_point_sets_of_different_lengths_are_sent_to_the_documentation():
    apply = lambda p, i: dependent.hidden(p, jnp.concatenate([i["in"], i["edge"]]))
    model = ng.Model(apply, ng.families.NormalMean())
    with pytest.raises(ValueError, match=r"one set with an array .* docs/faq\.md"):
        model.outputs(PARAMS, {"in": X, "edge": X[:2]})


@pytest.mark.slow
def test_compare_gives_figures_or_names_the_cure():
    def compared(case, name):
        arrays = (case.model(), PARAMS, case.inputs, Y)
        return ng.compare.compare(*arrays, approximations=[name])

    assert compared(CASES["dropout"], "kfac").to_dict()
    assert compared(CASES["batch norm"], "diagonal").to_dict()
    with pytest.raises(ValueError, match="Gram, MatrixFree or Dense"):
        compared(CASES["batch norm"], "kfac")


def test_a_state_that_is_switched_off_by_none_is_no_input():
    model = CASES["dropout"].model()
    off = {"x": X, "key": None}
    apply = lambda p, i: dependent.hidden(p, i["x"]) @ p["v"]
    plain = ng.Model(apply, model.family, in_axes=model.in_axes)
    given = ng.curvature.Diagonal(plain).estimate(PARAMS, off)
    case = dependent.Case(apply, off, model.in_axes, NOTHING)
    assert relative_error(given, np.diag(dependent.brute_force(case))) < 1e-9


# What is found out -----------------------------------------------------------------


@pytest.mark.parametrize("name", CASES)
def test_the_dependence_is_found(name):
    case = CASES[name]
    found = layers.dependence(case.apply, PARAMS, case.inputs, case.in_axes)
    assert found is case.expected


OTHER_MODELS = {
    "rare dropout": (dependent.rare_dropout, CASES["dropout"].inputs, PLACE),
    "raw key": (dependent.dropout, {"x": X, "key": jax.random.PRNGKey(0)}, PLACE),
    "loop": (
        lambda p, i: jnp.stack([dependent.hidden(p, x[None])[0] for x in i["x"]]),
        {"x": X, "key": None},
        NOTHING,
    ),
    "lookup": (lambda p, i: p["w"][i["x"]], {"x": Y, "key": None}, NOTHING),
    "neighbours": (
        lambda p, i: dependent.hidden(p, i["x"] - jnp.roll(i["x"], 1, 0)),
        {"x": X, "key": None},
        OTHERS,
    ),
    "weakly": (
        lambda p, i: dependent.hidden(p, i["x"]) + 1e-4 * i["x"].sum(),
        {"x": X, "key": None},
        OTHERS,
    ),
    "random features": (
        lambda p, i: dependent.hidden(p, i["x"] @ jax.random.normal(KEY, (3, 3))),
        {"x": X, "key": None},
        NOTHING,
    ),
    "logarithms": (
        lambda p, i: jnp.log(i["x"] @ p["w"]),
        {"x": X, "key": None},
        NOTHING,
    ),
    "nowhere finite": (
        lambda p, i: jax.lax.map(lambda x: jnp.log(-1 - (x @ p["w"]) ** 2), i["x"]),
        {"x": X, "key": None},
        PLACE,
    ),
}


@pytest.mark.parametrize("name", OTHER_MODELS)
def test_the_dependence_is_found_of_unusual_models(name):
    apply, inputs, expected = OTHER_MODELS[name]
    found = layers.dependence(apply, PARAMS, inputs, dependent.SHARED)
    assert found is expected


def test_what_python_changes_is_seen():
    class Net:
        training = True

        def apply(self, p, inputs):
            h = dependent.hidden(p, inputs["x"])
            return (dependent.dropped(inputs["key"], h) if self.training else h) @ p[
                "v"
            ]

    net, case = Net(), CASES["dropout"]
    found = lambda: layers.dependence(net.apply, PARAMS, case.inputs, case.in_axes)
    assert found() is PLACE
    net.training = False
    assert found() is NOTHING


def test_functions_of_the_host_are_told_apart():
    apply = lambda f: lambda p, x: jax.pure_callback(f, x, x) @ p["w"]
    found = lambda f: layers.dependence(apply(f), PARAMS, X)
    assert found(lambda x: np.asarray(x) * 2) is NOTHING
    assert found(lambda x: np.asarray(x) - np.mean(x)) is OTHERS


def test_no_array_is_kept():
    def seen(graph):
        apply = lambda p, x: x @ p["w"] + graph.sum()
        assert layers.dependence(apply, PARAMS, X) is NOTHING
        layers.capture(apply, PARAMS, X)
        return weakref.ref(graph)

    reference = seen(jnp.ones((len(X), 500)))
    gc.collect()
    assert reference() is None


def test_it_is_found_under_jit_vmap_and_with_traced_constants():
    seen = []

    def looked(params, scale):
        apply = lambda p, x: scale * dependent.batch_norm(p, x)
        seen.append(layers.dependence(apply, params, X))
        return scale

    jax.eval_shape(jax.vmap(looked, in_axes=(None, 0)), PARAMS, jnp.ones(2))
    jax.jit(looked)(PARAMS, 2.0)
    assert set(seen) == {OTHERS}


# Steps -----------------------------------------------------------------------------


def test_the_natural_gradient_trains_with_dropout_as_the_readme_writes_it():
    """With the masks of single examples the loss goes to 20 nats."""
    model, normal = CASES["dropout"].model(), dependent.normal
    tx = ng.natural_gradient(1.0, model, damping=3e-2)
    x = normal(11, 64, 3)
    y = (x @ normal(12, 3, 3)).argmax(1)
    start = {"w": normal(0, 3, 8) / 2, "b": normal(1, 8) / 4, "v": normal(2, 8, 3) / 3}

    def step(carry, key):
        params, state = carry
        inputs = {"x": x, "key": key}
        value, gradient = jax.value_and_grad(model.loss)(params, inputs, y)
        updates, state = tx.update(gradient, state, params, inputs=inputs)
        return (optax.apply_updates(params, updates), state), value

    @jax.jit
    def train(params):
        keys = jax.random.split(KEY, 30)
        return jax.lax.scan(step, (params, tx.init(params)), keys)[1]

    losses = np.asarray(train(start))
    assert losses[-10:].mean() < 0.4 < 1 < losses[0]
    assert losses.max() < 1.5 * losses[0]
