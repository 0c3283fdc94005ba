"""Shared settings of the tests: precision, strict JAX, one table of tolerances."""

from __future__ import annotations

import gc
import os

# LAPACK's threads spin at their barriers where cores are shared.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
# The tests compile many small functions once: compile fast rather than well. (The old
# fusion emitters of JAX 0.10 are faster yet, but make endless loops of some.)
os.environ.setdefault(
    "XLA_FLAGS",
    "--xla_cpu_multi_thread_eigen=false --xla_backend_optimization_level=0"
    " --xla_llvm_disable_expensive_passes=true",
)

import jax
import pytest

jax.config.update("jax_enable_x64", True)
jax.config.update("jax_numpy_rank_promotion", "raise")

# Tracing makes many objects and few cycles; the modules are there to the end.
gc.set_threshold(20_000, 20, 20)


@pytest.fixture(autouse=True, scope="session")
def every_capture_is_verified():
    """Compare the gradient that the uses give with JAX's, wherever layers are read."""
    from natgrad import layers

    with layers.verify():
        yield


def pytest_collection_finish():
    """Keep what is imported out of every collection of garbage."""
    gc.collect()
    gc.freeze()


# On the newest JAX these files are left out: mathematics and tools whose code is of the
# same kinds as that of the files beside them.
SLOW_FILES = {
    "test_benchmarks",
    "test_benchmarks_suite",
    "test_compare",
    "test_compare_along",
    "test_compare_command",
    "test_compare_facts",
    "test_compare_products",
    "test_examples",
    "test_examples_parts",
    "test_families_boundaries",
    "test_families_built",
    "test_families_custom",
    "test_families_far",
    "test_families_product",
    "test_families_special",
    "test_geometry_check",
    "test_geometry_connections",
    "test_geometry_distances",
    "test_geometry_domain",
    "test_geometry_duality",
    "test_geometry_geodesics",
    "test_geometry_steps",
    "test_geometry_trust",
    "test_inference_conjugate",
    "test_inference_expectations",
    "test_inference_far_starts",
    "test_inference_ivon",
    "test_inference_logistic",
    "test_invariance",
    "test_kfac_adaptive",
    "test_kfac_training",
    "test_kunstner",
    "test_kunstner_adam",
    "test_levenberg_marquardt_laws",
    "test_masked_rows",
    "test_memory",
    "test_mirror",
    "test_nist",
    "test_own_laws_roots",
    "test_report",
    "test_scaling",
    "test_soft_labels",
    "test_spring",
    "test_trust_region",
}
# Of the families these stand for all there; the oldest runs every one.
QUICK_FAMILIES = {"categorical", "normal_mean_log_scale"}
QUICK_MANIFOLDS = {"categorical", "normal", "multivariate_normal"}


@pytest.hookimpl(tryfirst=True)
def pytest_collection_modifyitems(items):
    """Mark those files and the other families slow, before `-m "not slow"` selects."""
    quick = {"test_families": QUICK_FAMILIES, "test_geometry": QUICK_MANIFOLDS}
    for item in items:
        name = item.callspec.params.get("name") if hasattr(item, "callspec") else None
        few = quick.get("_".join(item.path.stem.split("_")[:2]))
        other = few is not None and name is not None and name not in few
        if other or item.path.stem in SLOW_FILES:
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
