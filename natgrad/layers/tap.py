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
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax

from natgrad import tree
from natgrad.layers import jaxprs
from natgrad.layers.uses import Scale, Use
from natgrad.typing import Array


class Tap(NamedTuple):
    """Where a tap goes, and what it does.

    Attributes:
        use: at whose equation it is.
        block: the name of the block that the use belongs to.
        make: (op, use) -> the tap's `Work`, or another op where the block has no probe.
    """

    use: Use
    block: str
    make: Callable[[Callable, Use], Any]


def evaluated(
    jaxpr: jaxprs.Jaxpr,
    equation: jaxprs.Equation,
    values: Sequence,
    taps: Sequence[tuple[Tap, Scale]],
    live: Mapping[str, tuple],
) -> list:
    """The result of an equation, through a tap that gives the statistics of its uses.

    Args:
        jaxpr: the jaxpr that holds it.
        equation: the equation.
        values: of its operands.
        taps: one for each use, and what its parameter was multiplied by before.
        live: block's name -> (probe, context).
    """
    op = lambda *operands: jaxprs.evaluate(jaxpr, equation, operands)[0]
    tapped = []
    for (use, block, make), scale in taps:
        probe, context = live[block]
        if probe is None:  # then `make` changes the op
            op = make(op, use)
        else:
            tapped.append((make(op, use).statistic, scale, probe, context))
    if not tapped:
        return [op(*values)]
    of, scales, probes, contexts = zip(*tapped, strict=True)

    def statistics(operands, scales, g, contexts):
        each = zip(of, scales, contexts, strict=True)
        return tuple(s(operands, scale, g, c) for s, scale, c in each)

    probes = tree.varying_like(probes, values)
    return [tap(Work(op, statistics), list(values), scales, probes, contexts)]


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
