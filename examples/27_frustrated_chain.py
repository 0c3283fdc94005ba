"""A frustrated chain: its ground state has signs, and the wave function is complex.

    H = Σ_i J₁ S_i·S_{i+1} + J₂ S_i·S_{i+2},   a ring of 10 spins of ½, J₂ = J₁/2,
    E₀ = −3/8 · 10 J₁     (Majumdar & Ghosh 1969: two states of singlet pairs)

No change of basis makes all amplitudes positive, so ψ_θ is a restricted Boltzmann
machine with complex weights, twice as many hidden units as spins. All 252
configurations of total spin 0 are summed over; each of them is two rows, real and
imaginary part, in the matrix of `Gram`.

    python examples/27_frustrated_chain.py [picture.png]

seed 0: relative error 2.0e-06, 1e-4 after 124 steps
seed 1: relative error 2.5e-06, 1e-4 after 102 steps
seed 2: relative error 2.3e-06, 1e-4 after 110 steps
seed 3: relative error 1.0e-06, 1e-4 after 110 steps
seed 4: relative error 4.5e-07, 1e-4 after 85 steps
"""

import itertools
import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
from matplotlib.figure import Figure

import natgrad as ng

jax.config.update("jax_enable_x64", True)

SPINS, HIDDEN, J1, J2 = 10, 20, 1.0, 0.5
STEPS, RATE, DAMPING, SEEDS = 300, 0.05, 1e-3, 5
EXACT = -3 / 8 * SPINS * J1


def configurations():
    """All with as many spins up as down, [252, 10] of ±1."""
    ups = [*itertools.combinations(range(SPINS), SPINS // 2)]
    s = -np.ones((len(ups), SPINS))
    np.put_along_axis(s, np.array(ups), 1, axis=1)
    return s


def hamiltonian(s):
    """H between them: S_i·S_j is s_i s_j/4, and ½ between s and s with both swapped."""
    numbers = {row.tobytes(): i for i, row in enumerate(s)}
    h = np.zeros((len(s), len(s)))
    for site, (distance, j) in itertools.product(range(SPINS), ((1, J1), (2, J2))):
        pair = [site, (site + distance) % SPINS]
        for i, row in enumerate(s):
            h[i, i] += j * np.prod(row[pair]) / 4
            if row[pair[0]] != row[pair[1]]:
                swapped = row.copy()
                swapped[pair] = row[pair[::-1]]
                h[i, numbers[swapped.tobytes()]] += j / 2
    return h


def log_psi(params, s):
    """log ψ of configurations [N, 10], complex [N]."""
    hidden = jnp.log(jnp.cosh(s @ params["w"] + params["b"]))
    return s @ params["a"] + jnp.sum(hidden, axis=-1)


def initial_params(key):
    shapes = {"a": (SPINS,), "b": (HIDDEN,), "w": (SPINS, HIDDEN)}
    keys = jax.random.split(key, len(shapes))
    return {
        name: 0.1 * jax.lax.complex(*jax.random.normal(key, (2, *shape)))
        for key, (name, shape) in zip(keys, shapes.items(), strict=True)
    }


S = jnp.asarray(configurations(), complex)
H = jnp.asarray(hamiltonian(configurations()), complex)
model = ng.Model(
    lambda params, inputs: log_psi(params, inputs["s"]),
    ng.families.Unnormalized(),
    weights=lambda inputs: inputs["weight"],
)
tx = ng.gram(
    RATE, model, labels=ng.curvature.Centred(), damping=DAMPING, trust_region=None
)


def step(carry, _):
    """One step of stochastic reconfiguration; the energy before it."""
    params, state = carry
    log = log_psi(params, S)
    psi = jnp.exp(log - jnp.max(log.real))
    inputs = {"s": S, "weight": jnp.abs(psi) ** 2}
    energy, gradient = ng.variational.energy_and_gradient(
        model, params, inputs, H @ psi / psi
    )
    updates, state = tx.update(gradient, state, params, inputs=inputs)
    return (optax.apply_updates(params, updates), state), energy


@jax.jit
def train(key):
    """The energy before each step."""
    params = initial_params(key)
    return jax.lax.scan(step, (params, tx.init(params)), length=STEPS)[1]


def main(picture=None):
    """Relative errors, [SEEDS, STEPS]."""
    runs = [np.asarray(train(jax.random.key(seed))) for seed in range(SEEDS)]
    errors = (np.array(runs) - EXACT) / abs(EXACT)
    for seed, run in enumerate(errors):
        first = np.argmax(run <= 1e-4) if run.min() <= 1e-4 else "never"
        print(f"seed {seed}: relative error {run[-1]:.1e}, 1e-4 after {first} steps")
    if picture is not None:
        figure = Figure(figsize=(5.5, 3.6), layout="constrained")
        axis = figure.subplots()
        axis.semilogy(errors.T, color="C0", alpha=0.6)
        axis.axhline(1e-4, color="black", linestyle=":", linewidth=1)
        axis.set(xlabel="step", ylabel="(E − E₀)/|E₀|", title="J₁-J₂ chain of 10 spins")
        figure.savefig(picture, dpi=130)
    return errors


if __name__ == "__main__":
    main(*sys.argv[1:])
