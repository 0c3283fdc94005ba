"""A renewal that leaves what is not due where it is."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest

from natgrad.control_flow import (
    cond_in_place,
    one_by_one_on_cpu,
    symmetric_solve,
    twice_in_place,
    zeros_unless,
)

X = jnp.linspace(0.5, 2.0, 4)


def step(due, scale, kept):
    """{"a": 3 s a², "n": n + 1} where due; the scale is closed over."""
    renew = lambda k: {"a": 3 * scale * k["a"] ** 2, "n": k["n"] + 1}
    return cond_in_place(due, renew, kept)


@pytest.mark.parametrize("due", [True, False])
def test_values_and_derivatives_are_the_conditional_s(due):
    """d/ds and d/da of Σ 3 s a² by hand, in both modes; of Σ a where it is not due."""
    total = lambda scale, a: jnp.sum(
        step(jnp.array(due), scale, {"a": a, "n": jnp.array(0)})["a"]
    )
    value = jax.jit(total)(2.0, X)
    assert abs(value - (6 * jnp.sum(X**2) if due else jnp.sum(X))) < 1e-12
    by_scale = 3 * jnp.sum(X**2) if due else 0.0
    by_a = 12 * X if due else jnp.ones(4)
    for mode in (jax.grad, jax.jacfwd):
        found = jax.jit(mode(total, argnums=(0, 1)))(2.0, X)
        assert abs(found[0] - by_scale) < 1e-12
        np.testing.assert_allclose(found[1], by_a, rtol=1e-12)
    twice = jax.jit(jax.hessian(total, argnums=1))(2.0, X)
    np.testing.assert_allclose(twice, 12 * np.eye(4) * due, atol=1e-12)


def test_members_of_a_batch_renew_together_and_only_where_one_is_due():
    batched = jax.jit(jax.vmap(step, (0, None, 0)))
    kept = {"a": jnp.stack([X, 2 * X]), "n": jnp.zeros(2, jnp.int32)}
    for due, count in (([True, False], 1), ([False, False], 0)):
        found = batched(jnp.array(due), 2.0, kept)
        np.testing.assert_array_equal(found["n"], [count, count])
        expected = 6 * kept["a"] ** 2 if count else kept["a"]
        np.testing.assert_allclose(found["a"], expected)


def test_nothing_is_copied_where_it_is_donated():
    """The program needs no second buffer for the matrix, and reuses the first."""
    matrix = jnp.ones((300, 300), jnp.float32)
    program = jax.jit(
        lambda due, m: cond_in_place(due, lambda m: m * 2, m), donate_argnums=1
    )
    memory = program.lower(True, matrix).compile().memory_analysis()
    assert memory.alias_size_in_bytes >= matrix.nbytes
    assert memory.temp_size_in_bytes < matrix.nbytes
    program(False, matrix)
    assert matrix.is_deleted()


def twice(due, scale, kept):
    """s a² where due, in the turn before the last 3 s a²."""
    renew = lambda last, k: jnp.where(last, 1, 3) * scale * k**2
    return twice_in_place(*map(jnp.array, due), renew, kept)


@pytest.mark.parametrize("due", [(True, True), (True, False), (False, False)])
def test_turns_follow_each_other_and_have_the_derivatives_of_what_is_composed(due):
    """s a², and s (3 s a²)² = 9 s³ a⁴, by hand."""
    total = lambda scale, a: jnp.sum(twice(due, scale, a))
    value, by_scale, by_a = {
        2: lambda s: (9 * s**3 * X**4, 27 * s**2 * X**4, 36 * s**3 * X**3),
        1: lambda s: (s * X**2, X**2, 2 * s * X),
        0: lambda s: (X, 0 * X, jnp.ones(4)),
    }[sum(due)](2.0)
    found, slopes = jax.jit(jax.value_and_grad(total, argnums=(0, 1)))(2.0, X)
    assert abs(found - jnp.sum(value)) < 1e-12
    assert abs(slopes[0] - jnp.sum(by_scale)) < 1e-11
    np.testing.assert_allclose(slopes[1], by_a, rtol=1e-12)


@pytest.mark.parametrize("turns", [1, 2])
def test_what_is_not_due_is_not_computed(turns):
    """Nor before the loop, though it depends on nothing that the loop changes."""

    def run(due, wide, kept):
        renew = lambda *k: k[-1] + jnp.sum(jnp.sin(wide))
        in_place = {1: cond_in_place, 2: twice_in_place}[turns]
        return in_place(*[due] * turns, renew, kept)

    text = jax.jit(run).lower(True, jnp.ones(600), 1.0).compile().as_text()
    inside, entry = text.split("\nENTRY")
    assert "while/body/sin" in inside
    assert "while/body" not in entry


def test_a_tree_is_cleared_where_it_is_not_usable():
    tree = {"a": X * jnp.nan, "b": jnp.ones(2, jnp.float32)}
    for usable in (True, False):
        found = jax.jit(zeros_unless)(jnp.array(usable), tree)
        for name, leaf in tree.items():
            assert found[name].dtype == leaf.dtype
            expected = leaf if usable else np.zeros(leaf.shape)
            np.testing.assert_array_equal(found[name], expected)


def test_a_walk_on_cpus_is_one_batched_call_elsewhere():
    """b a aᵀ of each member: eagerly, compiled, under vmap, grad and shard_map."""
    rng = np.random.default_rng(0)
    a, b = rng.normal(size=(2, 5, 3, 3)), rng.normal(size=(2, 5))
    expected = b[..., None, None] * (a @ np.swapaxes(a, -1, -2))
    each = lambda a, b: {"product": b * jnp.matmul(a, a.T)}
    products = lambda a, b: one_by_one_on_cpu(each, a, b)["product"]
    np.testing.assert_allclose(products(a[0], b[0]), expected[0])
    np.testing.assert_allclose(jax.jit(products)(a[0], b[0]), expected[0])
    np.testing.assert_allclose(jax.jit(jax.vmap(products))(a, b), expected)
    slope = jax.jit(jax.grad(lambda b: products(a[0], b).sum()))(b[0])
    np.testing.assert_allclose(slope, (a[0] @ np.swapaxes(a[0], 1, 2)).sum((1, 2)))
    mesh = jax.make_mesh((1,), ("data",), axis_types=(jax.sharding.AxisType.Auto,))
    specs = jax.sharding.PartitionSpec("data")
    spread = jax.shard_map(products, mesh=mesh, in_specs=specs, out_specs=specs)
    np.testing.assert_allclose(jax.jit(spread)(a[0], b[0]), expected[0])
    traced = jax.jit(products).trace(a[0], b[0])
    for platform, loops in {"cpu": 1, "cuda": 0, "rocm": 0, "tpu": 0}.items():
        text = traced.lower(lowering_platforms=(platform,)).as_text()
        assert text.count("stablehlo.while") == loops


def test_a_symmetric_solve_is_traced_once_and_has_implicit_derivatives():
    """Those of (A + s I)⁻¹ b by numpy, in b and in s, forwards and backwards."""
    matrix = jnp.diag(X) + 0.1
    traced = []

    def solved(scale, b):
        operator = lambda x: matrix @ x + scale * x

        def solve(b):
            traced.append(b)
            fixed = jax.lax.stop_gradient(scale)
            return jnp.linalg.solve(matrix + fixed * jnp.eye(4), b)

        return symmetric_solve(operator, b, solve)

    inverse = np.linalg.inv(np.asarray(matrix) + 0.3 * np.eye(4))
    np.testing.assert_allclose(jax.jit(solved)(0.3, X), inverse @ X, rtol=1e-12)
    assert len(traced) == 1
    for mode in (jax.jacrev, jax.jacfwd):
        by_scale, by_b = jax.jit(mode(solved, argnums=(0, 1)))(0.3, X)
        np.testing.assert_allclose(by_scale, -inverse @ inverse @ X, rtol=1e-12)
        np.testing.assert_allclose(by_b, inverse, rtol=1e-12, atol=1e-14)
