"""XLA's options in the tests: most functions run once, so compilation is their cost.

The tests compile many small functions: fast rather than well. (The older emitters of
fusions, which JAX 0.10 still has, take half the time of the new ones, but give wrong
numbers for some sums and make endless loops of some searches.) What users run, that is
examples, pages of the documentation and `test_as_shipped_*`, is compiled as XLA comes.
"""

from __future__ import annotations

FLAGS = (
    "--xla_cpu_multi_thread_eigen=false --xla_backend_optimization_level=0"
    " --xla_llvm_disable_expensive_passes=true"
)

# The same options as XLA has them by default, for `jax.jit(..., compiler_options=)`.
DEFAULTS = {
    "xla_cpu_multi_thread_eigen": True,
    "xla_backend_optimization_level": 3,
    "xla_llvm_disable_expensive_passes": False,
}
