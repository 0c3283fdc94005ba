"""Wave functions in real and imaginary time against scipy's exponential of H."""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import scipy.linalg
from wave_functions import COUNT, H, drawn, energy, local_energies, problem, ravel

import natgrad as ng
from natgrad.curvature import Centred, Dense

AMPLITUDES = ng.Model(
    lambda p, inputs: p[inputs["index"]],
    ng.families.Unnormalized(),
    weights=lambda inputs: inputs["weight"],
)
STATE = drawn(5, COUNT)[0]  # log ψ of each configuration: all of Hilbert space


def moved(motion, steps, duration):
    """log ψ after so many steps of the classical Runge-Kutta method."""
    curvature, index = Dense(AMPLITUDES, Centred()), jnp.arange(COUNT)

    def velocity(z):
        psi = jnp.exp(z)
        inputs = {"index": index, "weight": jnp.abs(psi) ** 2}
        return motion(curvature, z, inputs, jnp.asarray(H) @ psi / psi)

    def step(z, _):
        h = duration / steps
        a = velocity(z)
        b = velocity(z + h / 2 * a)
        c = velocity(z + h / 2 * b)
        d = velocity(z + h * c)
        return z + h / 6 * (a + 2 * b + 2 * c + d), None

    run = lambda z: jax.lax.scan(step, z, length=steps)[0]
    return np.exp(np.asarray(jax.jit(run)(jnp.asarray(STATE))))


def infidelity(psi, other):
    overlap = abs(np.vdot(psi, other)) ** 2
    return 1 - overlap / (np.vdot(psi, psi) * np.vdot(other, other)).real


def distance(psi, other):
    """Of normalised states, the phase aside: √(1 − fidelity)."""
    return np.sqrt(max(infidelity(psi, other), 0))


def test_real_time_is_schrodingers_equation_to_the_order_of_the_integrator():
    before = np.exp(STATE)
    exact = scipy.linalg.expm(-0.5j * H) @ before
    coarse, fine = (moved(ng.variational.real_time, n, 0.5) for n in (20, 40))
    first, second = distance(coarse, exact), distance(fine, exact)
    assert second < 1e-5
    assert 2**3.5 < first / second < 2**4.7
    assert abs(energy(fine) - energy(before)) < 1e-6
    assert abs(energy(before) - energy(exact)) < 1e-12
    assert distance(before, exact) > 0.3


def test_imaginary_time_follows_exp_and_ends_in_the_ground_state():
    exact = scipy.linalg.expm(-0.5 * H) @ np.exp(STATE)
    coarse, fine = (moved(ng.variational.imaginary_time, n, 0.5) for n in (10, 20))
    assert distance(fine, exact) < 1e-5
    assert 2**3.3 < distance(coarse, exact) / distance(fine, exact) < 2**4.7
    late = moved(ng.variational.imaginary_time, 150, 12.0)
    values, vectors = np.linalg.eigh(H)
    assert energy(late) - values[0] < 1e-8
    assert infidelity(late, vectors[:, 0]) < 1e-8


def test_real_time_of_a_holomorphic_state_keeps_its_energy():
    """θ̇ is orthogonal to ∂E/∂θ although the ansatz misses most of the states."""
    known = problem("complex")
    dense, cut = Dense(known.model, Centred()), ng.solvers.HardCutoff(1e-10)

    @jax.jit
    def found(params):
        arguments = params, known.inputs, local_energies(params)
        velocity = ng.variational.real_time(dense, *arguments, solver=cut)
        return ng.variational.energy_and_gradient(known.model, *arguments)[1], velocity

    g, v = map(ravel, found(known.tree))
    assert np.linalg.norm(v) > 0.1
    assert abs(g @ v) < 1e-9 * np.linalg.norm(g) * np.linalg.norm(v)
