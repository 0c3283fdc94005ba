"""A conditional that leaves alone what it does not change.

The results of `lax.cond` have buffers of their own, so a branch that keeps an array
copies it: statistics that are renewed every tenth step would be copied in the nine
others. A loop of at most one turn carries them in place, and where the optimizer state
is donated nothing is moved. Loops of unknown length have no reverse derivative, so
derivatives are those of the conditional.
"""

from __future__ import annotations

import functools
from collections.abc import Callable
from typing import Any

import jax
import jax.numpy as jnp

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
    leaves, structure = jax.tree.flatten(kept)

    def flat(*leaves):
        new = renew(jax.tree.unflatten(structure, leaves))
        return jax.tree.leaves(new)

    run, constants = jaxprs.lifted(flat, *leaves)
    new = _renewed(run, any_member(due), constants, leaves)
    return jax.tree.unflatten(structure, new)


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def _renewed(run: Callable, due: Array, constants: list, kept: list) -> list:
    def turn(carried):
        due, kept = carried
        return jnp.zeros_like(due), list(run(*constants, *kept))

    return jax.lax.while_loop(lambda carried: carried[0], turn, (due, kept))[1]


@_renewed.defjvp
def _renewed_jvp(run, primals, tangents):
    def conditional(due, constants, kept):
        return jax.lax.cond(due, lambda: list(run(*constants, *kept)), lambda: kept)

    return jax.jvp(conditional, primals, tangents)
