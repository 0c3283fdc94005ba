"""Expected logarithms of factorials, from the generating function of a count.

With Malmsten's integral for log Γ(z) and the generating function G(x) = E[x^y],

    E[log Γ(y + 1)] = ∫₀^∞ (E[y] e^−t − (1 − G(e^−t))/(e^t − 1)) dt/t,

and likewise for the other gamma functions in the base measure of a law of counts, where
the first terms cancel. In log t the integrand falls off exponentially on both sides and
is analytic in the strip of half-width π/2: the trapezoidal rule with step 0.3 has an
error of e^−33.

Source: NIST Digital Library of Mathematical Functions, 5.9.19 (Malmsten's formula).
"""

from __future__ import annotations

from collections.abc import Callable

import jax
import jax.numpy as jnp
import numpy as np

from natgrad.typing import Array

_STEP = 0.3
_LOG_T = np.arange(-70.0, 10.0, _STEP)


def expectation_of_log_gamma(
    integrand: Callable[[Array, Array], Array], dtype: jnp.dtype
) -> Array:
    """∫₀^∞ integrand(t, 1 − e^−t) dt/t, for laws with means up to 1e12.

    Args:
        integrand: (t, 1 − e^−t), both of shape (), to values of any shape.
        dtype: the precision of t.

    Returns:
        The integral, shaped like the integrand's values.
    """
    ts = np.exp(_LOG_T)
    complements = jnp.asarray(-np.expm1(-ts), dtype)
    # Beyond, e^t overflows in single precision and the integrand is 0 or e^−rt.
    ts = jnp.asarray(ts, dtype)
    return _STEP * jnp.sum(jax.vmap(integrand)(ts, complements), axis=0)
