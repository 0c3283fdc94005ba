"""Many devices take the steps of one: sharded jit, shard_map, two processes.

What needs devices runs in `devices.py`, once for all tests that read its report; sums
over a named axis are tested here with vmap, which has axes and no devices.
"""

from __future__ import annotations

import dataclasses
import functools
import itertools
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from device_steps import apply, problem
from jax.sharding import AxisType, PartitionSpec

import natgrad as ng
from natgrad.curvature import KFAC, KFOC, Dense, Sampled, SubBatch
from natgrad.layers.interactions import exchanges
from natgrad.metrics.kronecker import FactoredTikhonov
from natgrad.transforms.distributed_inverse import DistributedInverse, assign_greedily

PROGRAM = Path(__file__).parent / "devices.py"
LIMIT = {"float32": 1e-5, "float64": 1e-10}
ONE = {"all-reduce": 1}
GATHERED = {"all-reduce": 1, "all-gather": 1}


def launch(devices, *arguments):
    """The program on as many devices of this CPU."""
    flags = (
        f"{os.environ['XLA_FLAGS']} --xla_force_host_platform_device_count={devices}"
    )
    paths = ":".join(path for path in sys.path if path)
    return subprocess.Popen(
        [sys.executable, PROGRAM, *map(str, arguments)],
        env=os.environ | {"XLA_FLAGS": flags, "PYTHONPATH": paths},
        stdout=subprocess.PIPE,
        stderr=subprocess.PIPE,
        text=True,
    )


def reported(process):
    out, errors = process.communicate(timeout=300)
    assert process.returncode == 0, errors[-3000:]
    return json.loads(out.splitlines()[-1])


def is_one_device_s(found, name, calls):
    """The same steps, communicating so often; nothing compiled again, nothing moved."""
    assert found["difference"] < LIMIT[name.rpartition(":")[2]]
    assert found["compiled"][0] > 0
    assert found["compiled"][1] == 0
    assert found["moved"] == 0
    if calls is not None:
        assert found["calls"] == calls


# name -> how often the step communicates; None where that is XLA's affair
QUICK = {
    "jit:kfac:float64": ONE,
    "shard_map_spread:kfac:float32": GATHERED,
    # Loops over examples gather none: an all-reduce for each chunk, one besides.
    "jit:sampled:float64": {"all-reduce": 2},
}
SLOW = {
    "jit_spread:kfac:float64": GATHERED,
    "jit:ekfac:float64": {"all-reduce": 2},  # one of them in the first step only
    "jit:convolution:float64": {"all-reduce": 2},
    "jit:gram:float64": None,
    "jit:chunked_gram:float64": None,
    "jit:chunked_matrix_free:float64": {"all-reduce": 3},
    "shard_map:gram:float64": None,
    "shard_map:chunked_gram:float64": None,
    "shard_map:chunked_gram_blocks:float64": None,
    "jit:matrix_free:float64": None,
    "shard_map:ekfac:float64": {"all-reduce": 2},
    "shard_map:layer_diagonal:float64": ONE,
    "shard_map:sampled:float64": ONE,
    "shard_map:convolution:float64": ONE,
    "unchecked_spread:empirical_kfac:float64": GATHERED,
}


CHECKS = ("draws", "shares", "over", "gradient_only", "wave_function")


@pytest.fixture(scope="module")
def report():
    return reported(launch(8, *CHECKS, *QUICK))


@pytest.fixture(scope="module")
def long_report():
    return reported(launch(8, "hybrid", *SLOW))


@pytest.mark.parametrize("name", QUICK)
def test_eight_devices_take_the_steps_of_one(report, name):
    assert report["devices"] == 8
    is_one_device_s(report[name], name, QUICK[name])


@pytest.mark.slow
@pytest.mark.parametrize("name", SLOW)
def test_eight_devices_take_every_step_of_one(long_report, name):
    is_one_device_s(long_report[name], name, SLOW[name])


@pytest.mark.slow
def test_no_device_holds_the_matrix_of_all_samples(long_report):
    """Gram's M×M matrix, M = N, is on every device under jit, on none in shard_map."""
    assert long_report["jit:gram:float64"]["square"]
    for name in ("gram", "chunked_gram", "chunked_gram_blocks"):
        assert not long_report[f"shard_map:{name}:float64"]["square"], name


def test_labels_do_not_depend_on_the_number_of_devices(report):
    assert report["draws"]


def test_every_piece_is_factorised_on_one_device_only(report):
    assert report["shares"]["made"] == [[0, 1], [1, 1]]
    assert report["shares"]["derivative"] < LIMIT["float64"]


@pytest.mark.parametrize("name", ["soap", "kl_shampoo"])
def test_bases_of_gradients_are_shared_out(report, name):
    assert report["gradient_only"][name]["difference"] < LIMIT["float64"]
    assert report["gradient_only"][name]["calls"] == GATHERED


@pytest.mark.parametrize("kind", ["Gram", "Dense"])
def test_wave_functions_over_devices(report, kind):
    """Two centred columns an example, whose labels are no numbers of the batch."""
    assert report["wave_function"][kind] < LIMIT["float64"]


def test_statistics_of_sharded_batches_are_those_of_one_device(report):
    assert report["over"]["difference"] < 1e-12
    # Moments and mean, the statistics of the first pass, and both again in the second.
    assert report["over"]["compiled"] == [1, 1, 1, 1, 1]


@pytest.mark.slow
def test_factors_and_inverses_are_cut_up_as_the_weights_are(long_report):
    """A transformer's heads and hidden units, on 4 devices, and its batch, on 2."""
    found = long_report["hybrid"]
    assert found["difference"] < LIMIT["float64"]
    assert found["factors"] == [4] * 4  # A of one layer, G of another, their inverses
    assert found["moved"] == 0
    assert found["beside"]
    assert found["state"] < 0.27
    assert found["arguments"] < 0.29


@pytest.mark.slow
def test_two_processes_take_the_steps_of_one():
    with socket.socket() as free:
        free.bind(("localhost", 0))
        port = free.getsockname()[1]
    names = {"jit:kfac:float64": ONE, "shard_map_spread:kfac:float64": GATHERED}
    processes = [launch(2, i, port, *names) for i in range(2)]
    for found in [reported(process) for process in processes]:
        assert found["devices"] == 4
        for name, calls in names.items():
            is_one_device_s(found[name], name, calls)


# Sums over a named axis ------------------------------------------------------------

PARTS = 4
PARAMS, X, Y = problem("float64")
# The last part is masked altogether, and parts do not weigh the same.
MASK = np.random.default_rng(1).uniform(size=len(X)) * (np.arange(len(X)) < 24)
MODEL = ng.Model(
    lambda params, inputs: apply(params, inputs["x"]),
    ng.families.Categorical(),
    example_inputs={"x": X[:1], "mask": MASK[:1]},
    weights=lambda inputs: inputs["mask"],
)
INPUTS = {"x": jnp.asarray(X), "mask": jnp.asarray(MASK)}
CURVATURES = {
    "kfac": lambda **axis: KFAC(MODEL, Sampled(1), **axis),
    "kfoc": lambda **axis: KFOC(MODEL, **axis),
    "dense": lambda **axis: Dense(MODEL, Sampled(2), **axis),
    "sub-batch": lambda **axis: SubBatch(Dense(MODEL, **axis), 1),
}


@pytest.mark.parametrize("name", CURVATURES)
def test_weighted_examples_are_averaged_over_all_parts(name, tolerance):
    def measured(curvature, inputs, targets):
        return curvature.value_and_grad(PARAMS, inputs, targets, jax.random.PRNGKey(5))

    parts = jax.tree.map(
        lambda leaf: leaf.reshape(PARTS, -1, *leaf.shape[1:]), (INPUTS, jnp.asarray(Y))
    )
    split = functools.partial(measured, CURVATURES[name](axis_name="parts"))
    found = jax.jit(jax.vmap(split, axis_name="parts"))(*parts)
    whole = jax.jit(functools.partial(measured, CURVATURES[name]()))(INPUTS, Y)
    for a, b in zip(jax.tree.leaves(found), jax.tree.leaves(whole), strict=True):
        for part in a:
            np.testing.assert_allclose(part, b, rtol=tolerance("identity"), atol=1e-12)


def on_a_mesh(curvature, inputs):
    mesh = jax.make_mesh((1,), ("data",), axis_types=(AxisType.Auto,))
    split = jax.tree.map(lambda leaf: PartitionSpec("data"), inputs)
    jax.eval_shape(
        jax.shard_map(
            lambda x: curvature.estimate(PARAMS, x),
            mesh=mesh,
            in_specs=(split,),
            out_specs=PartitionSpec(),
        ),
        inputs,
    )


def synchronised(p, x):
    """Normalised by the mean of all devices, in a loop and a call."""
    mean = jax.jit(lambda h: jax.lax.pmean(h.mean(0, keepdims=True), "d"))
    return jax.lax.scan(lambda h, _: (h - mean(h), None), x @ p, length=2)[0]


def gathered(p, x):
    """Parameters are on all devices, and examples stay on theirs."""
    return jax.nn.relu(x @ jax.lax.pmean(p, "d"))


@pytest.mark.parametrize("make", [KFAC, Dense])
def test_statistics_of_all_devices_are_refused_inside_the_model(make):
    run = make(ng.Model(synchronised, ng.families.NormalMean()), axis_name="d").at
    with pytest.raises(ValueError, match="on each device alone"):
        jax.eval_shape(
            jax.vmap(lambda x: run(jnp.ones((3, 2)), x).dense(), axis_name="d"),
            jnp.ones((2, 4, 3)),
        )


def test_what_is_sent_between_devices_is_found():
    seen, models = [], (synchronised, gathered)

    def look(x):
        seen.extend(exchanges(f, jnp.ones((3, 2)), x, 0, "d") for f in models)
        return x

    jax.eval_shape(jax.vmap(look, axis_name="d"), jnp.ones((2, 4, 3)))
    assert seen == [True, False]


@pytest.mark.parametrize("make", [KFAC, Dense])
def test_a_batch_that_is_secretly_a_part_is_an_error(make):
    with pytest.raises(ValueError, match="axis_name='data'"):
        on_a_mesh(make(MODEL), INPUTS)
    on_a_mesh(make(MODEL, axis_name="data"), INPUTS)


def test_a_mesh_with_explicit_axes_is_an_error_that_says_what_to_do():
    mesh = jax.make_mesh((1,), ("data",), axis_types=(AxisType.Explicit,))
    batch = jax.device_put((INPUTS, Y), jax.NamedSharding(mesh, PartitionSpec("data")))
    with pytest.raises(ValueError, match=r"AxisType\.Auto"):
        jax.eval_shape(MODEL.loss, PARAMS, *batch)
    rows = jax.NamedSharding(mesh, PartitionSpec("data"))
    params = jax.tree.map(lambda leaf: jax.device_put(leaf, rows), PARAMS)
    with pytest.raises(ValueError, match=r"parameter \['b1'\].*AxisType\.Auto"):
        Dense(MODEL).init(params)


def test_what_only_asks_for_its_place_among_the_devices_is_taken_as_it_is():
    """A key of one's own for each device, as dropout has."""

    def shifted(params, x):
        return apply(params, x + jax.lax.axis_index("parts"))

    f = lambda apply: Dense(ng.Model(apply, ng.families.Categorical()))
    part = dataclasses.replace(f(shifted), axis_name="parts")
    halves = jnp.asarray(X).reshape(2, -1, X.shape[-1])
    moved = np.repeat(np.arange(2), len(X) // 2)[:, None]

    @jax.jit
    def both(params):
        split = jax.vmap(lambda x: part.estimate(params, x), axis_name="parts")
        return split(halves), f(apply).estimate(params, X + moved)

    found, expected = both(PARAMS)
    np.testing.assert_allclose(found[0], expected, rtol=1e-10, atol=1e-13)


def test_examples_that_are_not_there_cannot_be_spread():
    model = ng.Model(lambda params, _: params["z"][None], ng.families.Categorical())
    curvature = Dense(model, axis_name="data")
    with pytest.raises(ValueError, match="no axis of examples"):
        curvature.estimate({"z": jnp.zeros(3)}, None)


# Sharing out ------------------------------------------------------------------------


@pytest.mark.parametrize("devices", [2, 3])
def test_shares_are_near_the_best(devices):
    """Graham's bound: at most 4/3 − 1/(3 D) of the shortest time there is."""
    costs = np.random.default_rng(devices).uniform(size=7) ** 3
    shares = assign_greedily(costs, devices)
    assert sorted(itertools.chain(*shares)) == list(range(7))
    best = min(
        np.bincount(choice, weights=costs, minlength=devices).max()
        for choice in itertools.product(range(devices), repeat=7)
    )
    longest = max(sum(costs[job] for job in share) for share in shares)
    assert longest <= (4 / 3 - 1 / (3 * devices)) * best


def test_spread_says_what_it_needs():
    mesh = jax.make_mesh((1,), ("data",), axis_types=(AxisType.Auto,))
    with pytest.raises(ValueError, match=r"parameter \['b1'\].*device_put"):
        ng.spread.Devices(mesh).shardings(ng.soap(0.1), PARAMS)
    with pytest.raises(ValueError, match="CachedSolver"):
        DistributedInverse(ng.solvers.cholesky, mesh)
    with pytest.raises(ValueError, match="'batch'"):
        DistributedInverse(FactoredTikhonov(), mesh, "batch")
