"""SOAP and KL-Shampoo: the papers in NumPy, step by step, and what no step may do."""

from __future__ import annotations

import functools

import jax
import jax.numpy as jnp
import numpy as np
import optax
import pytest
from gradient_only_oracle import B1, B2, EPS, EVERY, LIMIT, SHAPES, Paper, draw

import natgrad as ng
from natgrad.metrics.tensor_factors import above_rounding

MAKERS = {"soap": ng.soap, "kl_shampoo": ng.kl_shampoo}
BOTH = pytest.mark.parametrize("name", MAKERS)
SETTINGS = {"b1": B1, "b2": B2, "eps": EPS, "max_dimension": LIMIT}


@functools.cache
def program(name, every=EVERY, **changes):
    """(gradients [steps, ...], state, params) -> updates and states of all steps."""
    settings = SETTINGS | changes
    tx = MAKERS[name](1.0, refresh=ng.Refresh(inverses=every), **settings)

    def body(carry, gradients):
        params, state = carry
        updates, state = tx.update(gradients, state, params)
        return (optax.apply_updates(params, updates), state), (updates, state)

    def run(params, state, gradients):
        return jax.lax.scan(body, (params, state), gradients)

    return tx, jax.jit(run)


def trained(name, gradients, params=None, **changes):
    """The updates and the inner states of all steps, from θ = 0."""
    tx, run = program(name, **changes)
    if params is None:
        params = jax.tree.map(lambda g: jnp.zeros_like(g[0]), gradients)
    _, (updates, states) = run(params, tx.init(params), gradients)
    return updates, states[0]


# The papers -------------------------------------------------------------------------


@BOTH
def test_ten_steps_are_those_of_the_papers(name):
    gradients = draw(10)
    updates, states = trained(name, gradients)
    for place, leaf in enumerate(sorted(SHAPES)):
        paper = Paper(name, SHAPES[leaf], LIMIT)
        for t, g in enumerate(gradients[leaf]):
            bases = [q if q is None else np.asarray(q[t]) for q in states.bases[place]]
            expected = -paper.step(g, bases)
            np.testing.assert_allclose(
                updates[leaf][t], expected, rtol=1e-9, atol=1e-10, err_msg=f"{leaf} {t}"
            )


@BOTH
def test_steps_of_complex_parameters_are_those_of_the_papers_on_pairs(name):
    """x and y of x + i y are two parameters, each with its factors; k is real."""
    shapes = {"b": (2,), "k": (3, 2), "w": (4, 3)}
    real, imag = draw(8, shapes, seed=5), draw(8, shapes, seed=6)
    gradients = {n: real[n] + 1j * imag[n] for n in "bw"} | {"k": real["k"]}
    updates, states = trained(name, gradients)
    assert [updates[n].dtype.kind for n in "bkw"] == ["c", "f", "c"]
    pairs = [("b", np.real), ("b", np.imag), ("k", np.real)]
    for place, (leaf, part) in enumerate([*pairs, ("w", np.real), ("w", np.imag)]):
        paper = Paper(name, shapes[leaf], LIMIT)
        for t, g in enumerate(part(gradients[leaf])):
            bases = [q if q is None else np.asarray(q[t]) for q in states.bases[place]]
            found, expected = part(updates[leaf][t]), -paper.step(g, bases)
            np.testing.assert_allclose(found, expected, rtol=1e-9, atol=1e-10)


@BOTH
def test_rotated_gradients_give_rotated_steps(name):
    gradients = draw(9, {"w": (4, 4)})["w"]
    u, v = (
        np.linalg.qr(np.random.default_rng(seed).normal(size=(4, 4)))[0]
        for seed in (3, 4)
    )
    plain, _ = trained(name, {"w": gradients})
    turned, _ = trained(name, {"w": u @ gradients @ v.T})
    np.testing.assert_allclose(turned["w"], u @ plain["w"] @ v.T, rtol=1e-8, atol=1e-9)


@BOTH
@pytest.mark.parametrize("scale", [1e-12, 1e12])
def test_the_units_of_the_loss_do_not_matter(name, scale):
    gradients = draw(6, {"w": (4, 3), "b": (2,)})
    plain, _ = trained(name, gradients, eps=0.0)
    scaled, _ = trained(name, jax.tree.map(lambda g: scale * g, gradients), eps=0.0)
    for leaf in plain:
        np.testing.assert_allclose(scaled[leaf], plain[leaf], rtol=1e-7)


def test_kl_shampoo_whitens_what_is_a_kronecker_product():
    """G = A Z B: E[d dᵀ] = I, whatever A and B."""
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(5, 5)), rng.normal(size=(3, 3))
    gradients = {"w": a @ rng.normal(size=(6000, 5, 3)) @ b}
    updates, _ = trained("kl_shampoo", gradients, b1=0.0, b2=0.995, every=10)
    late = np.asarray(updates["w"][2000:]).reshape(-1, 15)
    np.testing.assert_allclose(late.T @ late / len(late), np.eye(15), atol=0.1)


# What no step may do ----------------------------------------------------------------


def last(tree, index=-1):
    return jax.tree.map(lambda leaf: leaf[index], tree)


@BOTH
def test_a_parameter_without_a_gradient_waits(name):
    """Steps of 0 do not move it; it begins with its first gradient."""
    gradients = draw(8, {"w": (4, 4)})["w"]
    later = np.concatenate([np.zeros((3, 4, 4)), gradients])
    plain, _ = trained(name, {"w": gradients}, b1=0.0, every=1)
    waited, states = trained(name, {"w": later}, b1=0.0, every=1)
    np.testing.assert_array_equal(waited["w"][:3], 0)
    np.testing.assert_allclose(waited["w"][3:], plain["w"], rtol=1e-9, atol=1e-12)
    assert not np.any(states.health.times)


@BOTH
@pytest.mark.parametrize("bad", [np.nan, np.inf, 1e200])
def test_a_step_that_is_not_finite_is_skipped_and_leaves_no_trace(name, bad):
    gradients = draw(6, {"w": (4, 3), "b": (2,)})
    broken = jax.tree.map(lambda g: np.insert(g, 3, g[3], axis=0), gradients)
    broken["w"][3, 1, 1] = bad
    plain, _ = trained(name, gradients)
    skipped, states = trained(name, broken)
    for leaf in plain:
        assert not np.any(skipped[leaf][3])
        rest = np.delete(skipped[leaf], 3, axis=0)
        np.testing.assert_allclose(rest, plain[leaf], rtol=1e-10)
    reason = 1 if not np.isfinite(bad) else 3
    np.testing.assert_array_equal(states.health.reason, [0, 0, 0, reason, 0, 0, 0])
    np.testing.assert_array_equal(states.health.times, [0, 0, 0, 1, 1, 1, 1])
    ng.check_health(last(states))
    with pytest.raises(ValueError, match="were 1 in all"):
        ng.check_health(last(states, 3))


@BOTH
def test_a_learning_rate_that_is_not_finite_is_told_of(name):
    tx = MAKERS[name](lambda count: jnp.where(count == 1, jnp.nan, 0.1))
    params = {"w": jnp.ones((2, 2))}
    state = tx.init(params)
    _, state = tx.update(params, state, params)
    ng.check_health(state)
    updates, state = tx.update(params, state, params)
    assert not np.any(updates["w"])
    with pytest.raises(ValueError, match="after it was scaled"):
        ng.check_health(state)


@BOTH
def test_members_under_vmap_are_those_alone(name):
    """One of them sees its first gradient later than the other."""
    grads = draw(7, {"w": (2, 4, 3)})["w"].swapaxes(0, 1).copy()  # [2, steps, 4, 3]
    grads[1, :2] = 0
    tx, run = program(name)
    params = jnp.zeros((2, 4, 3))
    one = lambda p, g: run({"w": p}, tx.init({"w": p}), {"w": g})[1][0]["w"]
    together = jax.vmap(one)(params, grads)
    alone = jnp.stack([one(p, g) for p, g in zip(params, grads, strict=True)])
    np.testing.assert_allclose(together, alone, rtol=1e-9, atol=1e-12)


@BOTH
def test_low_precision_is_kept_out_of_the_state(name):
    gradients = draw(5, {"w": (4, 3), "b": (2,)})
    low = jax.tree.map(lambda g: jnp.asarray(g, jnp.bfloat16), gradients)
    wide = jax.tree.map(lambda g: g.astype(jnp.float32), low)
    updates, states = trained(name, low)
    expected, _ = trained(name, wide)
    for leaf in updates:
        assert updates[leaf].dtype == jnp.bfloat16
        np.testing.assert_array_equal(
            updates[leaf], expected[leaf].astype(jnp.bfloat16)
        )
    kinds = {leaf.dtype for leaf in jax.tree.leaves(states)}
    assert kinds == {jnp.dtype(jnp.float32), jnp.dtype(jnp.int32)}


@BOTH
def test_weight_decay_is_beside_the_direction(name):
    gradients = draw(1, {"w": (4, 3), "b": (2,)})
    params = jax.tree.map(lambda g: jnp.ones_like(g[0]), gradients)
    plain, _ = trained(name, gradients, params)
    decayed, _ = trained(name, gradients, params, weight_decay=0.25)
    for leaf in plain:
        np.testing.assert_allclose(decayed[leaf] - plain[leaf], -0.25, rtol=1e-9)
    tx = MAKERS[name](0.1, weight_decay=0.25)
    with pytest.raises(ValueError, match=r"weight_decay=0.25 needs the parameters"):
        tx.update(params, tx.init(params))
    tx = MAKERS[name](0.1)
    assert tx.update(params, tx.init(params))[0].keys() == params.keys()


@BOTH
@pytest.mark.parametrize(
    ("arguments", "message"),
    [
        ({"b1": 1.0}, r"b1 must lie in \[0, 1\)"),
        ({"b2": -0.1}, r"b2 must lie in \[0, 1\)"),
        ({"eps": -1.0}, r"eps must lie in \[0, inf\)"),
        ({"weight_decay": np.nan}, r"weight_decay must lie in \[0, inf\)"),
        ({"max_dimension": 0}, "max_dimension must be an integer >= 1"),
        ({"refresh": ng.Refresh(2, 10)}, "averaged in every step"),
        ({"learning_rate": np.inf}, "learning_rate must be finite"),
    ],
)
def test_impossible_arguments_are_errors(name, arguments, message):
    with pytest.raises(ValueError, match=message):
        MAKERS[name](**arguments)


def test_max_dimension_is_static():
    with pytest.raises(ValueError, match="name it in static_args"):
        optax.inject_hyperparams(ng.soap)(0.1).init({"w": jnp.ones((2, 2))})


@BOTH
def test_what_is_rounding_is_not_whitened_in_float32(name):
    """784 inputs of which 200 are always 0, from batches of eight examples."""
    rng = np.random.default_rng(0)
    x = rng.normal(size=(24, 8, 784))
    x[..., 100:300] = 0
    gradients = np.swapaxes(x, 1, 2) @ rng.normal(size=(24, 8, 5))
    updates, states = trained(
        name, {"w": gradients.astype(np.float32)}, every=8, max_dimension=784
    )
    assert updates["w"].dtype == jnp.float32
    assert not np.any(states.health.times)
    sizes = np.sqrt(np.mean(np.asarray(updates["w"], float) ** 2, axis=2))  # [24, 784]
    live, dead = np.delete(sizes, np.s_[100:300], axis=1), sizes[:, 100:300]
    assert not np.any(dead)
    assert np.all((np.mean(live, 1) > 0.1) & (np.mean(live, 1) < 3))
    for axis in states.bases[0]:
        q = np.asarray(axis[-1], float)
        np.testing.assert_allclose(q.T @ q, np.eye(len(q)), atol=1e-5)


def test_rounding_is_told_from_what_is_small():
    squares = jnp.asarray([1.0, 1e-9, 1e-14, 0.0], jnp.float32)
    expected = [True, True, False, False]
    np.testing.assert_array_equal(above_rounding(squares, 100), expected)
    assert not np.any(above_rounding(jnp.zeros(3), 3))
