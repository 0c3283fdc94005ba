"""Motion of a wave function in imaginary and in real time.

The derivative θ̇ of real parameters whose ψ_θ changes most nearly as Schrödinger's
equation asks, norm and phase apart (McLachlan's principle):

    dψ/dτ = −H ψ:        S θ̇ = −Re⟨(O − Ō)* E_loc⟩        (imaginary time)
    i dψ/dt = H ψ:       S θ̇ = Im⟨(O − Ō)* E_loc⟩         (real time, TDVP)

with S = Re⟨(O − Ō)* (O − Ō)ᵀ⟩. Complex parameters are pairs of real ones; for a
holomorphic ψ that is the complex equation with −i. A step of Euler's method in
imaginary time is one of stochastic reconfiguration.

S is singular where parameters are redundant: damp it, or cut it off by `solver=` with
a filter of `natgrad.solvers`.

Source: Yuan, Endo, Zhao, Li & Benjamin (2019), Theory of variational quantum
simulation; Carleo & Troyer (2017), Solving the quantum many-body problem with
artificial neural networks.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
from jaxtyping import Num

from natgrad.curvature.base import Curvature
from natgrad.solvers.base import Solver
from natgrad.solvers.damping import DampingLike, OfMetric, resolve_damping
from natgrad.tree import join_complex, split_complex
from natgrad.typing import Array, Inputs, Params
from natgrad.variational.energy import force


def imaginary_time(
    curvature: Curvature,
    params: Params,
    inputs: Inputs,
    local_energies: Num[Array, " N"],
    *,
    damping: DampingLike = 0.0,
    solver: Solver | None = None,
) -> Params:
    """dθ/dτ = −(S + λI)⁻¹ Re⟨(O − Ō)* E_loc⟩: towards the ground state.

    Args:
        curvature: with `Centred` labels, of a model as for `force`, such as
            `natgrad.curvature.Gram(model, Centred())`.
        params: θ.
        inputs: a batch of N configurations.
        local_energies: (Hψ)(x)/ψ(x) of each, [N].
        damping: λ >= 0, in the units of S; by layer: `natgrad.solvers.damping`.
        solver: (metric, v, λ) -> θ̇, such as `natgrad.solvers.HardCutoff(1e-8)`; None
            for the metric's own.

    Returns:
        A tree like the parameters, in their units over those of 1/energy.

    Raises:
        ValueError: for other labels, another family, or energies of another shape.
    """
    energies = jnp.asarray(local_energies)
    return _velocity(curvature, params, inputs, -energies, damping, solver)


def real_time(
    curvature: Curvature,
    params: Params,
    inputs: Inputs,
    local_energies: Num[Array, " N"],
    *,
    damping: DampingLike = 0.0,
    solver: Solver | None = None,
) -> Params:
    """dθ/dt = (S + λI)⁻¹ Im⟨(O − Ō)* E_loc⟩, for ħ = 1.

    For a ψ that is holomorphic in its parameters full sums and λ = 0 conserve E.

    Args:
        curvature: as for `imaginary_time`, of a ψ with a phase.
        params: θ.
        inputs: a batch of N configurations.
        local_energies: (Hψ)(x)/ψ(x) of each, [N].
        damping: λ >= 0, in the units of S; by layer: `natgrad.solvers.damping`.
        solver: as for `imaginary_time`.

    Returns:
        A tree like the parameters, in their units over those of 1/energy.

    Raises:
        ValueError: as for `imaginary_time`, and for a ψ without a phase.
    """
    pairs = split_complex(params)
    if jax.eval_shape(curvature.model.outputs, pairs, inputs).ndim == 1:
        raise ValueError(
            "Real time turns phases, and the model's z is real, [N]: give it z = log ψ "
            "as complex numbers [N], or (log |ψ|, phase) as [N, 2]."
        )
    energies = -1j * jnp.asarray(local_energies)
    return _velocity(curvature, params, inputs, energies, damping, solver)


def _velocity(curvature, params, inputs, values, damping, solver) -> Params:
    """(S + λI)⁻¹ Re⟨(O − Ō)* a⟩."""
    if not curvature.labels.centred:
        raise ValueError(
            "S is taken over scores less their mean: give the curvature Centred() "
            f"labels, got {curvature.labels}."
        )
    pairs = split_complex(params)
    right = force(curvature.model, pairs, inputs, values)
    metric = curvature.at(pairs, inputs)
    amplitude = jax.eval_shape(curvature.model.outputs, pairs, inputs).ndim == 2
    share = 1 if amplitude else 4  # F = 4 S of z = 2 log ψ
    solve = solver or (lambda metric, v, damping: metric.solve(v, damping))
    found = resolve_damping(damping, metric)
    if not isinstance(damping, OfMetric):  # which F decides, and not S
        found = jax.tree.map(lambda own: share * own, found)
    velocity = solve(metric, right, found)
    return join_complex(jax.tree.map(lambda leaf: share * leaf, velocity))
