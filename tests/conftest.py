"""Shared settings of the tests: precision, strict JAX, one table of tolerances."""

from __future__ import annotations

import gc
import logging
import os

import durations
import quick_compilation

# LAPACK's threads spin at their barriers where cores are shared.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
os.environ.setdefault("XLA_FLAGS", quick_compilation.FLAGS)

import jax
import pytest

jax.config.update("jax_enable_x64", True)
jax.config.update("jax_numpy_rank_promotion", "raise")
# No line of Python for each operation of a program, which nothing here reads.
jax.config.update("jax_traceback_in_locations_limit", 0)

# Tracing makes many objects and few cycles; the modules are there to the end.
gc.set_threshold(20_000, 20, 20)


@pytest.fixture(autouse=True)
def captures_are_verified(request):
    """Compare the gradient that the uses give with JAX's, where layers are the subject.

    Their zoo has all kinds of uses; what other tests capture is made of the same.
    """
    from natgrad import layers

    subject = request.path.name.startswith(("test_layers", "test_integrations"))
    with layers.verify(subject):
        yield


@pytest.fixture
def compilations(caplog):
    """compilations(function): how many programs XLA compiles in a call."""

    def count(function):
        caplog.clear()
        with caplog.at_level(logging.WARNING), jax.log_compiles():
            jax.block_until_ready(function())
        return sum("XLA compilation" in record.message for record in caplog.records)

    return count


def pytest_collection_finish():
    """Keep what is imported out of every collection of garbage."""
    gc.collect()
    gc.freeze()


def pytest_addoption(parser):
    parser.addoption(
        "--measure",
        action="store_true",
        help="write the CPU seconds of every test to tests/durations.json",
    )
    parser.addoption(
        "--quickest",
        action="store_true",
        help="mark slow all but the quickest case of each law and file",
    )


def pytest_configure(config):
    if config.getoption("--measure"):
        config.pluginmanager.register(durations.Recorder(config))


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(config, items):
    """Mark slow what was measured to be, before `-m "not slow"` selects."""
    quick = [item for item in items if not item.get_closest_marker("slow")]
    fixtures = {item.nodeid: item.fixturenames for item in quick}
    if config.getoption("--quickest"):
        slow = durations.all_but_quickest(fixtures)
    else:
        slow = durations.slow_cases(list(fixtures), longest=durations.SLOW_SECONDS)
    for item in items:
        if item.nodeid in slow:
            item.add_marker(pytest.mark.slow)


def pytest_runtest_teardown(item, nextitem):
    """Drop compiled programs with each file.

    Each takes memory maps, of which a process may have some 65,000; a worker that keeps
    the programs of all files runs out of them and crashes while compiling.
    """
    if nextitem is None or nextitem.path != item.path:
        jax.clear_caches()


# Relative tolerances, by purpose and precision.
TOLERANCES = {
    "identity": {"float32": 1e-4, "float64": 1e-10},
    "oracle": {"float32": 1e-4, "float64": 1e-9},
    "solve": {"float32": 1e-3, "float64": 1e-8},
    "iterative": {"float32": 1e-3, "float64": 1e-6},
    "differences": {"float64": 1e-6},
}


@pytest.fixture
def tolerance():
    """tolerance(purpose, dtype="float64") -> relative tolerance."""

    def lookup(purpose, dtype="float64"):
        return TOLERANCES[purpose][str(dtype)]

    return lookup


@pytest.fixture
def single_precision():
    """float32, as JAX has it by default."""
    with jax.enable_x64(False):
        yield
