"""The cost model of a K-FAC step against what XLA counts, and the state's own size."""

from __future__ import annotations

import json
import os
import subprocess
import sys

import jax
import jax.numpy as jnp
import pytest
import quick_compilation
from modules import PACKAGE

import natgrad as ng
from benchmarks import cost_model
from benchmarks.problems import classified, dense_apply, dense_layers
from natgrad.solvers.block_elimination import spd_inverse

PROGRAM = "import json; from benchmarks import cost_model\n"
PROGRAM += "print(json.dumps(cost_model.check([64, 96, 48, 10], 512)))"


def holds(found):
    for name, (ours, theirs) in found.items():
        assert ours == pytest.approx(theirs, rel=0.03), name
    return len(found)


def test_stages_cost_what_xla_counts(single_precision):
    """Operations of gradient, statistics and application."""
    with jax.numpy_rank_promotion("allow"):
        assert holds(cost_model.check([64, 96, 48, 10], 512)) == 3


@pytest.mark.slow
def test_stages_cost_what_xla_counts_on_eight_devices():
    """The operations of one device, and the bytes of all-reduces and all-gathers."""
    environment = {
        "JAX_PLATFORMS": "cpu",
        "XLA_FLAGS": quick_compilation.FLAGS
        + " --xla_force_host_platform_device_count=8",
        "PYTHONPATH": os.pathsep.join(
            [str(PACKAGE.parent), os.environ.get("PYTHONPATH", "")]
        ),
    }
    done = subprocess.run(
        [sys.executable, "-c", PROGRAM],
        capture_output=True,
        text=True,
        check=True,
        env={**os.environ, **environment},
    )
    assert holds(json.loads(done.stdout)) == 6


@pytest.mark.parametrize("size", [320, 700, 1500])
def test_products_of_an_elimination(size):
    shape = jax.ShapeDtypeStruct((size, size), jnp.float32)
    counted = jax.jit(spd_inverse).lower(shape).cost_analysis()["flops"]
    ours = cost_model.elimination(size, lapack=0)
    assert ours == pytest.approx(counted, rel=0.02)


def test_what_is_kept_is_parameters_and_the_state_of_kfac(single_precision):
    sizes = [40, 30, 5]
    with jax.numpy_rank_promotion("allow"):
        model, params, _, _ = classified(
            dense_apply, dense_layers(sizes), jnp.ones((2, 40))
        )
        state = jax.eval_shape(ng.kfac(model=model).init, params)
    layers = [cost_model.Layer(40, 30), cost_model.Layer(30, 5)]
    held = sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(state))
    held += 4 * sum(leaf.size for leaf in jax.tree.leaves(params))
    assert cost_model.kept(layers) == pytest.approx(held, rel=0.01)


def test_policies_divide_the_work_and_devices_talk():
    """One layer by hand: I = 2, O = 3, 8 rows; the second device halves them."""
    layers = [cost_model.Layer(2, 3)]
    one = cost_model.step(layers, 8, cost_model.Policy(1, 1, 1))
    assert one["gradient"] == (2 * 2 * 8 * 2 * 3, 0, 0)
    moments = 2 * 8 * (9 + 9)
    assert one["statistics"] == (2 * 8 * 6 + moments, 0, moments)
    assert one["apply"].operations == 2 * 9 * 3 + 2 * 3 * 9
    policy = cost_model.Policy(2, 5, 10, sub_batch=4, inverters=2)
    many = cost_model.step(layers, 8, policy)
    assert many["gradient"][:2] == (one["gradient"].operations / 2, 4 * 9)
    assert many["statistics"][:2] == (one["statistics"].operations / 40, 4 * 18 / 5)
    # A layer is never split, and the idle device's share is padded to the other's.
    assert many["inverse"][:2] == (one["inverse"].operations / 10, 4 * 2 * 18 / 10)
    two = cost_model.step(2 * layers, 8, policy)
    assert two["inverse"] == many["inverse"]
