"""Shared settings of the tests: precision, strict JAX, one table of tolerances."""

from __future__ import annotations

import os

# LAPACK's threads spin at their barriers where cores are shared.
os.environ.setdefault("OPENBLAS_NUM_THREADS", "1")
# The tests compile many small functions once: compile fast rather than well. The new
# fusion emitters take two to four times as long as the old ones, which JAX 0.10 still
# has; where it has none, XLA ignores the extra option.
os.environ.setdefault(
    "XLA_FLAGS",
    "--xla_cpu_multi_thread_eigen=false --xla_backend_optimization_level=0"
    " --xla_llvm_disable_expensive_passes=true"
    " --xla_backend_extra_options=xla_cpu_disable_new_fusion_emitters",
)

import jax
import pytest

jax.config.update("jax_enable_x64", True)
jax.config.update("jax_numpy_rank_promotion", "raise")

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
