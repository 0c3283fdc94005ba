"""What the commands share: exit codes, errors and numerics."""

from __future__ import annotations

import contextlib
from collections.abc import Iterator

import jax

from natgrad.compare.extras import require

# Exit codes: what went wrong while running, what was asked wrongly, and Ctrl-C.
FAILED, USAGE, INTERRUPTED = 1, 2, 130


class UsageError(Exception):
    """The command line asks for what does not exist or cannot be."""


@contextlib.contextmanager
def numerics(*, x64: bool) -> Iterator[None]:
    """Compute in this precision, with LAPACK on one thread.

    OpenBLAS's threads spin while they wait, which on a busy machine makes a
    factorisation some ten times slower. XLA keeps its threads.
    """
    limits = require("threadpoolctl").threadpool_limits
    with (
        jax.enable_x64(x64 or jax.config.values["jax_enable_x64"]),
        limits(1, user_api="blas"),
    ):
        yield
