"""Inverses of damped Kronecker factors that are kept: renewed, and how stale they are.

See `natgrad.metrics.kronecker` for the inverses, `natgrad.transforms.renewal` for when.
"""

from __future__ import annotations

from collections.abc import Sequence

import jax.numpy as jnp
import numpy as np
from jaxtyping import Bool, Float

from natgrad import tree
from natgrad.metrics.kronecker.factors import Factors, Inverted, damping_shares
from natgrad.solvers.block_elimination import InverseRule
from natgrad.solvers.renewed_inverses import Kept, renewed_inverses
from natgrad.solvers.spectral import HIGHEST, damped_reciprocal
from natgrad.typing import Array


def renew_damped(
    factors: Sequence[Factors],
    dampings: Sequence[Float[Array, ""]],
    due: Sequence[Bool[Array, ""]],
    old: Sequence[Inverted],
    first: Bool[Array, ""],
    rule: InverseRule,
) -> tuple[tuple[Inverted, ...], Array]:
    """As `invert_damped` for the blocks that are due, the others as they were.

    Args:
        factors: A and G of each block.
        dampings: λ >= 0 of each block, in the units of A ⊗ G.
        due: of each block.
        old: its inverses so far.
        first: are these none yet? Else an inverse that is not finite replaces none.
        rule: how a factor is inverted.

    Returns:
        The inverses, and how many were renewed.
    """
    shares = damping_shares(factors, dampings)
    full = [i for i, (a, g) in enumerate(factors) if a.ndim == g.ndim]
    lefts = [Kept(factors[i][0], shares[i][0], due[i], old[i].inputs) for i in full]
    rights = [
        Kept(g, share, now, before.outputs)
        for (_, g), (_, share), now, before in zip(
            factors, shares, due, old, strict=True
        )
    ]
    results, failed, count = renewed_inverses(lefts + rights, first, rule)
    of_left = dict(zip(full, zip(results, failed, strict=False), strict=False))
    of_right = zip(results[len(full) :], failed[len(full) :], strict=True)
    renewed = []
    for i, (outputs, failure) in enumerate(of_right):
        if i in of_left:
            inputs, other = of_left[i]
            fallback = jnp.maximum(failure, other) > 0
        else:
            inverse, dropped = damped_reciprocal(factors[i][0], shares[i][0][..., None])
            taken = due[i] & (first | tree.all_finite(inverse))
            inputs = jnp.where(taken, inverse, old[i].inputs)
            fallback = (failure > 0) | dropped
        fallback = jnp.where(due[i], fallback, old[i].fallback)
        renewed.append(Inverted(inputs, outputs, fallback))
    return tuple(renewed), count


def staleness(
    factors: Sequence[Factors],
    dampings: Sequence[Float[Array, ""]],
    kept: Sequence[Inverted],
) -> Float[Array, " blocks"]:
    """|M⁻¹ M' v − v| / |v| for a vector v of signs, the larger of both factors.

    Args:
        factors: A and G of each block.
        dampings: λ >= 0 of each block, in the units of A ⊗ G.
        kept: M⁻¹, the inverses of earlier damped factors. M' is today's.

    Returns:
        One number a block; of a stack of matrices the largest.
    """
    longest = max(g.shape[-1] for pair in factors for g in pair)
    signs = np.random.default_rng(0).choice([-1.0, 1.0], longest)

    def residual(inverse, matrix, share, full):
        v = jnp.asarray(signs[: matrix.shape[-1]], matrix.dtype)
        if full:
            moved = jnp.matmul(matrix, v, precision=HIGHEST) + share[..., None] * v
            moved = jnp.matmul(inverse, moved[..., None], precision=HIGHEST)[..., 0]
        else:
            moved = inverse * (matrix + share[..., None]) * v
        square = jnp.max(jnp.sum((moved - v) ** 2, -1))
        return jnp.sqrt(square / matrix.shape[-1])

    found = [
        jnp.maximum(
            residual(inverse.inputs, a, left, a.ndim == g.ndim),
            residual(inverse.outputs, g, right, True),
        )
        for (a, g), inverse, (left, right) in zip(
            factors, kept, damping_shares(factors, dampings), strict=True
        )
    ]
    return jnp.stack(found)
