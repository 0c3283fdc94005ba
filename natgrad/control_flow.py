"""A conditional that leaves alone what it does not change.

The results of `lax.cond` have buffers of their own, so a branch that keeps an array
copies it: statistics that are updated every tenth step would be copied in the nine
others. A loop of at most one turn carries them in place, and where the optimizer state
is donated nothing is moved. Loops of unknown length have no reverse derivative, so
derivatives are those of the conditional.
"""

from __future__ import annotations

import concurrent.futures
import functools
from collections.abc import Callable, Sequence
from typing import Any

import jax
import jax.extend as jex
import jax.numpy as jnp
from jax.custom_batching import custom_vmap
from jaxtyping import Bool

from natgrad import tree
from natgrad.typing import Array


def cond_in_place(
    due: Bool[Array, ""], update: Callable[[Any], Any], values: Any
) -> Any:
    """update(values) where due, else `values` as they are.

    Under `vmap` it stays a conditional: all members are updated where one is due.

    Args:
        due: a boolean scalar.
        update: gives a tree like its argument; may close over traced arrays.
        values: a tree of arrays.
    """
    return repeat_in_place([due], update, values)


def repeat_in_place(
    due: Sequence[Bool[Array, ""]], update: Callable[[Any], Any], values: Any
) -> Any:
    """update(update(… values)), once for each of `due` that holds; compiled once.

    Under `vmap` once for each that holds for any member.

    Args:
        due: boolean scalars.
        update: gives a tree like its argument; may close over traced arrays.
        values: a tree of arrays.
    """
    leaves, structure = jax.tree.flatten(values)

    def flat(*leaves):
        new = update(jax.tree.unflatten(structure, leaves))
        return jax.tree.leaves(new)

    run, constants = lifted(flat, *leaves)
    pending = [any_over_vmap(each) for each in due]
    if len(pending) > 1:
        turns = sum(each.astype(jnp.int32) for each in pending)
        pending = [turns > i for i in range(len(due))]
    return jax.tree.unflatten(
        structure, _repeat_in_place(run, pending, constants, leaves)
    )


def zeros_unless(usable: Bool[Array, ""], values: Any) -> Any:
    """The values where they are usable, else zeros.

    Args:
        usable: a boolean scalar. Where it holds, nothing is copied.
        values: a tree of arrays.
    """

    def zero(values):
        return tree.zeros_where(~usable, values)

    return cond_in_place(~usable, zero, values)


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _repeat_in_place(
    run: Callable, pending: list, constants: list, values: list
) -> list:
    """One turn for each of `pending` that holds; those that do come first."""

    def turn(carried):
        (first, *later), values = carried
        held = constants
        if later:
            # XLA computes what is the same in all of several turns before the loop:
            # always, and so in the steps in which nothing is due. One by one, since
            # under shard_map some vary and others do not.
            held = [jax.lax.optimization_barrier((later, c))[1] for c in constants]
        return [*later, jnp.zeros_like(first)], list(run(*held, *values))

    return jax.lax.while_loop(lambda carried: carried[0][0], turn, (pending, values))[1]


@_repeat_in_place.defjvp
def _repeat_in_place_jvp(run, primals, tangents):
    def conditional(pending, constants, values):
        def turn(values, due):
            def updated():
                return list(run(*constants, *values))

            return jax.lax.cond(due, updated, lambda: values), None

        if len(pending) == 1:
            return turn(values, pending[0])[0]
        return jax.lax.scan(turn, values, jnp.stack(pending))[0]

    return jax.jvp(conditional, primals, tangents)


@custom_vmap
def any_over_vmap(predicate: Bool[Array, ""]) -> Bool[Array, ""]:
    """The predicate; under vmap, whether it holds for any member of the batch.

    The result has no batch axis, so a `lax.cond` on it stays a conditional under vmap.

    Args:
        predicate: a boolean scalar.
    """
    return predicate


@any_over_vmap.def_vmap
def _any_over_vmap_rule(axis_size, in_batched, predicate):
    del axis_size
    if in_batched[0]:
        predicate = jnp.any(predicate, axis=0)
    return any_over_vmap(predicate), False


def one_by_one_on_cpu(function: Callable, *stacks: Any) -> Any:
    """The function of each member of the stacks: a loop on CPUs, else one batched call.

    XLA's batched LAPACK calls share a CPU's thread pool with the rest of the program,
    and where there are few threads they can wait for each other for ever. On other
    devices a batch is as fast as its largest member, and a loop as slow as their sum.
    Which of the two a program contains is decided when it is lowered.

    Args:
        function: of one member of each stack; gives a tree of arrays.
        stacks: arrays [B, ...].

    Returns:
        The tree, its arrays with a leading axis [B].
    """

    def walk(*stacks):
        return jax.lax.map(lambda members: function(*members), stacks)

    return jax.lax.platform_dependent(*stacks, cpu=walk, default=jax.vmap(function))


def lifted(function: Callable, *operands: Any) -> tuple[Callable, list]:
    """A function with what it closes over as arguments.

    Args:
        function: (*operands) -> a sequence of arrays; may close over traced arrays.
        operands: arrays; only their shapes and dtypes count.

    Returns:
        (run, constants): `constants` are the arrays that the function closes over, and
        run(*constants, *operands) is function(*operands) as a flat list.
    """
    closed = jax.make_jaxpr(function)(*operands)
    jaxpr, constants = closed.jaxpr, list(closed.consts)
    alone = jaxpr.replace(constvars=(), invars=[*jaxpr.constvars, *jaxpr.invars])
    return jex.core.jaxpr_as_fun(jex.core.ClosedJaxpr(alone, [])), constants


def trace_level() -> Any:
    """What is being traced here; equal to another where that is the same trace."""
    return jex.core.get_opaque_trace_state()


@functools.cache
def _outside() -> Any:
    """The level of a thread of its own, which is outside of all traces."""
    with concurrent.futures.ThreadPoolExecutor(1) as pool:
        return pool.submit(trace_level).result()


def is_traced() -> bool:
    """Are we within a transformation of JAX, whether it has traced operands or not?"""
    return trace_level() != _outside()
