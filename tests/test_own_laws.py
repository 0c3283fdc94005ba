"""Laws of a user's own through every curvature: no constructor gives another Fisher."""

from __future__ import annotations

from functools import cache, partial

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from own_laws import (
    CLASSES,
    DRAWN,
    EVERYWHERE,
    EXACT,
    SOFTMAX,
    Law,
    distrax,
    doubled,
    numpyro,
    softmax,
    softmax_sample,
)

import natgrad as ng
import natgrad.families as nf
from natgrad.curvature import (
    CURVATURES,
    Automatic,
    Dense,
    Exact,
    KLHessian,
    MatrixFree,
)
from natgrad.model.batch import Example

FEATURES, EXAMPLES = 2, 5
KEY = jax.random.PRNGKey(3)
EXACT_CURVATURES = {
    name: make
    for name, make in {**CURVATURES, "automatic": Automatic}.items()
    if name not in {"sampled", "empirical", "kfoc", "gram_blocks"}  # rows as of "gram"
}


def linear(params, x):
    return x @ params


def problem(law: Law, examples: int = EXAMPLES, dtype=None):
    x = jax.random.normal(jax.random.PRNGKey(1), (examples, FEATURES), dtype)
    w = 0.5 * jax.random.normal(jax.random.PRNGKey(2), (FEATURES, law.outputs), dtype)
    return w, x


def matrix(make, family, w, x, key=None):
    curvature = make(ng.Model(linear, family, x[:1]))
    return jax.jit(lambda w: curvature.at(w, x, key=key).dense())(w)


def allowed(law):
    """TFP relies on NumPy's promotion of ranks."""
    return jax.numpy_rank_promotion("allow" if law.startswith("tfp") else "raise")


def matrices(family, w, x):
    """F of the exact curvatures, by one program."""
    model = ng.Model(linear, family, x[:1])
    curvatures = {name: make(model) for name, make in EXACT_CURVATURES.items()}
    found = lambda w: {name: c.at(w, x).dense() for name, c in curvatures.items()}
    return jax.device_get(jax.jit(found)(w))


@cache
def built_in_matrices(family, outputs):
    """Several laws equal the same built-in one."""
    return matrices(family, *problem(Law(None, family, outputs)))


# One law of each constructor: curvatures read the definitions that the next test has.
@pytest.mark.parametrize("law", sorted(EVERYWHERE))
def test_a_law_that_can_be_known_gives_the_fisher_of_the_built_in_one(law):
    with allowed(law):
        own = matrices(EXACT[law].make(), *problem(EXACT[law]))
    built_in = built_in_matrices(EXACT[law].built_in, EXACT[law].outputs)
    for curvature, expected in built_in.items():
        np.testing.assert_allclose(
            own[curvature], expected, 1e-9, 1e-12, True, curvature
        )
        assert np.max(np.abs(expected)) > 1e-3


def definitions(family, z):
    """F_z by score columns, by products, and as the Hessian of the divergence."""
    model, labels = ng.Model(linear, family), Exact()
    axes = z.ndim if family.parameter_ndim is None else family.parameter_ndim
    example = Example(jnp.ones(z.shape[: z.ndim - axes], z.dtype), None, KEY)
    scores, weights = labels.columns(model, z, example)
    product = lambda v: labels.product(model, z, example, v)
    to = lambda z2: labels.divergence(model, z, example, z2)
    return (
        jnp.einsum("k,ki,kj->ij", weights, scores, scores),
        jax.vmap(product)(jnp.eye(z.size, dtype=z.dtype)),
        jax.hessian(to)(z),
    )


@pytest.mark.parametrize("law", EXACT)
def test_its_three_definitions_are_those_of_the_built_in_one(law):
    """For each output of a batch."""
    family, built_in = EXACT[law].make(), EXACT[law].built_in
    z = jnp.array([[0.3, -0.6, 0.2, 1.1, -0.4], [-1.2, 0.5, 0.9, -0.3, 0.7]])
    fisher = built_in.fisher
    if built_in.parameter_ndim == 0:
        fisher = lambda z: jnp.diag(jax.vmap(built_in.fisher)(z))

    @jax.jit
    @jax.vmap
    def both(z):
        return definitions(family, z), fisher(z)

    with allowed(law):
        found, expected = both(z[:, : EXACT[law].outputs])
    for each in found:
        np.testing.assert_allclose(each, expected, 1e-9, 1e-12)


@pytest.mark.parametrize("law", ["distrax categorical", "distrax normal"])
def test_float32_stays(law):
    z = jnp.array([0.3, -0.6, 0.2], jnp.float32)[: EXACT[law].outputs]
    expected = EXACT[law].built_in.fisher(z.astype(jnp.float64))
    family = EXACT[law].make()
    for found in jax.jit(lambda z: definitions(family, z))(z):
        assert found.dtype == jnp.float32
        np.testing.assert_allclose(found, expected, 1e-5, 1e-6)


def shared_output(law: Law):
    """A model whose examples all have the output θ, so that F is F_z."""
    model = ng.Model(lambda p, x: jnp.broadcast_to(p, (x.shape[0], p.size)), law.make())
    return model, problem(law)[0][0]


@pytest.mark.parametrize("law", DRAWN)
def test_a_law_that_must_be_drawn_agrees_by_its_standard_error(law):
    model, z = shared_output(DRAWN[law])
    family, built_in = model.family, DRAWN[law].built_in
    batches, count = 40, 20

    @jax.jit
    def figures(z):
        at = lambda key: Dense(model).at(z, jnp.zeros((count, 1)), key=key).dense()
        found = jax.lax.map(at, jax.random.split(KEY, batches))
        return found, definitions(family, z), built_in.fisher(z)

    found, same, exact = figures(z)
    for other in same[1:]:
        np.testing.assert_allclose(other, same[0], 1e-9, 1e-12)
    error = jnp.std(found, 0, ddof=1) / jnp.sqrt(batches)
    assert jnp.all(jnp.abs(jnp.mean(found, 0) - exact) <= 5 * error + 1e-12)
    assert jnp.max(error) < 0.02 * jnp.max(jnp.abs(exact))


def test_the_error_of_a_drawn_law_falls_with_the_examples_and_its_draws_are_fresh():
    model, z = shared_output(DRAWN["functions"])
    exact = SOFTMAX.fisher(z)

    @partial(jax.jit, static_argnums=1)
    def estimates(keys, count):
        at = lambda key: Dense(model).at(z, jnp.zeros((count, 1)), key=key).dense()
        return jax.lax.map(at, keys)

    square = lambda found: jnp.mean((found - exact[None]) ** 2)
    keys = jax.random.split(KEY, 30)
    few, many = estimates(keys, 2), estimates(keys, 32)
    assert 16 / 2 < square(few) / square(many) < 16 * 2
    assert jnp.any(few[0] != few[1])
    without_key = jax.jit(lambda z: Dense(model).at(z, jnp.zeros((32, 1))).dense())
    assert square(without_key(z)[None]) < 8 * square(many)
    np.testing.assert_array_equal(without_key(z), without_key(z))


def test_a_law_of_few_draws_has_fresh_ones_inside_of_another_too():
    few = softmax(samples=2, parameter_ndim=1)
    z, one = jnp.array([0.3, -0.6, 0.2]), jnp.ones(())

    @partial(jax.jit, static_argnums=0)
    def drawn(family, key):
        model = ng.Model(linear, family)
        return Exact().columns(model, z, Example(one, None, key)).scaled

    for family in (few, doubled(few), nf.Product((few,), (CLASSES,))):
        found = [drawn(family, key) for key in jax.random.split(KEY, 4)]
        assert np.ptp(found, axis=0).max() > 0, family


def test_under_one_key_all_curvatures_have_the_same_draws():
    family, (w, x) = softmax(), problem(DRAWN["functions"])
    model, step = ng.Model(linear, family), 1e-3 * jnp.ones_like(w).at[0, 0].set(2)
    for key in (KEY, None):
        expected = matrix(Dense, family, w, x, key)
        found = matrix(MatrixFree, family, w, x, key)
        np.testing.assert_allclose(found, expected, 1e-9, 1e-12)
    quadratic = 0.5 * step.ravel() @ expected @ step.ravel()
    np.testing.assert_allclose(jax.jit(model.kl)(w, w + step, x), quadratic, 1e-2)


@pytest.mark.parametrize("law", ["distrax", "functions"])
def test_a_network_with_a_law_of_its_own_learns(law):
    family = {
        "distrax": lambda: nf.from_distribution(
            lambda z: distrax.Categorical(logits=z)
        ),
        "functions": softmax,
    }[law]()
    model = ng.Model(linear, family)
    w, x = problem(Law(softmax, SOFTMAX), 32)
    y = jnp.argmax(x @ jnp.array([[1.0, -1.0, 0.0], [0.0, 1.0, -1.0]]), axis=1)
    tx = ng.natural_gradient(0.5, model, damping=1e-2)

    @jax.jit
    def step(w, state):
        loss, gradient = jax.value_and_grad(model.loss)(w, x, y)
        updates, state = tx.update(gradient, state, w, inputs=x)
        return optax.apply_updates(w, updates), state, loss

    state, losses, skipped = tx.init(w), [], []
    for _ in range(6):
        w, state, loss = step(w, state)
        losses.append(float(loss))
        skipped += [leaf for _, leaf in optax.tree.get_all_with_path(state, "skipped")]
    assert losses[-1] < 0.5 * losses[0]
    assert not np.any(skipped)


def test_a_support_without_all_labels_is_an_error_and_a_nan_where_unknown():
    few, (w, x) = softmax(support=jnp.arange(CLASSES - 1)), problem(EXACT["support"])
    message = "sum to 0.666667 .*Give every label of the law once"
    for make in (Dense, MatrixFree, KLHessian):
        with pytest.raises(ValueError, match=message):
            matrix(make, few, w, x)
    with pytest.raises(ValueError, match=r"from_log_prob: .*of the 2 labels"):
        few.score_nodes(jnp.zeros(CLASSES))
    with pytest.raises(ValueError, match=r"from_distribution: .*of the 2 labels"):
        nf.from_distribution(
            lambda z: distrax.Categorical(logits=z),
            support=jnp.arange(2),
            example=jnp.zeros(CLASSES),
        )
    shifted = nf.from_log_prob(  # right at z = 0 alone
        lambda z, y: jax.nn.log_softmax(z)[y] + z[0],
        softmax_sample,
        support=[0, 1, 2],
    )
    assert jnp.all(jnp.isnan(matrix(Dense, shifted, w, x)))


def test_wrong_arguments_are_errors():
    with pytest.raises(
        ValueError, match=r"support has shape \(\); expected all labels"
    ):
        softmax(support=3)
    kinked = nf.from_log_prob(
        lambda z, y: -jnp.abs(y - z[0]),
        lambda key, z: z[0] + jax.random.laplace(key),
        kl=lambda z, z2: jnp.abs(z2 - z)[0],
    )
    with pytest.raises(ValueError, match=r"kink at z2 = z.*leave kl out"):
        Dense(ng.Model(linear, kinked)).at(jnp.ones((2, 1)), jnp.ones((3, 2)))
    with pytest.raises(ValueError, match="Centred"):
        Dense(ng.Model(lambda p, x: x @ p, nf.Unnormalized())).at(
            jnp.ones(2), jnp.ones((3, 2))
        )


def test_labels_of_probability_zero_add_nothing():
    z = jnp.array([0.3, -jnp.inf, -0.2])
    for factory in (
        lambda z: distrax.Categorical(logits=z),
        lambda z: numpyro.Categorical(logits=z, validate_args=False),
    ):
        family = nf.from_distribution(factory)
        scores, weights = jax.jit(family.columns)(None, z)
        found = jnp.einsum("k,ki,kj->ij", weights, scores, scores)
        np.testing.assert_allclose(found, SOFTMAX.fisher(z), 1e-12, 1e-15)


def test_provenance_says_how_the_columns_are_found():
    of = lambda family: family.provenance["columns"]
    assert of(softmax(support=[0, 1])) == "sum over support"
    assert of(softmax(kl=SOFTMAX.kl)) == "root of fisher"
    assert of(softmax()).startswith("estimated from 256 samples, drawn for each")
    factory, z = lambda z: distrax.Categorical(logits=z), jnp.zeros(3)
    assert of(nf.from_distribution(factory, example=z)) == "sum over support"
    normal = nf.from_distribution(lambda z: distrax.Normal(z, 1.0), example=z)
    assert of(normal) == "root of fisher"
    assert "else estimated" in of(nf.from_distribution(factory))
    assert of(EXACT["exponential family"].make()) == "root of fisher"
    assert of(SOFTMAX) == "given"
