"""M⁻¹ of a positive definite matrix by products alone: the coupled Newton-Schulz rule.

With ν >= |M| and Y₀ = M/ν, Z₀ = I,

    T = a (3I − a² Z Y)/2,     Y ← Y T,     Z ← T Z,

Y tends to (M/ν)^½ and Z to its inverse, so that M⁻¹ = Z Zᵀ/ν, which is never
indefinite. The eigenvalues of Z Y are the squares t² of numbers that a turn maps to
a t (3 − a² t²)/2. They begin in [l, 1], l² = δ/ν for a bound δ below M, and the scale
a² = 3/(1 + l + l²) makes the lowest grow the most: 2.6-fold while l is small. Then they
converge to 1 quadratically, without a scale.

Other orders of the products, Z Y made symmetric, or X ← X (2I − M X) itself, whose
error in large directions of M grows as κ², are not stable.

The operations are those of 3 K + 1 products for K turns, 50 times those of an
elimination for 16 of them: a rule for devices that do products that much faster than
factorisations. The products are of full precision.

Source: Higham (2008), Functions of Matrices, chapter 6, for the coupled
iteration and its stability; Chen & Chow (2014), A stable scaling of Newton-Schulz for
improving the sign function computation of a Hermitian matrix, for the scale.
"""

from __future__ import annotations

import dataclasses
from typing import final

import jax
import jax.numpy as jnp
from jaxtyping import Bool, Float

from natgrad.solvers.block_elimination import InverseRule, product
from natgrad.typing import Array

# Of |I − Z Y| over √(d ε), where turns have converged and M⁻¹ has digits.
_CONVERGED = 1 / 3


@final
@dataclasses.dataclass(frozen=True)
class NewtonSchulz(InverseRule):
    """M⁻¹ by coupled Newton-Schulz turns: products alone, no factorisation.

    As precise as elimination wherever it vouches for the result: |I − Z Y| <= √(d ε)/3,
    which in float32 is so up to conditions of about 10⁷. It is not so where δ is 0, nor
    where the turns do not suffice: 16 are for |M|/δ up to 10⁸, |M| being the largest
    sum of absolute values in a row.

    Attributes:
        turns: K.
    """

    turns: int = 16

    def __post_init__(self):
        if not isinstance(self.turns, int) or self.turns < 1:
            raise ValueError(
                f"NewtonSchulz(turns=...) is an integer >= 1, got {self.turns!r}."
            )

    def __call__(
        self, matrix: Float[Array, "d d"], floor: Float[Array, ""]
    ) -> tuple[Float[Array, "d d"], Bool[Array, ""]]:
        """M⁻¹, and whether the turns converged.

        Args:
            matrix: M, symmetric.
            floor: δ >= 0, of which M − δI is positive semi-definite.
        """
        eye = jnp.eye(matrix.shape[0], dtype=matrix.dtype)
        norm = jnp.max(jnp.sum(jnp.abs(matrix), axis=1))

        def turn(_, carried):
            y, z, low = carried
            square = 3 / (1 + low + low**2)
            scale = jnp.sqrt(square)
            step = scale / 2 * (3 * eye - square * product(z, y))
            low = scale * low * (3 - square * low**2) / 2
            return product(y, step), product(step, z), low

        start = (matrix / norm, eye, jnp.sqrt(floor / norm))
        y, z, _ = jax.lax.fori_loop(0, self.turns, turn, start)
        square = jnp.mean(jnp.sum((eye - product(z, y)) ** 2, axis=1))
        vouched = square <= _CONVERGED**2 * jnp.finfo(matrix.dtype).eps
        return product(z, z.T) / norm, vouched
