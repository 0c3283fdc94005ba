"""Complex wave functions against dense linear algebra on three spins.

The oracles are numpy: derivatives of log ψ by hand, and the matrix of H.
"""

from __future__ import annotations

import jax
import jax.numpy as jnp
import numpy as np
import pytest
from problems import relative_error
from wave_functions import (
    COUNT,
    DAMPING,
    SPINS,
    H,
    derivatives,
    drawn,
    local_energies,
    log_psi,
    problem,
    psi_of,
    ravel,
)

import natgrad as ng
from natgrad.curvature import Centred, Dense, Gram
from natgrad.tree import join_complex, split_complex

FORMS = ["KLHessian", "Dense", "BlockDiagonal", "Diagonal", "Gram", "GramBlocks"]
WHOLE = {"KLHessian", "Dense", "Gram", "MatrixFree"}


@pytest.mark.parametrize("form", [*FORMS, "MatrixFree"])
@pytest.mark.parametrize("kind", ["complex", "mixed"])
def test_each_curvature_is_the_real_part_of_the_geometric_tensor(form, kind):
    """Re⟨(O − Ō)* (O − Ō)ᵀ⟩ or its blocks, and (S + λI)⁻¹ v, by hand."""
    known = problem(kind, full=kind == "mixed")
    curvature = getattr(ng.curvature, form)(known.model, Centred())
    pairs = split_complex(known.tree)
    v = jax.tree.map(jnp.ones_like, pairs)

    @jax.jit
    def found(pairs):
        metric = curvature.at(pairs, known.inputs)
        solved = metric.solve(v, DAMPING)
        return metric.diagonal(), solved, metric.mv(v), metric.mv(solved)

    diagonal, solved, product, again = map(ravel, found(pairs))
    assert relative_error(diagonal, np.diag(known.matrix)) < 1e-12
    ones = np.ones(len(product))
    assert relative_error(again + DAMPING * solved, ones) < 1e-8
    if form in WHOLE:
        assert relative_error(product, known.matrix @ ones) < 1e-12
    if form == "Diagonal":
        assert relative_error(product, np.diag(known.matrix)) < 1e-12


def test_log_modulus_and_phase_are_the_same_as_complex_numbers():
    known = problem("mixed")

    def columns(p, inputs):
        z = log_psi(p, inputs["s"].astype(complex))
        return jnp.stack([z.real, z.imag], axis=-1)

    model = ng.Model(columns, ng.families.Unnormalized(), weights=known.model.weights)
    found = jax.jit(Dense(model, Centred()).at)(
        split_complex(known.tree), known.inputs
    ).dense()
    assert relative_error(found, known.matrix) < 1e-12


def test_the_metric_of_a_positive_amplitude_is_a_quarter_of_that_of_its_density():
    """z = log ψ gives S and z = 2 log ψ the Fisher information, 4 S."""
    rows = jnp.asarray(np.random.default_rng(2).normal(size=(COUNT, 2)))

    def matrix(apply):
        curvature = Dense(ng.Model(apply, ng.families.Unnormalized()), Centred())
        return jax.jit(lambda p: curvature.at(p, rows).dense())(jnp.ones(2))

    amplitude = matrix(lambda p, x: (x @ p).astype(complex))
    density = matrix(lambda p, x: 2 * x @ p)
    assert relative_error(density, 4 * amplitude) < 1e-12
    assert relative_error(amplitude, np.cov(rows.T, bias=True)) < 1e-12


@pytest.mark.parametrize("kind", ["complex", "mixed"])
def test_the_gradient_of_a_full_sum_is_that_of_the_energy(kind):
    """∂/∂x + i ∂/∂y of ⟨ψ|H|ψ⟩/⟨ψ|ψ⟩, the conjugate of `jax.grad`."""
    known = problem(kind)

    def exact(params):
        psi = psi_of(params)
        norm = jnp.sum(jnp.abs(psi) ** 2)
        return jnp.real(jnp.vdot(psi, jnp.asarray(H) @ psi)) / norm

    value, gradient = jax.jit(jax.value_and_grad(exact))(known.tree)
    found = jax.jit(
        lambda p: ng.variational.energy_and_gradient(
            known.model, p, known.inputs, local_energies(p)
        )
    )(known.tree)
    assert abs(found[0] - value) < 1e-12
    assert jax.tree.map(jnp.result_type, found[1]) == jax.tree.map(
        jnp.result_type, known.tree
    )
    expected = ravel(jax.tree.map(np.conj, gradient))
    assert relative_error(ravel(found[1]), expected) < 1e-12


def test_the_gradient_of_samples_is_a_covariance_of_local_energies():
    known = problem("mixed", full=False)
    model = ng.Model(known.model.apply, ng.families.Unnormalized())
    values = np.asarray(drawn(3, len(known.s))[0])
    value, gradient = ng.variational.energy_and_gradient(
        model, known.tree, known.inputs, values
    )
    assert abs(value - values.real.mean()) < 1e-13
    assert relative_error(ravel(gradient), 2 * known.force(values)) < 1e-12
    found = ng.variational.force(model, known.tree, known.inputs, -1j * values)
    assert relative_error(ravel(found), known.force(-1j * values)) < 1e-12


def test_the_gradient_of_a_density_is_half_a_covariance_with_its_scores():
    """z = 2 log ψ: 2⟨(O − Ō) E_loc⟩ with O = ½ ∂z."""
    rows, values = np.random.default_rng(4).normal(size=(2, 6))[:, :, None]
    model = ng.Model(lambda p, x: x @ p, ng.families.Unnormalized())
    _, gradient = ng.variational.energy_and_gradient(
        model, jnp.ones(1), rows, values[:, 0]
    )
    covariance = np.cov(rows[:, 0], values[:, 0], bias=True)[0, 1]
    assert relative_error(gradient, [covariance]) < 1e-12
    velocity = ng.variational.imaginary_time(
        Dense(model, Centred()), jnp.ones(1), rows, values[:, 0], damping=0.1
    )
    s, f = np.var(rows) / 4, np.asarray(gradient) / 2
    assert relative_error(velocity, -f / (s + 0.1)) < 1e-12


def test_damping_of_a_velocity_is_by_layer_in_the_units_of_s():
    """z = 2 log ψ, whose F is 4 S; Relative is so to either."""
    rows, values = np.random.default_rng(5).normal(size=(2, 7, 2))
    params = {"a": jnp.ones(1), "b": jnp.ones(1)}
    model = ng.Model(
        lambda p, x: x @ jnp.concatenate([p["a"], p["b"]]),
        ng.families.Unnormalized(),
    )

    @jax.jit
    def velocity(damping):
        curvature = Dense(model, Centred())
        arguments = curvature, params, rows, values[:, 0]
        return ng.variational.imaginary_time(*arguments, damping=damping)

    scores = (rows - rows.mean(0)) / 2
    tensor, force = scores.T @ scores / 7, scores.T @ values[:, 0] / 7
    for damping, own in (
        ({"a": 0.1, "b": 0.3}, [0.1, 0.3]),
        (ng.Relative(0.2), [0.1 * np.trace(tensor)] * 2),
    ):
        expected = -np.linalg.solve(tensor + np.diag(own), force)
        assert relative_error(ravel(velocity(damping)), expected) < 1e-12


def test_a_holomorphic_step_is_the_complex_solve():
    """(⟨O† O⟩ + λ)⁻¹ ⟨O† E⟩ in complex numbers, which splitting must not change."""
    known = problem("complex")
    values = np.asarray(local_energies(known.tree))
    found = derivatives(known.params, known.s)
    each = np.hstack([found[name][0] for name in sorted(found)])
    share = known.weights / known.weights.sum()
    each = each - share @ each
    tensor = (each.conj().T * share) @ each
    right = each.conj().T @ (share * values)
    expected = np.linalg.solve(tensor + DAMPING * np.eye(len(right)), right)
    curvature = Gram(known.model, Centred())

    @jax.jit
    def velocities(params):
        arguments = curvature, params, known.inputs, values
        return [
            motion(*arguments, damping=DAMPING)
            for motion in (ng.variational.imaginary_time, ng.variational.real_time)
        ]

    for velocity, phase in zip(velocities(known.tree), (-1, -1j), strict=True):
        flat = np.concatenate([np.ravel(velocity[name]) for name in sorted(velocity)])
        assert np.linalg.norm(flat / phase - expected) < 1e-9 * np.linalg.norm(flat)


# Wrong use --------------------------------------------------------------------------


def test_what_is_no_wave_function_is_refused():
    known = problem("complex")
    psi, inputs = known.model, known.inputs
    values = jnp.ones(COUNT)
    normal = ng.Model(lambda p, x: x @ p, ng.families.NormalMean())
    pair = jnp.ones((4, 2))
    refused = pytest.raises
    with refused(ValueError, match="family natgrad.families.Unnormalized"):
        ng.variational.force(normal, jnp.ones((2, 1)), pair, jnp.ones(4))
    with refused(ValueError, match=r"expected shape \(8,\), got \(3,\)"):
        ng.variational.force(psi, known.tree, inputs, values[:3])
    with refused(ValueError, match="Centred"):
        ng.variational.real_time(Dense(psi), known.tree, inputs, values)
    real = ng.Model(lambda p, x: x @ p, ng.families.Unnormalized())
    with refused(ValueError, match="turns phases"):
        ng.variational.real_time(Dense(real, Centred()), jnp.ones(2), pair, jnp.ones(4))
    with refused(ValueError, match=r"\[N, 2\] with NormalMean"):
        Dense(normal, Centred()).at(jnp.ones((2, 2)), pair)
    with refused(ValueError, match=r"one number an example.*\[N, 3\]"):
        Dense(real, Centred()).at(jnp.ones((2, 3)), pair)
    with refused(ValueError, match="draws of its own"):
        psi.sample(jax.random.key(0), known.tree, inputs)
    imaginary = ng.Model(lambda p, x: 1j * (x @ p), ng.families.NormalMean())
    with refused(ValueError, match="one real floating array.*Unnormalized"):
        imaginary.outputs(jnp.ones((2, 1)), pair)


def test_pairs_are_joined_as_they_were():
    tree = {"w": jnp.ones((2, 3), jnp.complex64), "b": jnp.ones(2), "n": None}
    pairs = split_complex(tree)
    assert ng.tree.paths(pairs) == ["b", "w/real", "w/imag"]
    assert pairs["w"].real.dtype == jnp.float32
    joined = join_complex(pairs)
    assert jax.tree.structure(joined) == jax.tree.structure(tree)
    assert joined["w"].dtype == jnp.complex64


def test_undamped_steps_do_not_depend_on_complex_coordinates():
    """θ = L φ with a complex L: the step of φ, mapped by L, is the step of θ."""
    known = problem("complex")
    mix = np.eye(SPINS) + drawn(6, (SPINS, SPINS))[0]

    def velocity(change):
        apply = lambda a, inputs: log_psi(
            known.tree | {"a": change @ a}, inputs["s"].astype(complex)
        )
        model = ng.Model(apply, ng.families.Unnormalized(), weights=known.model.weights)
        start = jnp.linalg.solve(change, known.tree["a"])
        values = local_energies(known.tree)
        return change @ ng.variational.real_time(
            Dense(model, Centred()), start, known.inputs, values
        )

    plain, mixed = jax.jit(jax.vmap(velocity))(jnp.stack([jnp.eye(SPINS), mix]))
    assert np.linalg.norm(plain) > 0.1
    assert np.linalg.norm(mixed - plain) < 1e-10 * np.linalg.norm(plain)
