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
import jax.core
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
    return _in_place([due], update, values)


def twice_in_place(
    due: Bool[Array, ""],
    again: Bool[Array, ""],
    update: Callable[[Array, Any], Any],
    values: Any,
) -> Any:
    """update(True, values) where due, and before it update(False, …) where `again`.

    Compiled once. Under `vmap` each for all members where it holds for any.

    Args:
        due: a boolean scalar, which holds where `again` does.
        again: a boolean scalar.
        update: (is this the last turn?, values) -> a tree like the values; may close
            over traced arrays.
        values: a tree of arrays.
    """
    return _in_place([due, again], lambda more, old: update(~more, old), values)


def _in_place(due: Sequence[Array], update: Callable, values: Any) -> Any:
    """update(*is each of the later ones due?, values) for each of `due`."""
    leaves, structure = jax.tree.flatten(values)
    pending = [any_over_vmap(each) for each in due]
    later = pending[1:]

    def flat(*operands):
        old = jax.tree.unflatten(structure, operands[len(later) :])
        return jax.tree.leaves(update(*operands[: len(later)], old))

    run, closed_over = lifted(flat, *later, *leaves)
    traced = [isinstance(each, jax.core.Tracer) for each in closed_over]

    def known(*operands):  # what is known is a constant of the loop
        given = iter(operands)
        pairs = zip(closed_over, traced, strict=True)
        return run(*(next(given) if where else each for each, where in pairs), *given)

    constants = [each for each, where in zip(closed_over, traced, strict=True) if where]
    return jax.tree.unflatten(
        structure, _repeat_in_place(known, pending, constants, leaves)
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
    """One turn for each of `pending` that holds, the first of which do.

    `run` takes the constants, of two turns whether there is another, and the values.
    """

    def turn(carried):
        (first, *later), values = carried
        held = constants
        if later:
            # XLA computes what is the same in both turns before the loop: always, and
            # so in the steps in which nothing is due. One by one, since under shard_map
            # some vary and others do not.
            held = [jax.lax.optimization_barrier((later, c))[1] for c in constants]
        return [*later, jnp.zeros_like(first)], list(run(*held, *later, *values))

    return jax.lax.while_loop(lambda carried: carried[0][0], turn, (pending, values))[1]


@_repeat_in_place.defjvp
def _repeat_in_place_jvp(run, primals, tangents):
    def conditional(pending, constants, values):
        def turn(values, due):
            first, *later = due

            def updated():
                return list(run(*constants, *later, *values))

            return jax.lax.cond(first, updated, lambda: values), None

        if len(pending) == 1:
            return turn(values, pending)[0]
        turns = jnp.stack(pending), jnp.stack([*pending[1:], jnp.array(False)])
        return jax.lax.scan(turn, values, turns)[0]

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


def symmetric_solve(
    operator: Callable[[Any], Any],
    b: Any,
    solve: Callable[[Any], Any],
    *,
    has_aux: bool = False,
) -> Any:
    """`lax.custom_linear_solve` with an operator that is its own transpose.

    JAX traces the solution for both, one after the other; here the second time finds
    what the first has traced.

    Args:
        operator: x -> A x, symmetric.
        b: a tree of arrays.
        solve: b -> A⁻¹ b; or with `has_aux` a pair of it and what has no derivative.
        has_aux: does `solve` give such a pair?

    Returns:
        What `solve` gives, with implicit derivatives.
    """
    solve = traced_once(solve)
    return jax.lax.custom_linear_solve(
        operator, b, lambda _, b: solve(b), symmetric=True, has_aux=has_aux
    )


def traced_once(function: Callable) -> Callable:
    """The function, which JAX traces once for all calls with the same shapes.

    Each call adds its operations to the program around it, as without this.

    Args:
        function: of trees of arrays; may close over traced arrays.
    """
    return jax.jit(function, inline=True)


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
