"""Many devices take the steps of one: sharded jit, shard_map, two processes.

What needs devices runs in `devices.py`, once for all tests that read its report; sums
over a named axis are tested in `test_named_axes`.
"""

from __future__ import annotations

import itertools
import json
import os
import socket
import subprocess
import sys
from pathlib import Path

import jax
import numpy as np
import pytest
from device_steps import problem
from jax.sharding import AxisType

import natgrad as ng
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
    out, errors = process.communicate(timeout=900)
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
    assert found["state"] < 0.28
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
        ng.spread.Devices(mesh).shardings(ng.soap(0.1), problem("float64")[0])
    with pytest.raises(ValueError, match="CachedSolver"):
        DistributedInverse(ng.solvers.cholesky, mesh)
    with pytest.raises(ValueError, match="'batch'"):
        DistributedInverse(FactoredTikhonov(), mesh, "batch")
