"""The tap: an op whose extra zero argument has the statistic for its cotangent.

    tap(op, operands, probe) = op(operands)
    backwards: g ↦ (pullback of op at g, statistic(operands, g))

The probe changes nothing forwards. Backwards, the derivative rules of what surrounds
the tap carry its cotangent, the statistic, as they carry a parameter's gradient: a scan
over time sums it, a scan over layers stacks it, shard_map sums it over devices.
"""

from __future__ import annotations

import dataclasses
import functools
from typing import Any

import jax

from natgrad import tree
from natgrad.typing import Array


@dataclasses.dataclass(frozen=True, eq=False)
class Work:
    """What one tap does: evaluate `op`, and on the way back call `statistic`."""

    op: Any
    statistic: Any


@functools.partial(jax.custom_vjp, nondiff_argnums=(0,))
def tap(work: Work, operands: list, scale, probe, context):
    """`work.op(*operands)`; the cotangent of `probe` is the statistic of the use."""
    del scale, probe, context
    return work.op(*operands)


def _tap_forward(work: Work, operands: list, scale, probe, context):
    del probe
    return work.op(*operands), (operands, scale, context)


def _tap_backward(work: Work, residuals, g: Array):
    operands, scale, context = residuals
    _, pull = jax.vjp(work.op, *operands)
    found = _replicated(work.statistic, operands, scale, g, context)
    found = tree.varying_like(found, operands)
    return list(pull(g)), None, found, None


tap.defvjp(_tap_forward, _tap_backward)


def _replicated(function, *arguments):
    """function(*arguments), its results on every device of an explicit mesh.

    There, a sum over a sharded axis has to be told where its result shall be.
    """
    kinds = jax.sharding.get_abstract_mesh().axis_types
    if jax.sharding.AxisType.Explicit not in kinds:
        return function(*arguments)
    bare = jax.tree.map(
        lambda leaf: jax.ShapeDtypeStruct(jax.numpy.shape(leaf), leaf.dtype), arguments
    )
    shapes = jax.eval_shape(function, *bare)
    everywhere = jax.tree.map(lambda _: jax.sharding.PartitionSpec(), shapes)
    return jax.sharding.auto_axes(function, out_sharding=everywhere)(*arguments)
