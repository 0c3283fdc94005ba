"""What a compiled function costs: compile time, run time, memory."""

from __future__ import annotations

import dataclasses
import statistics
import time
from collections.abc import Callable
from typing import Any

import jax

# Seconds after which no further run is started: so long a run varies little.
_PATIENCE = 1.0


@dataclasses.dataclass(frozen=True)
class Cost:
    """The cost of one function at one set of shapes.

    Attributes:
        compile_seconds: tracing, lowering and compiling, once.
        run_seconds: the median of repeated runs, each waited for.
        temporary_bytes: what XLA allocates beside arguments and results; None where
            the backend does not say.
    """

    compile_seconds: float
    run_seconds: float
    temporary_bytes: int | None


def compiled(function: Callable, *args: Any) -> tuple[Callable, float]:
    """`function` compiled for the shapes of `args`, and the seconds that took."""
    return timed(lambda: jax.jit(function).lower(*args).compile())


def timed(function: Callable, *args: Any) -> tuple[Any, float]:
    """function(*args), finished, and the seconds it took."""
    start = time.perf_counter()
    result = jax.block_until_ready(function(*args))
    return result, time.perf_counter() - start


def measure(executable: Callable, *args: Any, repeats: int) -> tuple[Any, float]:
    """The result, and the median seconds of `repeats` runs, fewer if they are slow.

    The first run warms up; one that takes long is itself the time.
    """
    result, first = timed(executable, *args)
    seconds = [first] if first > _PATIENCE else []
    while len(seconds) < repeats and sum(seconds) < _PATIENCE:
        seconds.append(timed(executable, *args)[1])
    return result, statistics.median(seconds)


def size_in_bytes(tree: Any) -> int:
    """The bytes that the arrays of a tree take."""
    return sum(leaf.size * leaf.dtype.itemsize for leaf in jax.tree.leaves(tree))


def temporary(executable: Any) -> int | None:
    """The bytes that XLA allocates beside arguments and results, where it says."""
    analysis = executable.memory_analysis()
    return None if analysis is None else int(analysis.temp_size_in_bytes)
