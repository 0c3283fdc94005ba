"""A conditional that leaves alone what it does not change.

The results of `lax.cond` have buffers of their own, so a branch that keeps an array
copies it: statistics that are renewed every tenth step would be copied in the nine
others. A loop of at most one turn carries them in place, and where the optimizer state
is donated nothing is moved. Loops of unknown length have no reverse derivative, so
derivatives are those of the conditional.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.numpy as jnp

from natgrad import tree
from natgrad.layers import jaxprs
from natgrad.solvers import any_member
from natgrad.typing import Array


def renewed(due: Array, renew: Callable[[Any], Any], kept: Any) -> Any:
    """renew(kept) where due, else `kept` as it is.

    Under `vmap` it stays a conditional: all members renew where one is due.

    Args:
        due: boolean scalar.
        renew: gives a tree like its argument; may close over traced arrays.
        kept: a tree of arrays.
    """
    return renewed_in_turn([due], renew, kept)


def renewed_in_turn(
    due: Sequence[Array], renew: Callable[[Any], Any], kept: Any
) -> Any:
    """renew(renew(… kept)), once for each of `due` that holds; compiled once.

    Under `vmap` once for each that holds for any member.
    """
    leaves, structure = jax.tree.flatten(kept)

    def flat(*leaves):
        new = renew(jax.tree.unflatten(structure, leaves))
        return jax.tree.leaves(new)

    run, constants = jaxprs.lifted(flat, *leaves)
    turns = sum(any_member(each).astype(jnp.int32) for each in due)
    new = _renewed(run, len(due), turns, constants, leaves)
    return jax.tree.unflatten(structure, new)


def cleared(usable: Array, values: Any) -> Any:
    """The tree `values` where usable, else zeros; moves nothing where usable."""

    def zero(values):
        return tree.where(usable, values, jax.tree.map(jnp.zeros_like, values))

    return renewed(~usable, zero, values)


@functools.partial(jax.custom_jvp, nondiff_argnums=(0, 1))
def _renewed(
    run: Callable, most: int, turns: Array, constants: list, kept: list
) -> list:
    if most == 1:

        def once(carried):
            due, kept = carried
            return jnp.zeros_like(due), list(run(*constants, *kept))

        start = turns > 0, kept
        return jax.lax.while_loop(lambda carried: carried[0], once, start)[1]

    def turn(carried):
        left, kept = carried
        # XLA would compute what does not depend on `kept` before the loop: always.
        # One by one: under shard_map what varies stays apart from what does not.
        held = [jax.lax.optimization_barrier((left, c))[1] for c in constants]
        return left - 1, list(run(*held, *kept))

    return jax.lax.while_loop(lambda carried: carried[0] > 0, turn, (turns, kept))[1]


@_renewed.defjvp
def _renewed_jvp(run, most, primals, tangents):
    def conditional(turns, constants, kept):
        def turn(kept, i):
            new = lambda: list(run(*constants, *kept))
            return jax.lax.cond(i < turns, new, lambda: kept), None

        if most == 1:
            return turn(kept, 0)[0]
        return jax.lax.scan(turn, kept, jnp.arange(most))[0]

    return jax.jvp(conditional, primals, tangents)
