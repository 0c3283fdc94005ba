"""An inverse problem: the diffusivity of a rod from readings of five thermometers.

    u_t = κ u_xx,     κ unknown, u = 0 at both ends and read at 5 x 20 places and times

κ is one parameter beside a network for u. In m²/s it is 1e-4, in mm²/day 8.64e6, and
the network's parameters are about 1: λI damps it not at all or to a standstill. Damping
of κ/κ₀, κ₀ the first guess, is `ng.ByPath({"kappa": κ₀⁻², "": 1.0})`, and does not
depend on the unit; nor does λ diag F (`ng.scaling.Marquardt`), which needs no guess.

    python examples/26_inverse_pinn.py [seeds]

Largest relative errors of κ of three seeds, in m²/s and mm²/day: 6.8e-6 and 4.0 with
λI, 1.6e-5 and 4.2e-6 of κ/κ₀, 5.8e-4 and 2.2e-5 with λ diag F; 2 CPU seconds each.

Source: Marquardt (1963), An algorithm for least-squares estimation of nonlinear
parameters.
"""

import itertools
import sys
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax

import natgrad as ng

jax.config.update("jax_enable_x64", True)
KAPPA, DURATION = 1e-4, 1000.0  # m²/s, s
UNITS = {"m²/s": 1.0, "mm²/day": 1e-6 / 86400}
# Whether λ is of κ/κ₀ instead of κ, and the solver.
DAMPINGS = {
    "λ I": (False, None),
    "λ I, κ/κ₀": (True, None),
    "λ diag F": (False, ng.scaling.Marquardt()),
}
STEPS = 200


def exact(x):
    """Temperatures at (t / 1000 s, x / m), [..., 2] -> [...]."""
    decay = lambda k: jnp.exp(-KAPPA * DURATION * (k * jnp.pi) ** 2 * x[..., 0])
    return sum(decay(k) * jnp.sin(k * jnp.pi * x[..., 1]) / k for k in (1, 2))


def network(params, x):
    return jnp.tanh(x @ params["w1"] + params["b1"]) @ params["w2"] + params["b2"]


def equation(params, points):
    """u_t − κ u_xx in kelvin per 1000 s, [N]; derivatives by forward mode."""
    u, (t_axis, x_axis) = partial(network, params), jnp.eye(2)
    along = lambda d, f: lambda x: jax.jvp(f, (x,), (d,))[1]
    u_t, u_xx = along(t_axis, u), along(x_axis, along(x_axis, u))
    kappa = params["kappa"] * points["unit"] * DURATION
    return jax.vmap(u_t)(points["x"]) - kappa * jax.vmap(u_xx)(points["x"])


def readings(params, points):
    return network(params, points["x"]) - points["u"]


GROUPS = {"equation": equation, "ends": network, "readings": readings}
MODEL = ng.least_squares(GROUPS, {"ends": 100.0, "readings": 100.0})


def start(key, unit):
    key1, key2, key3 = jax.random.split(key, 3)
    return {
        "kappa": jnp.array(5 * KAPPA / unit),
        "w1": 2 * jax.random.normal(key1, (2, 48)),
        "b1": jax.random.uniform(key2, (48,), minval=-2, maxval=2),
        "w2": jax.random.normal(key3, (48,)) / 7,
        "b2": jnp.zeros(()),
    }


def grid(t, x):
    return jnp.stack(jnp.meshgrid(t, x, indexing="ij"), -1).reshape(-1, 2)


@partial(jax.jit, static_argnums=0)
def fitted(solver, params, batch, damping_of_kappa):
    """Parameters after all steps."""
    dampings = ng.ByPath({"kappa": damping_of_kappa, "": 1.0})
    dense = ng.curvature.Dense(MODEL)
    solve = ng.scale_by_curvature(dense, damping=dampings, solver=solver)
    direction = ng.geodesic_acceleration(solve, MODEL)
    inner, rule = optax.chain(direction, optax.scale(-1.0)), ng.adaptive.Nielsen()
    tx = ng.levenberg_marquardt(inner, MODEL, damping=1e-2, rule=rule)

    def step(carry, _):
        params, state = carry
        loss, gradient = jax.value_and_grad(MODEL.loss)(params, batch)
        more = {"inputs": batch, "value": loss, "value_fn": MODEL.loss}
        updates, state = tx.update(gradient, state, params, **more)
        return (optax.apply_updates(params, updates), state), None

    return jax.lax.scan(step, (params, tx.init(params)), length=STEPS)[0][0]


def main(seeds=1):
    """(damping, unit) -> relative errors of κ, one a seed."""
    nodes = (np.polynomial.legendre.leggauss(20)[0] + 1) / 2
    inside, places = grid(nodes, nodes), grid(nodes, jnp.linspace(0.1, 0.9, 5))
    batch = {
        "ends": grid(nodes, jnp.array([0.0, 1.0])),
        "readings": {"x": places, "u": exact(places)},
    }
    errors = {}
    for (damping, (by_size, solver)), (name, unit) in itertools.product(
        DAMPINGS.items(), UNITS.items()
    ):
        points = {"x": inside, "unit": jnp.full(len(inside), unit)}
        found = errors[damping, name] = []
        for seed in range(seeds):
            params = start(jax.random.key(seed), unit)
            scale = params["kappa"] ** -2 if by_size else jnp.array(1.0)
            params = fitted(solver, params, batch | {"equation": points}, scale)
            found.append(abs(float(params["kappa"]) * unit / KAPPA - 1))
        print(f"{damping:12}κ in {name:10}", *(f"{error:.1e}" for error in found))
    return errors


if __name__ == "__main__":
    main(*map(int, sys.argv[1:]))
