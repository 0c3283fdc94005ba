"""Parameter trees as vectors, their checks, and sums over chunks of examples.

Only what `jax.tree` and `optax.tree` lack.
"""

from natgrad.tree.chunks import (
    device_parts,
    filled,
    map_over_chunks,
    pairs_of_chunks,
    slice_chunk,
    sum_over_chunks,
    unfilled,
    zeros_for_filled,
)
from natgrad.tree.complex_leaves import (
    Pair,
    has_complex,
    join_complex,
    of_pairs,
    split_complex,
)
from natgrad.tree.layout import (
    Layout,
    check_kept,
    check_params,
    check_sharding,
    has_placeholders,
    is_placeholder,
    metric_pytree,
    paths,
    working_dtype,
)
from natgrad.tree.sums import (
    all_finite,
    any_nonzero,
    increment,
    inner,
    largest,
    raw_key,
    same_on_devices,
    varying,
    varying_like,
    where,
    zeros_of,
    zeros_where,
)

__all__ = [
    "Layout",
    "Pair",
    "all_finite",
    "any_nonzero",
    "check_kept",
    "check_params",
    "check_sharding",
    "device_parts",
    "filled",
    "has_complex",
    "has_placeholders",
    "increment",
    "inner",
    "is_placeholder",
    "join_complex",
    "largest",
    "map_over_chunks",
    "metric_pytree",
    "of_pairs",
    "pairs_of_chunks",
    "paths",
    "raw_key",
    "same_on_devices",
    "slice_chunk",
    "split_complex",
    "sum_over_chunks",
    "unfilled",
    "varying",
    "varying_like",
    "where",
    "working_dtype",
    "zeros_for_filled",
    "zeros_of",
    "zeros_where",
]
