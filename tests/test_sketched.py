"""Random mixtures of score columns have the Fisher information as their mean."""

from __future__ import annotations

import inspect

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from problems import CASES, dense_of, relative_error

import natgrad as ng
from natgrad.curvature import (
    KFAC,
    Dense,
    Diagonal,
    Exact,
    ExactIfFew,
    Gram,
    Sampled,
    Sketched,
)

KEY = jax.random.PRNGKey(4)
FACTORS, CLASSES = 2, 3
WEIGHTS = jnp.array([[1.0, 0.5], [2.0, 0.0], [0.0, 0.0]])


def weighted():
    """(model, params, inputs): two factors an example, some of weight 0, one lost."""

    def apply(params, batch):
        x, weights = batch
        z = jnp.tanh(x @ params["w"]).reshape(-1, FACTORS, CLASSES)
        lost = jnp.all(weights == 0, axis=1)[:, None, None]
        return jnp.where(lost, jnp.nan, z)

    model = ng.Model(apply, ng.families.Categorical(), weights=lambda batch: batch[1])
    params = {"w": 0.8 * jax.random.normal(KEY, (2, FACTORS * CLASSES))}
    x = jnp.array([[0.5, -1.0], [1.5, 0.3], [-0.2, 1.0]])
    return model, params, (x, WEIGHTS)


def draws(function, count=2000):
    """[count, ...], and the standard error of their mean."""
    values = np.asarray(jax.jit(jax.vmap(function))(jax.random.split(KEY, count)))
    return values, values.std(0, ddof=1) / np.sqrt(count)


def assert_unbiased(values, error, exact):
    """Their mean is the exact value, within five errors that are small beside it."""
    moves = error > 1e-12 * np.abs(exact).max()
    z = ((values.mean(0) - exact) / np.where(moves, error, 1))[moves]
    assert np.abs(z).max() < 5
    np.testing.assert_allclose(values.mean(0)[~moves], exact[~moves], atol=1e-12)
    assert error.max() < np.abs(exact).max() / 10


@pytest.mark.parametrize("n", [1, 3])
def test_the_mean_is_the_fisher_information_of_weighted_factors(n):
    model, params, inputs = weighted()
    exact = np.asarray(dense_of(Dense(model), params, inputs))
    sketch = lambda key: Dense(model, Sketched(n)).estimate(params, inputs, key=key)
    assert_unbiased(*draws(sketch), exact)


def test_the_derivative_is_right_on_average():
    """Along a line of parameters, which a score-function factor is not needed for."""
    model, params, inputs = weighted()

    def entry(labels, key):
        def of(t):
            at = jax.tree.map(lambda p: p * t, params)
            return Dense(model, labels).estimate(at, inputs, key=key)[0]

        return jax.jacfwd(of)(1.0)

    exact = np.asarray(entry(Exact(), None))
    assert_unbiased(*draws(lambda key: entry(Sketched(1), key)), exact)


@pytest.mark.parametrize("form", [Dense, Gram, KFAC], ids=lambda form: form.__name__)
@pytest.mark.parametrize("name", ["bernoulli", "poisson", "normal_mean"])
def test_of_one_number_it_is_exact_for_any_key(name, form):
    x = jax.random.normal(KEY, (5, 3))
    family = CASES[name].family
    model = ng.Model(lambda p, x: x @ p["w"], family, example_inputs=x[:1])
    params = {"w": 0.3 * jnp.arange(3.0)[:, None]}
    of = lambda labels: form(model, labels).at(params, x, None, KEY).dense()
    assert relative_error(of(Sketched(1)), of(Exact())) < 1e-12
    assert relative_error(of(Sampled(1)), of(Exact())) > 1e-2


def test_where_a_prediction_is_certain_it_does_not_jump():
    """The spread of s sᵀ over its mean: 1/√ε for labels, of order 1 for signs."""
    chance = 1e-4
    z = jnp.log(jnp.array([[1 - 2 * chance, chance, chance]]))
    model = ng.Model(lambda params, _: params, ng.families.Categorical())

    def spread(labels):
        size = lambda key: jnp.trace(Dense(model, labels).estimate(z, None, key=key))
        values, _ = draws(size, 20_000)
        return values.std() / values.mean()

    assert spread(Sampled(1)) > 20
    assert spread(Sketched(1)) < 1


def test_a_law_that_has_to_be_drawn_is():
    """Its labels are those of `Sampled`, by the same key."""
    family = ng.families.from_log_prob(
        lambda z, y: -jnp.abs(y - z[0]) - jnp.log(2.0),
        lambda key, z: z[0] + jax.random.laplace(key, dtype=z.dtype),
        parameter_ndim=1,
    )
    model = ng.Model(lambda p, x: x @ p, family)
    params, x = jnp.ones((2, 1)), jax.random.normal(KEY, (6, 2))
    assert family.drawn(jnp.ones(1))
    of = lambda labels: Dense(model, labels).estimate(params, x, key=KEY)
    assert relative_error(of(Sketched(2)), of(Sampled(2))) < 1e-12


@pytest.mark.parametrize("make", [ng.gram, ng.gram_blocks], ids=["gram", "gram_blocks"])
def test_gram_of_one_output_is_exact_as_it_comes(make):
    """For more examples than `gram` takes exact labels of."""
    x = jax.random.normal(KEY, (600, 4))
    family = ng.families.Poisson()
    model = ng.Model(lambda p, x: x @ p["w"], family, example_inputs=x[:1])
    params = {"w": 0.3 * jnp.ones((4, 1))}
    gradient = jax.tree.map(jnp.cos, params)

    def step(labels):
        tx = make(0.1, model, **labels)
        return tx.update(gradient, tx.init(params), params, inputs=x)[0]["w"]

    exact = step({"labels": Exact()})
    assert relative_error(step({}), exact) < 1e-9
    assert relative_error(step({"labels": Sampled(1)}), exact) > 1e-3


@pytest.mark.parametrize("n", [0, -1, 1.5, "1", True])
def test_how_many_is_a_positive_integer(n):
    with pytest.raises(ValueError, match="Sketched: n must be an integer >= 1"):
        Sketched(n)


@pytest.mark.parametrize("form", [Dense, Diagonal], ids=lambda form: form.__name__)
def test_few_columns_are_exact_and_more_are_sketched(form):
    model, params, inputs = weighted()
    of = lambda labels: form(model, labels).estimate(params, inputs, key=KEY)
    count = FACTORS * CLASSES
    few, many = of(ExactIfFew(count)), of(ExactIfFew(count - 1))
    np.testing.assert_array_equal(few, of(Exact()))
    np.testing.assert_array_equal(many, of(Sketched(1)))
    assert relative_error(many, few) > 1e-2
    with pytest.raises(ValueError, match="ExactIfFew: most"):
        ExactIfFew(0)


@pytest.mark.parametrize(("places", "columns"), [(1, 32), (2, 1)])
def test_the_diagonal_of_a_sequence_takes_no_pull_back_for_each_word(places, columns):
    """As it comes: exact for 32 classes, and not for those of every place."""
    labels = inspect.signature(ng.diagonal_fisher).parameters["labels"].default
    model = ng.Model(lambda p, x: x @ p, ng.families.Categorical())
    params, x = jnp.zeros((8, 32)), jnp.ones((4, places, 8))
    assert Diagonal(model, labels).columns(params, x) == (columns, 4)


@pytest.mark.parametrize("wrong", [3, Exact, None])
@pytest.mark.parametrize("form", [Dense, Gram, KFAC, Diagonal])
def test_what_are_no_labels_is_refused_where_it_is_given(form, wrong):
    model = weighted()[0]
    with pytest.raises(ValueError, match=r"an instance such as .*Exact\(\).*, got"):
        form(model, wrong)
