"""The error of a mean of correlated draws, by blocking.

Means of blocks of 1, 2, 4, … draws in a row are less and less correlated, and

    ε_b² = (variance of the n_b means of blocks of b)/n_b

grows with b to the square of the error of the mean, where blocks are longer than the
correlations. ε_b itself is uncertain by a factor of about 1 ± 1/√(2 n_b).

Source: Flyvbjerg & Petersen (1989), Error estimates on averages of correlated data.
"""

from __future__ import annotations

import math

import jax.numpy as jnp
from jaxtyping import Float, Num

from natgrad.typing import Array

# Blocks that an error is taken from at least: it is known to 9 %.
_FEWEST = 64


def mean_and_error(
    values: Num[Array, "T chains"],
) -> tuple[Num[Array, ""], Float[Array, ""]]:
    """The mean of all draws, and its standard error.

    The error is the largest of ε_b over b = 1, 2, 4, … as long as there are 64 blocks.
    It is too small where chains are correlated for longer than the last of these.

    Args:
        values: such as local energies: T in a row of each of several independent
            chains, [T, chains] or [T]; those of complex numbers count by |·|².

    Returns:
        Both in the units of the values. A remainder of T that makes no whole block
        counts in the mean, and not in that block's ε.

    Raises:
        ValueError: there are fewer than 64 values.
    """
    values = jnp.asarray(values)
    if values.ndim not in (1, 2) or math.prod(values.shape) < _FEWEST:
        raise ValueError(
            f"An error by blocking needs {_FEWEST} values or more, [T, chains] or [T]; "
            f"got shape {values.shape}. Draw more, or hand over every chain."
        )
    means, errors = values.reshape(len(values), -1), []
    while means.size >= _FEWEST:
        errors.append(jnp.std(means, ddof=1) / math.sqrt(means.size))
        even = means[: len(means) // 2 * 2]
        means = (even[::2] + even[1::2]) / 2
    return jnp.mean(values), jnp.max(jnp.stack(errors))
