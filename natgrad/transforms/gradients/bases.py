"""The state of SOAP and KL-Shampoo, and when its bases are renewed."""

from __future__ import annotations

from typing import Any, NamedTuple

import jax

from natgrad.control_flow import cond_in_place
from natgrad.metrics.tensor_factors import renewed_bases
from natgrad.transforms.distributed_inverse import Devices
from natgrad.transforms.gradients.rule import Rule
from natgrad.transforms.health import Undone
from natgrad.transforms.inverse_cache import Refresh
from natgrad.typing import Array, Params


class GradientFactorsState(NamedTuple):
    """State of `soap` and `kl_shampoo`.

    Attributes:
        count: steps that were not skipped.
        momentum: the average of the gradients, from 0, like the parameters.
        scales: SOAP's v, like the parameters; KL-Shampoo's λ_i, for each parameter.
        ages: for each parameter, the gradients since the first that was not 0.
        factors: S_i of each axis, for each parameter; None for the identity.
        bases: Q_i of each axis, for each parameter.
        health: why the last step was skipped, for `natgrad.check_health`.
    """

    count: Array
    momentum: Params
    scales: Any
    ages: tuple[Array, ...]
    factors: tuple[tuple[Array | None, ...], ...]
    bases: tuple[tuple[Array | None, ...], ...]
    health: Undone


class _Kept(NamedTuple):
    """What new bases change, for each parameter."""

    bases: tuple
    scales: tuple


def renew_bases(
    rule: Rule,
    refresh: Refresh,
    devices: Devices | None,
    state: GradientFactorsState,
    before: GradientFactorsState,
) -> GradientFactorsState:
    """The state with new bases, where they are due.

    Args:
        rule: of the scales.
        refresh: how often.
        devices: that share out the bases; None where each computes all.
        state: after the step.
        before: the state before it, whose count is the same if it was skipped.
    """
    due = refresh.renews_inverses(state.count) & (state.count != before.count)
    ages = zip(state.ages, before.ages, strict=True)
    first = [(now == 1) & (old == 0) for now, old in ages]
    factors = {
        (leaf, axis): factor
        for leaf, axes in enumerate(state.factors)
        for axis, factor in enumerate(axes)
        if factor is not None
    }
    if not factors:
        return state

    def some_of(operands, which):
        return renewed_bases(*([each[i] for i in which] for each in operands))

    def renew(kept: _Kept) -> _Kept:
        operands = (
            list(factors.values()),
            [kept.bases[leaf][axis] for leaf, axis in factors],
            [due | first[leaf] for leaf, _ in factors],
            [first[leaf] for leaf, _ in factors],
        )
        which = range(len(factors))
        make = devices.made if devices else lambda make, *given: make(*given)
        new = make(some_of, operands, which)
        found = dict(zip(factors, new, strict=True))
        bases = tuple(
            tuple(found.get((leaf, axis)) for axis in range(len(axes)))
            for leaf, axes in enumerate(state.factors)
        )
        scales = map(rule.rebased, kept.scales, state.factors, bases, first)
        return _Kept(bases, tuple(scales))

    some = due
    for each in first:
        some = some | each
    kept = _Kept(state.bases, tuple(rule.unpack(state.scales)))
    kept = cond_in_place(some, renew, kept)
    scales = rule.pack(kept.scales, jax.tree.structure(state.momentum))
    return state._replace(bases=kept.bases, scales=scales)
