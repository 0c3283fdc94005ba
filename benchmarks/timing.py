"""Timing that survives a busy machine: competitors interleaved, medians, CPU time.

Each round runs every task once, so that all meet the same load; a figure is a median
over rounds. Compilation is timed apart. CPU time counts all threads of the process:
where it is far above wall time × the threads of use, threads were waiting by spinning.

Thread settings, read when the process starts:
    XLA_FLAGS=--xla_cpu_multi_thread_eigen=false    XLA's matrix products on one thread
    OPENBLAS_NUM_THREADS=1      LAPACK (Cholesky, eigh, through scipy) on one thread
    taskset -c 0 (Linux)        everything on one core
XLA and OpenBLAS keep a pool each. On an idle machine two pools do no harm; on a busy
one OpenBLAS's threads spin at each barrier, and a factorisation can take ten times
longer than on one thread. Set OPENBLAS_NUM_THREADS=1 wherever cores are shared.
"""

from __future__ import annotations

import argparse
import os
import platform
import subprocess
import time
from collections.abc import Callable
from importlib import metadata
from pathlib import Path
from typing import Any, NamedTuple

import jax
import numpy as np

THREAD_SETTINGS = (
    "XLA_FLAGS",
    "OPENBLAS_NUM_THREADS",
    "OMP_NUM_THREADS",
    "MKL_NUM_THREADS",
)
PACKAGES = ("jax", "jaxlib", "numpy", "scipy", "natgrad")


class Timing(NamedTuple):
    """Seconds of one task.

    Attributes:
        wall: in each round.
        cpu: in each round, of all threads together.
        compile: of all threads together, tracing too, before the first round.
    """

    wall: list[float]
    cpu: list[float]
    compile: float

    def summary(self) -> dict[str, float]:
        """Medians, and the fastest round."""
        return {
            "seconds": float(np.median(self.wall)),
            "fastest_seconds": float(np.min(self.wall)),
            "cpu_seconds": float(np.median(self.cpu)),
            "compile_seconds": self.compile,
        }


def compiled(function: Callable, *args: Any) -> tuple[Callable[[], Any], float]:
    """A task that runs `function(*args)` ahead-of-time compiled, and its CPU seconds.

    CPU time, for on a busy machine the wall time of one long task tells nothing.
    """
    start = time.process_time()
    executable = jax.jit(function).lower(*args).compile()
    return lambda: executable(*args), time.process_time() - start


def interleaved(
    tasks: dict[str, tuple[Callable[[], Any], float]], rounds: int
) -> dict[str, Timing]:
    """Timings of tasks given with their compile time; one warm-up round goes first."""
    timings = {name: Timing([], [], seconds) for name, (_, seconds) in tasks.items()}
    for task, _ in tasks.values():
        jax.block_until_ready(task())
    for _ in range(rounds):
        for name, (task, _) in tasks.items():
            cpu, wall = time.process_time(), time.perf_counter()
            jax.block_until_ready(task())
            timings[name].wall.append(time.perf_counter() - wall)
            timings[name].cpu.append(time.process_time() - cpu)
    return timings


def environment() -> dict[str, Any]:
    """What a figure depends on: device, cores, load, versions, threads, commit."""
    device = jax.devices()[0]
    return {
        "device": f"{device.platform}: {device.device_kind}",
        "machine": platform.machine(),
        "processor": _processor(),
        "cores": len(os.sched_getaffinity(0))
        if hasattr(os, "sched_getaffinity")
        else os.cpu_count(),
        "load_average": list(os.getloadavg()) if hasattr(os, "getloadavg") else None,
        "python": platform.python_version(),
        "versions": {name: _version(name) for name in PACKAGES},
        "threads": {name: os.environ.get(name) for name in THREAD_SETTINGS},
        "commit": _commit(),
    }


def _processor() -> str:
    info = Path("/proc/cpuinfo")
    if info.exists():
        for line in info.read_text().splitlines():
            if line.startswith("model name"):
                return line.split(":", 1)[1].strip()
    return platform.processor()


def _version(package: str) -> str | None:
    try:
        return metadata.version(package)
    except metadata.PackageNotFoundError:
        return None


def _commit() -> str | None:
    try:
        done = subprocess.run(
            ["git", "rev-parse", "HEAD"],
            cwd=Path(__file__).parent,
            capture_output=True,
            text=True,
            check=True,
        )
    except (OSError, subprocess.CalledProcessError):
        return None
    return done.stdout.strip()


def positive(text: str) -> int:
    """A count that an option of a command gives: of rounds, seeds, steps, sizes."""
    if not text.isdecimal() or int(text) < 1:
        raise argparse.ArgumentTypeError(f"expected a whole number >= 1, got {text!r}")
    return int(text)
