"""Refusals before anything is allocated: sizes that the machine cannot hold."""

from __future__ import annotations

import os
from typing import Any

import jax
import jax.numpy as jnp

from natgrad.model.errors import DoesNotFitError


def require(numbers: int, dtype: Any, what: str, instead: str) -> None:
    """Raise unless so many numbers of a dtype fit into the machine's memory.

    Args:
        numbers: how many.
        dtype: of what type.
        what: whose they are and what they hold, the beginning of a sentence.
        instead: what takes less.
    """
    size, limit = numbers * jnp.dtype(dtype).itemsize, _memory()
    if limit is not None and size > limit:
        raise DoesNotFitError(
            f"{what}: {numbers:.2g} numbers of type {jnp.dtype(dtype)}, "
            f"{size / 1e9:.3g} GB, and there are {limit / 1e9:.3g} GB of memory. "
            f"Use {instead} instead."
        )


def _memory() -> int | None:
    """Bytes of all devices of this process; of the machine, where that is the CPU."""
    devices = jax.local_devices()
    if devices[0].platform != "cpu":
        limits = [
            (device.memory_stats() or {}).get("bytes_limit") for device in devices
        ]
        return sum(limits) if all(limits) else None
    try:
        pages = os.sysconf("SC_PHYS_PAGES")  # -1 where it is not known
        return os.sysconf("SC_PAGE_SIZE") * pages if pages > 0 else None
    except (AttributeError, ValueError, OSError):  # not on every system
        return None
