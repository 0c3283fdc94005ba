"""The energy and its gradient, from the local energies of configurations.

    E_loc(x) = (Hψ)(x)/ψ(x),      E = ⟨E_loc⟩,      O = ∂ log ψ/∂θ,
    ∂E/∂θ = 2 Re⟨(O − Ō)* E_loc⟩

for real θ and the mean ⟨·⟩ over the examples, which are draws from |ψ|² or, for a full
sum, all configurations with `Model(weights=)` in proportion to |ψ|². No O is formed:
one forward and one backward pass. A complex parameter x + i y has ∂/∂x + i ∂/∂y, which
optax descends along; for a holomorphic ψ that is 2⟨(O − Ō)* E_loc⟩.

Source: Becca & Sorella, Quantum Monte Carlo Approaches for Correlated Systems (2017),
section 6.3.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Float, Num

from natgrad.families import Unnormalized
from natgrad.families.unnormalized import is_amplitude
from natgrad.model import Model
from natgrad.typing import Array, Inputs, Params


def force(
    model: Model, params: Params, inputs: Inputs, values: Num[Array, " N"]
) -> Params:
    """Re⟨(O − Ō)* a⟩ for one number a an example.

    Args:
        model: with the family `Unnormalized`: z = log ψ, complex [N] or as (log |ψ|,
            phase), [N, 2]; or z = 2 log ψ, real [N].
        params: θ; complex leaves are x + i y.
        inputs: a batch of N configurations.
        values: a, [N], real or complex, such as local energies.

    Returns:
        A tree like the parameters. A leaf x + i y has Re⟨O_x* a⟩ + i Re⟨O_y* a⟩.

    Raises:
        ValueError: for another family, or values of another shape.
    """
    return _mean_and_force(model, params, inputs, values)[1]


def energy_and_gradient(
    model: Model, params: Params, inputs: Inputs, local_energies: Num[Array, " N"]
) -> tuple[Float[Array, ""], Params]:
    """(E, ∂E/∂θ), estimated from draws or summed over all configurations.

    Args:
        model: as for `force`.
        params: θ.
        inputs: a batch of N configurations.
        local_energies: (Hψ)(x)/ψ(x) of each, [N].

    Returns:
        Re⟨E_loc⟩, in the units of the local energies, and 2 `force`: of complex leaves
        the conjugate of what `jax.grad` would give, as optax takes it.

    Raises:
        ValueError: as for `force`.
    """
    energy, half = _mean_and_force(model, params, inputs, local_energies)
    return energy, jax.tree.map(lambda leaf: 2 * leaf, half)


def _mean_and_force(model, params, inputs, values) -> tuple[Array, Params]:
    """Re⟨a⟩ and `force`."""
    if not isinstance(model.family, Unnormalized):
        raise ValueError(
            "Local energies belong to a wave function: a Model with the family "
            f"natgrad.families.Unnormalized(), got {model.family!r}."
        )
    z, pull = jax.vjp(lambda params: model.outputs(params, inputs), params)
    examples, total = model.examples(params, inputs)
    values, weights = jnp.asarray(values), examples.weights
    if values.shape != weights.shape:
        raise ValueError(
            "One local energy a configuration is needed: expected shape "
            f"{weights.shape}, got {values.shape}."
        )
    values = jnp.where(weights == 0, 0, values)
    mean = jnp.sum(weights * values) / total
    shares = weights * (values - mean) / total
    real, imag = jnp.real(shares), jnp.imag(shares)
    # Of z = 2 log ψ, O is half the derivative.
    columns = jnp.stack([real, imag], -1) if is_amplitude(z[0]) else real / 2
    (pulled,) = pull(columns.astype(z.dtype))  # ∂/∂x − i ∂/∂y
    return jnp.real(mean), jax.tree.map(jnp.conj, pulled)
