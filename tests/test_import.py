"""What `import natgrad` loads, and what it leaves to the first use."""

from __future__ import annotations

import subprocess
import sys

LOADED = """
import sys
import optax
tops = lambda: {name.partition(".")[0] for name in sys.modules}
before = tops()
import natgrad
print(*sorted(tops() - before - sys.stdlib_module_names))
assert natgrad.compare.compare and natgrad.geometry.Chart
"""


def test_nothing_is_imported_beside_jax_optax_and_jaxtyping():
    done = subprocess.run(
        [sys.executable, "-c", LOADED], capture_output=True, text=True, check=True
    )
    assert set(done.stdout.split()) <= {"natgrad", "jaxtyping", "wadler_lindig"}
