"""Derivatives of functions f(F) as contractions of divided differences.

The n-th derivative of f(A) in directions X_1, …, X_n is a sum of chains

    Σ f[s_i0, …, s_in] P_i0 X_1 P_i1 X_2 … X_n P_in,      P_i = u_i u_iᵀ

over orders of the X_k (Daleckii & Krein; Higham 2008, theorem 3.11), and the derivative
of a chain in A puts one more direction at each of its n + 1 places. This holds where
eigenvalues repeat, and needs no derivative of an eigenvector. For f(A ⊗ G) there are
two chains, with f[…; …] of a and of g. What is not asked for is not computed.

Where A is an operator that depends on arrays, X_k stands for a derivative of it along
some tangents of them, and the derivative of a chain also puts one more tangent at each
X_k.

A chain is multilinear in its ends and in its directions, so leaving out any one of them
gives a tensor like it, the gradient with respect to it: transposes are chains too.

Source: Higham (2008), Functions of Matrices, chapter 3.
"""

from __future__ import annotations

import functools
from collections.abc import Callable, Mapping, Sequence
from typing import Any, NamedTuple

import jax
import jax.flatten_util
import jax.numpy as jnp
from jax.custom_derivatives import SymbolicZero

from natgrad import tree
from natgrad.control_flow import symmetric_solve, traced_once
from natgrad.typing import Array


class Chain(NamedTuple):
    """What to contract; static.

    Attributes:
        evaluate: (chain, *arguments of `contraction`) -> the contraction.
        run: f, (*constants, a number) -> [a number].
        counts: how many X_k stand in each factor's chain.
        linear: do factors depend on their arrays linearly?
        orders: for each X_k of how many tangents it is the derivative; 1 if linear.
        moving: for each tangent which of the factor's arrays it moves.
    """

    evaluate: Callable[..., Any]
    run: Callable[..., list]
    counts: tuple[int, ...]
    linear: bool = True
    orders: tuple[int, ...] = ()
    moving: tuple[tuple[int, ...], ...] = ()

    def f(self, constants: Sequence[Array]) -> Callable[[Array], Array]:
        """f of an array, elementwise.

        Args:
            constants: what f closes over.
        """

        def elementwise(x):
            values = jax.vmap(lambda s: self.run(*constants, s)[0])(x.reshape(-1))
            return values.reshape(x.shape).astype(x.dtype)

        return elementwise

    def longer(
        self, factor: int, moving: tuple[int, ...]
    ) -> Sequence[tuple[int, Chain]]:
        """Where one more tangent may stand among the operands, and the chain then.

        Args:
            factor: whose chain it is for.
            moving: which of the factor's arrays the tangent moves.
        """
        start, count = sum(self.counts[:factor]), self.counts[factor]
        counts = tuple(put(self.counts, {factor: count + 1}))

        def at(slot, inside):
            before, after = self.orders[:slot], self.orders[slot + inside :]
            order = self.orders[slot] + 1 if inside else 1
            place = sum(before) + order - 1
            return 1 + place, self._replace(
                counts=self.counts if inside else counts,
                orders=(*before, order, *after),
                moving=(*self.moving[:place], moving, *self.moving[place:]),
            )

        gaps = [at(slot, False) for slot in range(start, start + count + 1)]
        if self.linear:
            return gaps
        return gaps + [at(slot, True) for slot in range(start, start + count)]


@functools.partial(jax.custom_jvp, nondiff_argnums=(0,))
def contraction(
    chain: Chain,
    factors: tuple[Sequence[Array], ...],
    bases: Any,
    constants: tuple[Array, ...],
    operands: tuple[Any, ...],
) -> Any:
    """The tensor that is like the operand left out.

    Args:
        chain: what to contract.
        factors: of each factor the arrays that it depends on: a matrix itself, or what
            an operator closes over.
        bases: what is known of the factors as constants; derivatives do not see it.
        constants: what f closes over.
        operands: the left end W, the tangents in each factor's chain, the right end V
            if there is one; None for the one left out. A tangent is a dictionary from
            the numbers of the arrays that move.
    """
    return chain.evaluate(chain, factors, bases, constants, operands)


def missing(operands: Sequence[Any]) -> int:
    """The number of the operand that was left out.

    Args:
        operands: as those of `contraction`.
    """
    return next(i for i, operand in enumerate(operands) if operand is None)


def _contraction_jvp(chain, primals, tangents):
    factors, bases, constants, operands = primals
    d_factors, _, d_constants, d_operands = tangents

    def whole(chain, constants, operands):
        return contraction(chain, factors, bases, tuple(constants), tuple(operands))

    def linear_maps():
        """(L, Lᵀ, x) for each kind of argument that moves."""
        for slot, tangent in enumerate(d_operands):
            if _moving(tangent):
                yield *_of_operand(whole, chain, constants, operands, slot), tangent
        for factor, tangent in enumerate(d_factors):
            if moving := _moving(tangent):
                maps = _of_factor(whole, chain, constants, operands, factor, moving)
                yield *maps, {i: tangent[i] for i in moving}
        if moving := _moving(d_constants):
            directions = [d_constants[i] for i in moving]
            yield *_of_constants(whole, chain, constants, operands, moving), directions

    out = whole(chain, constants, operands)
    total = jax.tree.map(jnp.zeros_like, out)
    for along, back, tangent in linear_maps():
        x = jax.tree.map(_instantiated, tangent, is_leaf=_is_zero)
        total = jax.tree.map(jnp.add, total, linear(along, back, x))
    return out, total


contraction.defjvp(_contraction_jvp, symbolic_zeros=True)


def _of_operand(whole, chain, constants, operands, slot):
    left_out = missing(operands)

    def along(x):
        return whole(chain, constants, put(operands, {slot: x}))

    def back(w):
        return whole(chain, constants, put(operands, {slot: None, left_out: w}))

    return along, back


def _of_factor(whole, chain, constants, operands, factor, moving):
    """E -> the sum over places of E in one factor's chain, and its transpose."""
    left_out, longer = missing(operands), chain.longer(factor, moving)

    def over_places(here, there):
        """here stands in each place in turn, there in what was left out."""
        filled = put(operands, {left_out: there})
        terms = [
            whole(chain, constants, [*filled[:place], here, *filled[place:]])
            for place, chain in longer
        ]
        return functools.reduce(functools.partial(jax.tree.map, jnp.add), terms)

    return (lambda e: over_places(e, None)), (lambda w: over_places(None, w))


def _of_constants(whole, chain, constants, operands, moving):
    sloped = chain._replace(run=functools.partial(_slope, chain.run, moving))

    def along(directions):
        return whole(sloped, [*constants, *directions], operands)

    def back(w):
        flat, unravel = jax.flatten_util.ravel_pytree([constants[i] for i in moving])
        units = jax.vmap(unravel)(jnp.eye(flat.size, dtype=flat.dtype))
        return unravel(jax.vmap(lambda unit: tree.inner(w, along(unit)))(units))

    return along, back


def _slope(run, moving, *args):
    """df: args are the constants, the directions of those that move, and a number."""
    *given, x = args
    constants, directions = given[: len(given) - len(moving)], given[-len(moving) :]

    def of_moving(*values):
        return run(*put(constants, dict(zip(moving, values, strict=True))), x)

    primals = tuple(constants[i] for i in moving)
    return jax.jvp(of_moving, primals, tuple(directions))[1]


def linear(along: Callable[[Any], Any], back: Callable[[Any], Any], x: Any) -> Any:
    """L x, where transposing and differentiating JAX uses the functions given.

    JAX transposes what the rule of a derivative computed, and so forgets the rules of
    what that called; but not in `lax.custom_linear_solve`, whose derivative is that of
    its system. With N = [[0, Lᵀ], [L, 0]], the solution (p, q) of

        q = b,     p − N q = 0

    has p = N b: for b = (x, 0) this is (0, L x).

    Args:
        along: L, linear, a tree -> a tree; differentiable in what it closes over.
        back: Lᵀ, the same.
        x: a tree of arrays.
    """
    along, back = traced_once(along), traced_once(back)
    like = jax.tree.map(jnp.zeros_like, jax.eval_shape(along, x))
    parts, unravel = jax.flatten_util.ravel_pytree((x, like))
    size = parts.size

    def both(z):
        x, w = unravel(z)
        return jax.flatten_util.ravel_pytree((back(w), along(x)))[0]

    def system(z):
        p, q = z[:size], z[size:]
        return jnp.concatenate([q, p - both(q)])

    def solve(b):
        first, second = b[:size], b[size:]
        return jnp.concatenate([second + both(first), first])

    # One array: all of it has to be linear in x for it to be transposed.
    flat = jax.flatten_util.ravel_pytree(x)[0]
    b = jnp.pad(flat, (0, 2 * size - flat.size))
    solved = symmetric_solve(system, b, solve)
    return unravel(solved[:size])[1]


def _is_zero(tangent) -> bool:
    return isinstance(tangent, SymbolicZero)


def _instantiated(tangent):
    return jnp.zeros(tangent.shape, tangent.dtype) if _is_zero(tangent) else tangent


def _moving(tangents) -> tuple[int, ...]:
    """Which leaves of tangents move."""
    leaves = jax.tree.leaves(tangents, is_leaf=_is_zero)
    return tuple(i for i, leaf in enumerate(leaves) if not _is_zero(leaf))


def put(items: Sequence[Any], changes: Mapping[int, Any]) -> list:
    """The items, some of them changed.

    Args:
        items: any.
        changes: number -> what stands in its place.
    """
    return [changes.get(i, item) for i, item in enumerate(items)]
