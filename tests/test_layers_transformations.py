"""Capture under transformations of JAX; what one pass costs."""

from __future__ import annotations

import re
import subprocess
import sys
import textwrap

import jax
import jax.numpy as jnp
import numpy as np
import pytest
import quick_compilation
import zoo
from jax.test_util import check_grads
from layer_problems import (
    X,
    Z,
    by_hand,
    close,
    deep,
    factors,
    hom,
    outer,
    plain_capture,
    statistics,
)

from natgrad import layers


def test_a_program_is_analysed_once():
    again = layers.capture(lambda p, x: zoo.mlp(p, x), zoo.mlp_params(), 2.0 * X)
    assert again.blocks is layers.capture(zoo.mlp, zoo.mlp_params(), X).blocks


def test_capture_works_on_traced_values_under_jit_scan_and_vmap():
    p = zoo.mlp_params()
    captured = lambda p, x, z: layers.capture(zoo.mlp, p, x).pull(
        {"f": layers.Expand()}, p, x
    )[1](z)[1]
    expected = factors(p, X, Z)
    both = jax.jit(jax.vmap(captured, (None, 0, 0)))(
        p, jnp.stack([X, 2 * X]), np.stack([Z, Z])
    )
    _, steps = jax.lax.scan(lambda c, s: (c, captured(p, X, Z)), 0, None, length=2)
    for name in ("w1", "w2"):
        close(both[name]["f"]["G"][0], expected[name]["f"]["G"])
        close(steps[name]["f"]["A"][1], expected[name]["f"]["A"])


def test_statistics_can_be_differentiated_again():
    p = zoo.mlp_params()

    def total(p, x):
        found = factors(p, x, Z)
        return sum(jnp.sum(jnp.sin(a)) for a in jax.tree.leaves(found))

    check_grads(total, (p, X), order=1, modes=["rev"], rtol=1e-6)
    check_grads(total, (p, X), order=1, modes=["fwd"], rtol=1e-6)


def test_a_second_pull_of_the_same_pass_serves_sampled_labels():
    p = zoo.mlp_params()
    _, pullback = plain_capture().pull({"f": layers.Expand()}, p, X)
    (grad, one), (_, two) = pullback(Z), pullback(2 * Z)
    expected = jax.grad(lambda p: jnp.sum(zoo.mlp(p, X) * Z))(p)
    for name in p:
        close(grad[name], expected[name])
    close(two["w1"]["f"]["G"], 4 * one["w1"]["f"]["G"])


def dots(function, *arguments):
    text = jax.jit(function).lower(*arguments).compile().as_text()
    return len(re.findall(r" dot\(|custom_call_target=\"[^\"]*matmul", text))


@pytest.mark.parametrize("depth", [1, 4])
def test_gradient_and_factors_cost_five_dots_a_layer_and_sampled_labels_one_more(depth):
    p = [zoo.normal(i, 32, 32).astype(jnp.float32) for i in range(depth)]
    x = zoo.normal(9, 48, 32).astype(jnp.float32)
    captured = layers.capture(deep, p, x)

    def empirical(p, x):
        z, pullback = captured.pull({"f": layers.Expand()}, p, x)
        return pullback(z)

    def sampled(p, x):
        z, pullback = captured.pull({"f": layers.Expand()}, p, x)
        gradient, found = pullback(z)
        _, other = pullback(jnp.cos(z))
        inputs = {name: f["f"]["A"] for name, f in found.items()}
        return gradient, inputs, {name: f["f"]["G"] for name, f in other.items()}

    assert dots(empirical, p, x) == 5 * depth - 1
    assert dots(sampled, p, x) == 6 * depth - 2


def test_one_example_is_enough():
    p = zoo.mlp_params()
    _, found = statistics(zoo.mlp, p, X[:1], Z[:1])
    (x, g), _ = by_hand(p, X[:1], Z[:1])
    close(found["w1"]["reduce"]["A"], outer(hom(x)))
    close(found["w1"]["reduce"]["G"], outer(g))


def test_inputs_that_are_no_arrays_of_examples_are_marked_by_in_axes():
    def apply(p, i):
        z = zoo.mlp(p, i["x"]) * i["scale"]
        return z + 0 * jax.random.uniform(i["key"], z.shape)

    inputs = {"x": X, "scale": jnp.asarray(2.0), "key": jax.random.key(0)}
    axes = {"x": 0, "scale": None, "key": None}
    _, found = statistics(apply, zoo.mlp_params(), inputs, Z, in_axes=axes)
    close(found["w2"]["expand"]["G"], 4 * outer(Z))


def test_the_report_says_what_each_parameter_is_used_for():
    class Model:
        apply = staticmethod(zoo.mlp)
        example_inputs = X

    text = layers.report(Model, zoo.mlp_params())
    assert text == textwrap.dedent(
        """\
        parameters  block  uses  factors  sharing  memory
        -------------------------------------------------
        w1 + b1     dense  1     (4, 5)   none     328 B
        w2 + b2     dense  1     (6, 2)   none     320 B
        gradient from uses: checked"""
    )


SHARDED = """
import jax, jax.numpy as jnp, numpy as np
from jax.sharding import PartitionSpec as P
jax.config.update("jax_enable_x64", True)
from natgrad import layers
import zoo
mesh = jax.make_mesh((4,), ("d",), axis_types=(jax.sharding.AxisType.Auto,))
p, x = zoo.mlp_params(), zoo.normal(9, 8, 3)
z = zoo.normal(8, 8, 2)

def local(p, x, z):
    with layers.verify():
        captured = layers.capture(zoo.mlp, p, x)
    return captured.pull({"f": layers.Expand()}, p, x)[1](z)

expected = jax.jit(local)(p, x, z)
specs = (P(), P("d"), P("d"))
for vma in (True, False):
    def body(p, x, z):
        out = local(p, x, z)
        return out if vma else jax.lax.psum(out, "d")
    found = jax.jit(jax.shard_map(
        body, mesh=mesh, in_specs=specs, out_specs=P(), check_vma=vma))(p, x, z)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
        np.testing.assert_allclose(a, b, rtol=1e-10)
shard = jax.NamedSharding(mesh, P("d"))
found = jax.jit(local)(p, jax.device_put(x, shard), jax.device_put(z, shard))
for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-10)

inside = jax.shard_map(zoo.mlp, mesh=mesh, in_specs=(P(), P("d")), out_specs=P("d"))
with layers.verify():
    captured = layers.capture(inside, p, x)
found = jax.jit(
    lambda p, x, z: captured.pull({"f": layers.Expand()}, p, x)[1](z))(p, x, z)
for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(expected), strict=True):
    np.testing.assert_allclose(a, b, rtol=1e-10)
print("same", captured.proven)
"""


@pytest.mark.slow
def test_sharded_factors_equal_those_of_one_device():
    """Capture inside shard_map, under a sharded jit, and around a shard_map."""
    flags = f"{quick_compilation.FLAGS} --xla_force_host_platform_device_count=4"
    environment = {"XLA_FLAGS": flags}
    paths = {"PYTHONPATH": ":".join(path for path in sys.path if path)}
    done = subprocess.run(
        [sys.executable, "-c", SHARDED],
        env=environment | paths | {"PATH": "", "HOME": "/"},
        capture_output=True,
        text=True,
        check=False,
    )
    assert "same checked" in done.stdout, done.stderr[-3000:]
