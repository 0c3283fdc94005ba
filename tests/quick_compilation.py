"""XLA's options in the tests: most functions run once, so compilation is their cost.

The tests compile many small functions: fast rather than well. The older emitters of
fusions, which JAX 0.10 still has, take half the time of the new ones. (They make an
endless loop of one search with a line search inside, in `test_families_built`, which is
compiled with `DEFAULTS`: a test that hangs may be another.) What users run
(examples, pages of the documentation, `test_as_shipped_*`) is compiled as XLA comes.
"""

from __future__ import annotations

from importlib.metadata import version

OLD_EMITTERS = version("jaxlib").startswith("0.10.")

FLAGS = (
    "--xla_cpu_multi_thread_eigen=false --xla_backend_optimization_level=0"
    " --xla_llvm_disable_expensive_passes=true"
) + (" --xla_cpu_use_fusion_emitters=false" if OLD_EMITTERS else "")

# The same options as XLA has them by default, for `jax.jit(..., compiler_options=)`.
DEFAULTS = {
    "xla_cpu_multi_thread_eigen": True,
    "xla_backend_optimization_level": 3,
    "xla_llvm_disable_expensive_passes": False,
} | ({"xla_cpu_use_fusion_emitters": True} if OLD_EMITTERS else {})
