"""The helium atom by variational Monte Carlo, in continuous space.

    E₀ = −2.903724 hartree     (Pekeris 1959),   the nucleus fixed

    log ψ = −2 (r₁ + r₂) + ½ r₁₂/(1 + r₁₂) + a network of (r₁ + r₂, (r₁ − r₂)², r₁₂)

is symmetric in the two electrons. Walkers move by Metropolis's rule under `lax.scan`,
the Laplacian of log ψ is taken forward over reverse, and a step is one of stochastic
reconfiguration, in the space of the 512 samples.

    python examples/28_helium.py [picture.png]

E -2.90359 ± 0.00021 hartree, +0.00013 from exact, after 150 steps of 512 samples
"""

import sys

import jax
import jax.numpy as jnp
import numpy as np
import optax
from matplotlib.figure import Figure

import natgrad as ng

jax.config.update("jax_enable_x64", True)

EXACT = -2.903724377
WALKERS, WARM_UP, STEPS, MEASUREMENTS = 512, 20, 150, 128
MOVES, LENGTH = 10, 0.6  # of a sweep; in bohr
RATE, DAMPING = 0.1, 1e-3


def initial_params(key):
    sizes = (3, 16, 16, 1)
    keys = jax.random.split(key, 3)
    return [
        {"w": jax.random.normal(k, (n, m)) / np.sqrt(n), "b": jnp.zeros(m)}
        for k, n, m in zip(keys, sizes[:-1], sizes[1:], strict=True)
    ]


def log_psi(params, r):
    """log ψ at the positions of two electrons, [2, 3] in bohr."""
    r1, r2 = jnp.linalg.norm(r, axis=-1)
    r12 = jnp.linalg.norm(r[0] - r[1])
    x = jnp.stack([r1 + r2, (r1 - r2) ** 2 / (1 + r1 + r2), r12])
    *hidden, last = params
    for layer in hidden:
        x = jnp.tanh(x @ layer["w"] + layer["b"])
    network = (x @ last["w"] + last["b"])[0]
    return -2 * (r1 + r2) + r12 / 2 / (1 + r12) + network


def local_energy(params, r):
    """(Hψ)/ψ at [2, 3], in hartree: −½ (∇² log ψ + |∇ log ψ|²) + V."""
    flat = r.reshape(-1)
    slope = jax.grad(lambda x: log_psi(params, x.reshape(2, 3)))
    second = lambda v: v @ jax.jvp(slope, (flat,), (v,))[1]
    laplacian, gradient = jnp.sum(jax.vmap(second)(jnp.eye(6))), slope(flat)
    attraction = jnp.sum(2 / jnp.linalg.norm(r, axis=-1))
    potential = 1 / jnp.linalg.norm(r[0] - r[1]) - attraction
    return potential - (laplacian + gradient @ gradient) / 2


log_psis = jax.vmap(log_psi, (None, 0))
local_energies = jax.vmap(local_energy, (None, 0))
model = ng.Model(lambda params, r: 2 * log_psis(params, r), ng.families.Unnormalized())
tx = ng.gram(
    RATE, model, labels=ng.curvature.Centred(), damping=DAMPING, trust_region=None
)


def sweep(key, params, r):
    """Metropolis: all walkers [N, 2, 3] offer some moves of both electrons."""

    def offer(carry, key):
        r, log = carry
        of_move, of_choice = jax.random.split(key)
        moved = r + LENGTH * jax.random.normal(of_move, r.shape)
        after = log_psis(params, moved)
        taken = jnp.log(jax.random.uniform(of_choice, log.shape)) < 2 * (after - log)
        r = jnp.where(taken[:, None, None], moved, r)
        return (r, jnp.where(taken, after, log)), None

    keys = jax.random.split(key, MOVES)
    return jax.lax.scan(offer, (r, log_psis(params, r)), keys)[0][0]


def clipped(energies):
    """Within five mean deviations of the median: few samples near a cusp count most."""
    middle = jnp.median(energies)
    width = 5 * jnp.mean(jnp.abs(energies - middle))
    return jnp.clip(energies, middle - width, middle + width)


def train(carry, key):
    """A sweep and a step; the energy before it."""
    params, state, r = carry
    r = sweep(key, params, r)
    energies = clipped(local_energies(params, r))
    energy, gradient = ng.variational.energy_and_gradient(model, params, r, energies)
    updates, state = tx.update(gradient, state, params, inputs=r)
    return (optax.apply_updates(params, updates), state, r), energy


@jax.jit
def run(key):
    """Energies before each step [STEPS], and of all walkers after the last."""
    of_params, of_walkers, *keys = jax.random.split(key, 5)
    warm_up, training, measuring = (
        jax.random.split(key, count)
        for key, count in zip(keys, (WARM_UP, STEPS, MEASUREMENTS), strict=True)
    )
    params = initial_params(of_params)
    r = jax.random.normal(of_walkers, (WALKERS, 2, 3))
    r, _ = jax.lax.scan(lambda r, key: (sweep(key, params, r), None), r, warm_up)
    carry, energies = jax.lax.scan(train, (params, tx.init(params), r), training)
    params, _, r = carry

    def measure(r, key):
        r = sweep(key, params, r)
        return r, local_energies(params, r)

    return energies, jax.lax.scan(measure, r, measuring)[1]


def main(picture=None):
    """Energies before each step, the last one and its error, in hartree."""
    energies, measured = run(jax.random.key(0))
    energy, error = map(float, ng.variational.mean_and_error(measured))
    off = energy - EXACT
    print(
        f"E {energy:.5f} ± {error:.5f} hartree, {off:+.5f} from exact, after {STEPS} "
        f"steps of {WALKERS} samples"
    )
    if picture is not None:
        figure = Figure(figsize=(5.5, 3.6), layout="constrained")
        axis = figure.subplots()
        axis.plot(energies)
        axis.axhline(EXACT, color="black", linestyle=":", label="exact")
        axis.set(xlabel="step", ylabel="energy, hartree", title="Helium")
        axis.set_ylim(EXACT - 0.02, EXACT + 0.1)
        axis.legend()
        figure.savefig(picture, dpi=130)
    return {"energies": np.asarray(energies), "energy": energy, "error": error}


if __name__ == "__main__":
    main(*sys.argv[1:])
