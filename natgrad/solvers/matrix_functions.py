"""Functions f(F) of symmetric matrices and of Kronecker products of two of them.

    f(F) = Σ_i f(s_i) u_i u_iᵀ,     F = U diag(s) Uᵀ,     s >= 0

f is any JAX function of an array, taken elementwise; eigenvalues that rounding makes
negative count as 0. For F = A ⊗ G the eigenvalues are the products a_i g_j. What f
closes over may be traced.

Derivatives of any order are in `natgrad.solvers.chains`: they are those of f(F), which
is smooth where f is, also where eigenvalues repeat and eigenvectors have none.

Source: Higham (2008), Functions of Matrices, sections 1.2 and 3.2.
"""

from __future__ import annotations

import enum
import functools
import itertools
from collections.abc import Callable, Sequence
from typing import NamedTuple

import jax
import jax.numpy as jnp
from jaxtyping import Float

from natgrad.control_flow import lifted
from natgrad.solvers.chains import Chain, contraction, missing
from natgrad.solvers.divided_differences import divided_difference, quotient
from natgrad.solvers.spd_inverse import together
from natgrad.solvers.spectral import HIGHEST, eigh
from natgrad.typing import Array

# Names of the axes of each factor's chain.
_NAMES = ("abcdefgh", "ijklmno")
# Of an array of eigenvalues, elementwise.
Spectral = Callable[[Array], Array]


def shifted(f: Spectral, damping: Array) -> Spectral:
    """s -> f(s + λ).

    Args:
        f: of eigenvalues.
        damping: λ.
    """
    return lambda s: f(s + damping)


class Factor(NamedTuple):
    """A symmetric matrix, and its eigendecomposition as constants.

    Attributes:
        matrix: A, which carries the derivative.
        values: its eigenvalues, ascending, those below 0 as 0.
        vectors: their eigenvectors as columns.
    """

    matrix: Float[Array, "n n"]
    values: Float[Array, " n"]
    vectors: Float[Array, "n n"]


def decomposed(matrices: Sequence[Float[Array, "*lead n n"]]) -> list[Factor]:
    """Each matrix with its eigendecomposition; those of one size by one program.

    Args:
        matrices: symmetric.
    """
    pairs = together(eigh, jax.lax.stop_gradient(list(matrices)))
    return [
        Factor(matrix, jnp.maximum(values, 0), vectors)
        for matrix, (values, vectors) in zip(matrices, pairs, strict=True)
    ]


def apply(f: Spectral, factors: Sequence[Factor], v: Float[Array, "n m"]) -> Array:
    """f(A) V, or of two factors the matrix of f(A ⊗ G) vec V.

    Args:
        f: of eigenvalues.
        factors: (A,), or (A, G).
        v: V, [n, m]; of two factors [I, O].

    Returns:
        An array like V.
    """
    return _contraction(f, factors, _Ends.VECTORS, (None, v))


def trace(f: Spectral, factors: Sequence[Factor]) -> Float[Array, ""]:
    """tr f(A), or tr f(A ⊗ G).

    Args:
        f: of eigenvalues.
        factors: (A,), or (A, G).
    """
    return _contraction(f, factors, _Ends.TRACE, (None,))


def diagonal(f: Spectral, factors: Sequence[Factor]) -> Float[Array, "..."]:
    """diag f(A), or that of f(A ⊗ G) as a matrix [I, O].

    Args:
        f: of eigenvalues.
        factors: (A,), or (A, G).
    """
    return _contraction(f, factors, _Ends.DIAGONAL, (None,))


def from_zero(f: Spectral) -> Spectral:
    """s -> (f(s) − f(0))/s, with the limit f'(0) at 0.

    Args:
        f: of eigenvalues.
    """
    return lambda s: quotient(f, s, jnp.zeros_like(s))


class _Ends(enum.Enum):
    """What stands at the ends of a chain."""

    VECTORS = enum.auto()  # W at the left, V at the right
    TRACE = enum.auto()  # each other; W is a number
    DIAGONAL = enum.auto()  # each other, entry by entry; W is one number an entry


def _contraction(f, factors, ends, operands):
    run, constants = lifted(f, jnp.zeros((), factors[0].values.dtype))
    count = len(factors)
    evaluate = functools.partial(_evaluate, ends)
    chain = Chain(evaluate, run, (0,) * count)
    matrices = tuple([(each.matrix + each.matrix.mT) / 2] for each in factors)
    bases = tuple((each.values, each.vectors) for each in factors)
    return contraction(chain, matrices, bases, tuple(constants), operands)


def _evaluate(ends, chain, matrices, bases, constants, operands):
    """One einsum over eigenvalues; see `natgrad.solvers.chains.contraction`."""
    del matrices
    letters = _letters(ends, chain)
    slots, left_out = _subscripts(ends, letters), missing(operands)
    terms, arrays = [], []
    for slot, (subscripts, operand) in enumerate(zip(slots, operands, strict=True)):
        if slot != left_out:
            array = operand[0] if isinstance(operand, dict) else operand
            terms.append(subscripts)
            arrays.append(_rotated(array, subscripts, bases, back=False))
    if ends is _Ends.DIAGONAL:
        for end, places, (_, vectors) in zip("pq", letters, bases, strict=False):
            terms += [end + places[0], end + places[-1]]
            arrays += [vectors, vectors]
    terms.append("".join(dict.fromkeys("".join(letters))))
    arrays.append(_differences(chain, letters, bases, constants))
    wanted = slots[left_out]
    out = "".join(dict.fromkeys(wanted))
    found = jnp.einsum(f"{','.join(terms)}->{out}", *arrays, precision=HIGHEST)
    found = _rotated(found, wanted, bases, back=True)
    inside = 0 < left_out <= sum(chain.counts)
    return {0: found} if inside else found


def _letters(ends: _Ends, chain: Chain) -> list[str]:
    """The axes of each factor's chain, from left to right; see `_Ends`."""
    letters = [
        names[: count + 1] for names, count in zip(_NAMES, chain.counts, strict=False)
    ]
    if ends is not _Ends.TRACE:
        return letters
    return [each if len(each) == 1 else each[:-1] + each[0] for each in letters]


def _subscripts(ends: _Ends, letters: list[str]) -> list[str]:
    """The axes of every operand."""
    middle = [a + b for each in letters for a, b in itertools.pairwise(each)]
    column = "z" if len(letters) == 1 else ""
    left, right = ("".join(each[end] for each in letters) for end in (0, -1))
    if ends is _Ends.VECTORS:
        return [left + column, *middle, right + column]
    return ["pq"[: len(letters)] if ends is _Ends.DIAGONAL else "", *middle]


def _rotated(array, subscripts: str, bases, back: bool) -> Array:
    """In the eigenbases along the axes of the chains; back, out of them."""
    if len(set(subscripts)) < len(subscripts):
        array = jnp.diag(array) if back else array
    for axis, name in enumerate(subscripts):
        for names, (_, vectors) in zip(_NAMES, bases, strict=False):
            if name in names:
                u = vectors if back else vectors.T
                array = jnp.tensordot(array, u, (axis, 1), precision=HIGHEST)
                array = jnp.moveaxis(array, -1, axis)
    return array


def _differences(chain: Chain, letters: list[str], bases, constants) -> Array:
    """f[s_i0, …, s_in], one axis for each letter."""
    axes = "".join(dict.fromkeys("".join(letters)))
    sizes = {
        name: values.size
        for each, (values, _) in zip(letters, bases, strict=True)
        for name in each
    }
    shape = tuple(sizes[name] for name in axes)

    def points(each, values):
        for name in each:
            own = [-1 if axis == name else 1 for axis in axes]
            yield jnp.broadcast_to(values.reshape(own), shape)

    f = chain.f(constants)
    grids = [
        list(points(each, values))
        for each, (values, _) in zip(letters, bases, strict=True)
    ]
    if len(grids) == 1:
        return divided_difference(f, grids[0])

    def of_left(a):
        return divided_difference(lambda b: f(a * b), grids[1])

    return divided_difference(of_left, grids[0])
