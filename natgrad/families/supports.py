"""Which labels a distribution of distrax, numpyro or TFP has, where they are finite."""

from __future__ import annotations

from typing import Any

import jax.numpy as jnp
from jax.core import Tracer

from natgrad.typing import Array

# A sum over more labels, if z has fewer entries, costs more than it is worth.
_MOST = 1024


def support_of(distribution: Any, size: int) -> Array | None:
    """The labels [K, ...] of one law, where its library tells that they are finite.

    None for a batch of laws, and for more labels than are worth a sum.

    Args:
        distribution: of distrax, numpyro, TFP or like theirs.
        size: the number of the law's parameters.
    """
    if tuple(getattr(distribution, "batch_shape", ())):
        return None
    if getattr(distribution, "has_enumerate_support", False):
        try:
            labels = distribution.enumerate_support(expand=False)
        except NotImplementedError:
            return None
    else:
        labels = _labels_by_name(distribution)
    few = labels is not None and labels.shape[0] <= max(size, _MOST)
    return labels if few else None


def _labels_by_name(distribution: Any) -> Array | None:
    """The labels of distrax's and TFP's laws, which have no method for them."""
    libraries = {"distrax", "tensorflow_probability"}
    names = {
        base.__name__
        for base in type(distribution).__mro__
        if base.__module__.partition(".")[0] in libraries
    }
    dtype = lambda: distribution.dtype
    if "OneHotCategorical" in names:
        return jnp.eye(distribution.event_shape[-1], dtype=dtype())
    if "Categorical" in names:
        count = getattr(distribution, "num_categories", None)
        count = distribution.logits_parameter().shape[-1] if count is None else count
        return jnp.arange(count, dtype=dtype())
    if "Bernoulli" in names:
        return jnp.arange(2, dtype=dtype())
    if "FiniteDiscrete" in names:
        return jnp.asarray(distribution.outcomes)
    if names & {"Binomial", "BetaBinomial"}:
        total = distribution.parameters.get("total_count")
        if total is not None and not isinstance(total, Tracer):
            return jnp.arange(int(total) + 1, dtype=dtype())
    return None
