"""Statistics of a data set, batch by batch, are those of one big batch."""

from __future__ import annotations

import functools
import itertools

import jax
import jax.core
import jax.numpy as jnp
import numpy as np
import pytest
from problems import INPUTS, mlp, mlp_params, relative_error

import natgrad as ng
from natgrad.curvature import (
    EKFAC,
    KFAC,
    KFOC,
    Automatic,
    AutomaticDiagonal,
    Centred,
    Constant,
    Dense,
    Diagonal,
    Empirical,
    Gram,
    KLHessian,
    Sampled,
    SubBatch,
)

KEY = jax.random.PRNGKey(5)
N, CUTS = 15, (0, 5, 10, 15)
RNG = np.random.default_rng(0)
X, Y = RNG.normal(size=(N, INPUTS)), RNG.integers(0, 3, N)
# A fraction, padding with a label that does not exist, and a batch of padding alone.
WEIGHTS = np.array([1, 0.5, 2, 1, 0, 0, 0, 0, 0, 0, 3, 0, 1, 0.2, 1])
Y[WEIGHTS == 0] = -1
PARAMS = mlp_params(jax.random.PRNGKey(0), 3)


def model_of(apply=mlp, family=None):
    return ng.Model(
        lambda params, inputs: apply(params, inputs["x"]),
        family or ng.families.Categorical(),
        {"x": X[:1], "w": WEIGHTS[:1]},
        weights=lambda inputs: inputs["w"],
    )


def batches(weights=WEIGHTS, cuts=CUTS):
    """Pairs of numpy arrays."""
    for a, b in itertools.pairwise(cuts):
        yield {"x": X[a:b], "w": weights[a:b]}, Y[a:b]


def one_batch(weights=WEIGHTS):
    return next(batches(weights, (0, N)))


MODEL = model_of()
EIGENBASES = EKFAC(MODEL)


def wrapped(model):
    """All that wraps and all that is set, at once."""
    declared = {"in": ng.layers.DenseBlock()}
    curvature = EKFAC(model, declared=declared, sharing=ng.layers.Reduce())
    return Constant(SubBatch(curvature, 1))


CURVATURES = {
    **{name: make(MODEL) for name, make in ng.CURVATURES.items() if name != "sampled"},
    "ekfac": EIGENBASES,
    "kfoc": KFOC(MODEL, iterations=2),
    "automatic": Automatic(MODEL),
    "automatic_diagonal": AutomaticDiagonal(MODEL),
    "empirical_kfac": KFAC(MODEL, Empirical()),
    "wrapped": wrapped(MODEL),
}


def matrix_of(curvature, params):
    """Statistics -> the metric's matrix, for which no batch is given."""
    return jax.jit(lambda statistics: curvature.metric(statistics, params).dense())


@pytest.mark.parametrize("name", CURVATURES)
def test_statistics_over_batches_saved_and_loaded_are_those_of_one_big_batch(
    name, tmp_path
):
    curvature = CURVATURES[name]
    found = curvature.over(PARAMS, lambda: batches())
    ng.save(tmp_path / "statistics.npz", curvature, found)
    average = ng.load(tmp_path / "statistics.npz", curvature, PARAMS)
    jax.tree.map(np.testing.assert_array_equal, average, found)
    matrix = matrix_of(curvature, PARAMS)(average.statistics)
    whole = jax.jit(lambda *batch: curvature.at(PARAMS, *batch).dense())
    assert relative_error(matrix, whole(*one_batch())) < 1e-12
    np.testing.assert_allclose(average.weight, WEIGHTS.sum(), rtol=1e-14)


MASK = RNG.normal(size=(INPUTS, 3))
NOT_LINEAR = {
    "tied": (lambda p, x: jnp.tanh(x @ p.T) @ p, (5, INPUTS), KFAC),
    "masked": (lambda p, x: x @ (p * MASK), (INPUTS, 3), KFAC),
    "centred": (
        lambda p, x: jnp.tanh(x @ p)[:, 0],
        (INPUTS, 1),
        lambda model: Dense(model, Centred()),
    ),
}


@pytest.mark.parametrize("name", NOT_LINEAR)
def test_statistics_that_are_no_means_are_those_of_one_big_batch_too(name):
    apply, shape, make = NOT_LINEAR[name]
    family = ng.families.Unnormalized() if name == "centred" else None
    curvature, weights = make(model_of(apply, family)), WEIGHTS + 0.1
    params = jnp.asarray(np.random.default_rng(1).normal(size=shape))
    data = [(inputs, None) for inputs, _ in batches(weights)]
    average = curvature.over(params, data)
    estimate, matrix = jax.jit(curvature.estimate), matrix_of(curvature, params)
    expected = matrix(estimate(params, one_batch(weights)[0]))
    assert relative_error(matrix(average.statistics), expected) < 1e-12
    # The mean of the batches' own statistics is something else.
    mean, total = curvature.init(params), 0.0
    for inputs, _ in data:
        total += inputs["w"].sum()
        share = jnp.asarray(inputs["w"].sum() / total)
        mean = curvature.accumulate(mean, estimate(params, inputs), share)
    assert relative_error(matrix(mean), expected) > 1e-3


def test_sampled_labels_are_right_in_expectation_and_fresh_in_each_batch():
    exact = CURVATURES["dense"].over(PARAMS, batches()).statistics
    sampled = Dense(MODEL, Sampled(1))
    draws = [
        sampled.over(PARAMS, batches(), key=key).statistics
        for key in jax.random.split(KEY, 40)
    ]
    error = np.std(draws, 0, ddof=1) / np.sqrt(len(draws))
    assert np.all(np.abs(np.mean(draws, 0) - exact) <= 5 * error + 1e-12)
    assert np.max(error) < 0.2 * np.max(np.abs(exact))
    one = next(batches(1 + WEIGHTS))
    average = sampled.over(PARAMS, [one, one], key=KEY).statistics
    estimate = jax.jit(sampled.estimate)
    parts = [estimate(PARAMS, one[0], None, jax.random.fold_in(KEY, b)) for b in (0, 1)]
    assert relative_error(average, (parts[0] + parts[1]) / 2) < 1e-12
    assert relative_error(*parts) > 1e-3


SHIFTED = ng.Model(
    lambda params, inputs: (inputs["x"] + inputs["shift"][None]) @ params,
    ng.families.Categorical(),
    in_axes={"x": 0, "shift": None},
)


@pytest.mark.parametrize("labels", [Sampled(2), Empirical()])
def test_kept_data_have_the_labels_and_what_examples_share(labels):
    params, shift = jnp.asarray(MASK), np.ones(INPUTS)
    curvature, y = Gram(SHIFTED, labels), np.abs(Y)
    data = [({"x": X[a:b], "shift": shift}, y[a:b]) for a, b in ((0, 4), (4, N))]
    found = matrix_of(curvature, params)(curvature.over(params, data, key=KEY)[0])
    whole = jax.jit(lambda x, y: curvature.at(params, x, y, KEY).dense())
    assert relative_error(found, whole({"x": X, "shift": shift}, y)) < 1e-12
    data[1][0]["shift"] = 2 * shift
    with pytest.raises(ValueError, match="without one must be equal in all batches"):
        curvature.over(params, data, key=KEY)


def test_unequal_batches_are_compiled_once_a_shape_and_memory_does_not_grow():
    traces, seen = [0], []

    def apply(params, x):
        traces[0] += isinstance(x, jax.core.Tracer)
        return mlp(params, x)

    curvature = KFAC(ng.Model(apply, ng.families.Categorical(), X[:1]))
    x, y, params = jax.tree.map(lambda a: a.astype("float32"), (X, Y, PARAMS))

    def data():
        for i in range(12):
            seen.append((traces[0], sum(a.nbytes for a in jax.live_arrays())))
            part = slice(0, 4) if i % 3 else slice(4, N)
            yield x[part], y[part]

    average = curvature.over(params, data())
    counts, memory = zip(*seen, strict=True)
    assert counts[0] == 0 < counts[1] < counts[2]
    assert set(counts[2:]) == {counts[2]}
    assert set(memory[3:]) == {memory[3]}
    curvature.over(params, data())
    assert traces[0] == counts[2]

    assert average.weight == 4 * (N - 4) + 8 * 4
    rows = np.r_[np.tile(np.arange(4, N), 4), np.tile(np.arange(4), 8)]
    expected = jax.jit(curvature.estimate)(params, x[rows])
    for given, whole in zip(*map(jax.tree.leaves, (average[0], expected)), strict=True):
        assert given.dtype == average.weight.dtype == jnp.float32
        assert relative_error(given, whole) < 1e-5


@pytest.mark.parametrize("name", ["ekfac", "kfoc", "gram"])
def test_a_pass_that_was_saved_goes_on_as_if_nothing_had_been(name, tmp_path):
    curvature, files = CURVATURES[name], []

    def save(progress):
        files.append(tmp_path / f"{len(files)}.npz")
        ng.save(files[-1], curvature, progress)

    whole = curvature.over(PARAMS, lambda: batches(), callback=save)
    assert len(files) == 3 * curvature.passes
    for file in files[1:6]:
        start = ng.load(file, curvature, PARAMS)
        for _ in range(2):  # what was given is left as it was
            again = curvature.over(PARAMS, lambda: batches(), start=start)
            jax.tree.map(np.testing.assert_array_equal, again, whole)
    later = start._replace(passes=7)
    with pytest.raises(ValueError, match=r"pass 8 over the data, and .* needs [124]"):
        curvature.over(PARAMS, batches(), start=later)
    with pytest.raises(ValueError, match=r"has 1 batches in pass [12], and at l"):
        curvature.over(PARAMS, [next(batches())], start=start)


def test_data_that_cannot_be_read_twice_is_an_error():
    with pytest.raises(ValueError, match="2 times, and a generator can be read"):
        EIGENBASES.over(PARAMS, batches())

    class Once:
        def __init__(self):
            self.batches = batches()

        def __iter__(self):
            return self.batches

    with pytest.raises(ValueError, match="has 0 batches in pass 2"):
        EIGENBASES.over(PARAMS, Once())


def test_what_cannot_be_averaged_says_what_to_do():
    with pytest.raises(ValueError, match="leave it out, and give batches"):
        Constant(KFAC(MODEL, axis_name="data")).over(PARAMS, batches())
    model = model_of(lambda p, x: x @ p, ng.families.Unnormalized())
    with pytest.raises(ValueError, match="use Dense, which is the same matrix"):
        KLHessian(model, Centred()).over(jnp.ones(INPUTS), batches())


def test_data_that_is_none_says_so():
    over = functools.partial(Diagonal(MODEL, Empirical()).over, PARAMS)
    with pytest.raises(
        ValueError, match=r"pair \(inputs, targets\).*batch 0 .*ndarray"
    ):
        over([np.ones((2, 3))])
    with pytest.raises(ValueError, match="own: pass targets=y"):
        over([(next(batches())[0], None)])
    with pytest.raises(ValueError, match="has 0 batches in pass 1, and at least 1"):
        over([])
    with pytest.raises(ValueError, match="weights of all the data are 0"):
        over(batches(0 * WEIGHTS))
    impossible = np.where(np.arange(N) == 7, 1, WEIGHTS)  # whose label is −1
    for make in (Diagonal, Gram):
        with pytest.raises(ValueError, match="batch 1 are not finite"):
            make(MODEL, Empirical()).over(PARAMS, batches(impossible))
