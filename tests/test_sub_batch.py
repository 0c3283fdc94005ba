"""Statistics of a part of each batch."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from problems import CASES, ravel, relative_error

import natgrad as ng
from natgrad.curvature import EKFAC, KFAC, Empirical, Gram, SubBatch
from natgrad.optimizers.approximate import SPARING

MODEL, PARAMS, X, Y = CASES["categorical"].problem()
N = X.shape[0]
KEYS = jax.random.split(jax.random.PRNGKey(0), 200)


def parts(every):
    """Every choice of first example, by NumPy."""
    rows = [(first + every * np.arange(max(1, N // every))) % N for first in range(N)]
    return [sorted(chosen) for chosen in rows]


@pytest.mark.parametrize("every", [3, 2])
def test_the_estimate_is_one_of_a_part_and_unbiased(every):
    """Each key gives the factors of one part, all parts come, their mean is the
    batch's: input factors are exact for every part by NumPy."""
    curvature = SubBatch(KFAC(MODEL), every)
    estimate = jax.jit(jax.vmap(lambda key: curvature.estimate(PARAMS, X, None, key)))
    given = estimate(KEYS).inputs[0]
    x = np.concatenate([X, np.ones((N, 1))], axis=1)[:, : given.shape[-1]]
    expected = np.stack([x[rows].T @ x[rows] / len(rows) for rows in parts(every)])
    distance = np.abs(given[:, None] - expected[None]).max((2, 3))
    assert distance.min(1).max() < 1e-10
    assert distance.min(0).max() < 1e-10
    np.testing.assert_allclose(expected.mean(0), x.T @ x / N, atol=1e-12)


@pytest.mark.parametrize("stride", [1, 5])
def test_the_keys_of_a_run_draw_every_part_about_as_often(stride):
    """20 times each, of so many that fewer than 8 has a probability below 0.001."""
    curvature, key, keys = SubBatch(KFAC(MODEL), 3), jax.random.PRNGKey(0), []
    for step in range(20 * N * stride):
        key = ng.tree.next_key(key)
        keys += [key] * (step % stride == 0)
    estimate = jax.jit(jax.vmap(lambda key: curvature.estimate(PARAMS, X, None, key)))
    given = estimate(jnp.stack(keys)).inputs[0]
    x = np.concatenate([X, np.ones((N, 1))], axis=1)[:, : given.shape[-1]]
    expected = np.stack([x[rows].T @ x[rows] / len(rows) for rows in parts(3)])
    drawn = np.abs(given[:, None] - expected[None]).max((2, 3)).argmin(1)
    assert np.bincount(drawn, minlength=N).min() >= 8


def estimated(form, *batch):
    return jax.jit(form.estimate)(PARAMS, *batch)


@pytest.mark.parametrize("form", [KFAC, EKFAC])
def test_without_a_key_it_is_every_kth_from_the_first(form):
    form, rows = form(MODEL, Empirical()), 3 * np.arange(N // 3)
    expected = estimated(form, X[rows], Y[rows])
    given = estimated(SubBatch(form, 3), X, Y)
    scales = lambda s: ravel(getattr(s, "scales", s))
    assert relative_error(scales(given), scales(expected)) < 1e-10


def test_a_smaller_part_than_the_fewest_is_not_taken():
    """Of N examples at least `min_examples`: every 2nd where every 3rd are too few."""
    few, form = N // 2, KFAC(MODEL, Empirical())
    assert few > N // 3
    for least, rows in ((few, 2 * np.arange(few)), (2 * N, slice(None))):
        given = estimated(SubBatch(form, 3, min_examples=least), X, Y)
        expected = estimated(form, X[rows], Y[rows])
        assert relative_error(ravel(given), ravel(expected)) < 1e-10


def test_gradient_and_loss_are_the_whole_batchs():
    loss, gradient, _ = SubBatch(KFAC(MODEL), 2).value_and_grad(PARAMS, X, Y)
    expected, right = jax.value_and_grad(MODEL.loss)(PARAMS, X, Y)
    assert loss == pytest.approx(float(expected), rel=1e-14)
    assert relative_error(ravel(gradient), ravel(right)) < 1e-14


@pytest.mark.parametrize("adaptive", [False, True])
def test_a_refresh_takes_a_part_and_steps(adaptive):
    """Statistics in the state are those of the part that the state's key draws."""
    refresh = ng.Refresh(sub_batch=3)
    if adaptive:
        tx = ng.scale_by_factored_curvature(KFAC(MODEL), refresh=refresh)
    else:
        tx = ng.kfac(0.1, MODEL, refresh=refresh)
    state = tx.init(PARAMS)
    _, after = jax.jit(lambda s: tx.update(PARAMS, s, PARAMS, inputs=X))(state)
    given = optax.tree.get(after, "statistics").inputs[0]
    x = np.concatenate([X, np.ones((N, 1))], axis=1)[:, : given.shape[-1]]
    errors = [np.abs(x[r].T @ x[r] / len(r) - given).max() for r in parts(3)]
    assert min(errors) < 1e-10


def many(count):
    return np.random.default_rng(0).standard_normal((count, *X.shape[1:]))


def distances(factor, x, every):
    """How far A is from that of each part of every k-th example, by NumPy; sorted."""
    ones = np.concatenate([x, np.ones((len(x), 1))], axis=1)[:, : factor.shape[-1]]
    parts = [ones[first::every] for first in range(every)]
    return sorted(np.abs(p.T @ p / len(p) - factor).max() for p in parts)


@pytest.mark.parametrize(("count", "every"), [(255, 1), (256, 2), (390, 3), (640, 4)])
def test_by_default_large_batches_give_a_part_to_the_factors(count, every):
    """Of 256 examples every second, and so on to every fourth: 128 are left at least.

    Below that statistics are those of the whole batch to the last bit.
    """
    x, curvature = many(count), KFAC(MODEL)
    given = SPARING.of_part(curvature).estimate(PARAMS, x, None, KEYS[0])
    nearest, *others = distances(given.inputs[0], x, every)
    assert nearest < 1e-10
    assert all(other > 1e-3 for other in others)
    whole = curvature.estimate(PARAMS, x, None, KEYS[0])
    assert np.array_equal(ravel(given), ravel(whole)) == (every == 1)


def test_the_trust_region_of_a_part_is_that_of_the_whole_batch():
    """`kfac` as it comes, a step that is too long: it is shortened to δ on all
    examples, and its factors are of every fourth."""
    x, tx = many(512), ng.kfac(1e3, MODEL)
    gradient = jax.tree.map(jnp.ones_like, PARAMS)
    step = jax.jit(lambda s: tx.update(gradient, s, PARAMS, inputs=x))
    update, after = step(tx.init(PARAMS))
    divergence = MODEL.kl(PARAMS, optax.apply_updates(PARAMS, update), x)
    radius = ng.damping.AdaptiveRadius().initial
    assert radius / 4 <= divergence <= radius * 1.01
    factor = optax.tree.get(after, "statistics").inputs[0]
    assert distances(factor, x, 4)[0] < 1e-10


def test_targets_that_no_label_needs_may_be_of_any_kind():
    curvature, x = SubBatch(KFAC(MODEL), 2), many(6)
    given = curvature.estimate(PARAMS, x, {"of": {"the": jnp.ones(3)}}, KEYS[0])
    expected = curvature.estimate(PARAMS, x, None, KEYS[0])
    assert np.array_equal(ravel(given), ravel(expected))


def test_what_cannot_be_cut_is_refused():
    with pytest.raises(ValueError, match=r"Refresh\(min_examples=...\) is a number"):
        ng.Refresh(sub_batch=2, min_examples=0)
    with pytest.raises(ValueError, match="integer >= 1"):
        SubBatch(KFAC(MODEL), 0)
    with pytest.raises(ValueError, match="number of examples"):
        SubBatch(KFAC(MODEL), 2, min_examples=0)
    with pytest.raises(ValueError, match="keeps no statistics"):
        SubBatch(Gram(MODEL), 2)
    with pytest.raises(ValueError, match="leading axis"):
        SubBatch(KFAC(MODEL, Empirical()), 2).estimate(PARAMS, X, Y[:-1])
    whole = ng.Model(
        lambda p, _: p["w"] @ jnp.ones((2, 3)),
        ng.families.NormalMean(),
        example_inputs={},
    )
    with pytest.raises(ValueError, match="No leaf of the inputs"):
        SubBatch(KFAC(whole), 2).estimate({"w": jnp.ones((1, 2))}, {})
