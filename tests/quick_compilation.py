"""XLA's options in the tests: most functions run once, so compilation is their cost.

The tests compile many small functions: fast rather than well. The older emitters of
fusions, which jaxlib 0.10 still has, take a third of the time of the new ones. They
write a value that has several uses once for each. With fused multiply-adds these may
differ in the last bit: differences that are 0 are not, and some searches never end.
AVX has none. What users run, that is examples, the README, the first steps and
`test_as_shipped_*`, is compiled as XLA comes.
"""

from __future__ import annotations

import platform
from importlib.metadata import version

OLD_EMITTERS = version("jaxlib").startswith("0.10.") and platform.machine() in (
    "x86_64",
    "AMD64",
)

FLAGS = (
    "--xla_cpu_multi_thread_eigen=false --xla_backend_optimization_level=0"
    " --xla_llvm_disable_expensive_passes=true"
    " --xla_cpu_parallel_codegen_split_count=1"
) + OLD_EMITTERS * " --xla_cpu_use_fusion_emitters=false --xla_cpu_max_isa=AVX"

# The same options as XLA has them by default, for `jax.jit(..., compiler_options=)`.
DEFAULTS = {
    "xla_cpu_multi_thread_eigen": True,
    "xla_backend_optimization_level": 3,
    "xla_llvm_disable_expensive_passes": False,
    "xla_cpu_parallel_codegen_split_count": 32,
} | (
    {"xla_cpu_use_fusion_emitters": True, "xla_cpu_max_isa": ""} if OLD_EMITTERS else {}
)
