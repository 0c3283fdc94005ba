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
import jax.extend as jex
import jax.numpy as jnp
from jax.custom_batching import custom_vmap

from natgrad import tree
from natgrad.typing import Array


def cond_in_place(due: Array, renew: Callable[[Any], Any], kept: Any) -> Any:
    """renew(kept) where due, else `kept` as it is.

    Under `vmap` it stays a conditional: all members renew where one is due.

    Args:
        due: boolean scalar.
        renew: gives a tree like its argument; may close over traced arrays.
        kept: a tree of arrays.
    """
    return repeat_in_place([due], renew, kept)


def repeat_in_place(
    due: Sequence[Array], renew: Callable[[Any], Any], kept: Any
) -> Any:
    """renew(renew(… kept)), once for each of `due` that holds; compiled once.

    Under `vmap` once for each that holds for any member.
    """
    leaves, structure = jax.tree.flatten(kept)

    def flat(*leaves):
        new = renew(jax.tree.unflatten(structure, leaves))
        return jax.tree.leaves(new)

    run, constants = lifted(flat, *leaves)
    turns = sum(any_over_vmap(each).astype(jnp.int32) for each in due)
    pending = [turns > i for i in range(len(due))]
    return jax.tree.unflatten(
        structure, _repeat_in_place(run, pending, constants, leaves)
    )


def zeros_unless(usable: Array, values: Any) -> Any:
    """The tree `values` where usable, else zeros; moves nothing where usable."""

    def zero(values):
        return tree.where(usable, values, jax.tree.map(jnp.zeros_like, values))

    return cond_in_place(~usable, zero, values)


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _repeat_in_place(run: Callable, pending: list, constants: list, kept: list) -> list:
    """One turn for each of `pending` that holds; those that do come first."""

    def turn(carried):
        (now, *later), kept = carried
        held = constants
        if later:
            # XLA computes what is the same in all of several turns before the loop:
            # always, and so in the steps in which nothing is due. One by one, since
            # under shard_map some vary and others do not.
            held = [jax.lax.optimization_barrier((later, c))[1] for c in constants]
        return [*later, jnp.zeros_like(now)], list(run(*held, *kept))

    return jax.lax.while_loop(lambda carried: carried[0][0], turn, (pending, kept))[1]


@_repeat_in_place.defjvp
def _repeat_in_place_jvp(run, primals, tangents):
    def conditional(pending, constants, kept):
        def turn(kept, now):
            new = lambda: list(run(*constants, *kept))
            return jax.lax.cond(now, new, lambda: kept), None

        if len(pending) == 1:
            return turn(kept, pending[0])[0]
        return jax.lax.scan(turn, kept, jnp.stack(pending))[0]

    return jax.jvp(conditional, primals, tangents)


@custom_vmap
def any_over_vmap(predicate: Array) -> Array:
    """The predicate; under vmap, whether it holds for any member of the batch.

    Unbatched, so a `lax.cond` on it stays a conditional under vmap.
    """
    return predicate


@any_over_vmap.def_vmap
def _any_over_vmap_rule(axis_size, in_batched, predicate):
    del axis_size
    if in_batched[0]:
        predicate = jnp.any(predicate, axis=0)
    return any_over_vmap(predicate), False


def lifted(function: Callable, *operands: Any) -> tuple[Callable, list]:
    """(run, constants): run(*constants, *operands) is function(*operands), all flat.

    The constants are the arrays that the function closes over, traced ones too.
    """
    closed = jax.make_jaxpr(function)(*operands)
    jaxpr, constants = closed.jaxpr, list(closed.consts)
    alone = jaxpr.replace(constvars=(), invars=[*jaxpr.constvars, *jaxpr.invars])
    return jex.core.jaxpr_as_fun(jex.core.ClosedJaxpr(alone, [])), constants
