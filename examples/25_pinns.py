"""The heat equation by a network: groups of residuals and Levenberg-Marquardt.

    u_t = u_xx / 10,     u(0, x) = sin πx + ½ sin 2πx,     u = 0 at both ends

`ng.least_squares` makes one model of the three groups, whose Fisher information is the
Gauss-Newton matrix. Accuracy needs float64, first features spread over the domain, and
Gauss-Legendre points, at which a mean of squares is nearly its integral.

    python examples/25_pinns.py

seed 0  error 1.5e-05  13.0 CPU seconds, compiling
seed 1  error 7.9e-06  1.0 CPU seconds

Source: Transtrum & Sethna (2012) for the accelerated steps; Nielsen (1999) for λ.
"""

import time
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax

import natgrad as ng

jax.config.update("jax_enable_x64", True)
PI, WIDTH, STEPS = jnp.pi, 48, 150


def exact(x):
    """u at (t, x), [..., 2] -> [...]."""
    decay = lambda k: jnp.exp(-((k * PI) ** 2) * x[..., 0] / 10)
    return sum(decay(k) * jnp.sin(k * PI * x[..., 1]) / k for k in (1, 2))


def network(params, x):
    return jnp.tanh(x @ params["w1"] + params["b1"]) @ params["w2"] + params["b2"]


def equation(params, points):
    """u_t − u_xx / 10, [N]; derivatives by forward mode."""
    u, (t_axis, x_axis) = partial(network, params), jnp.eye(2)
    along = lambda d, f: lambda x: jax.jvp(f, (x,), (d,))[1]
    u_t, u_xx = along(t_axis, u), along(x_axis, along(x_axis, u))
    return jax.vmap(lambda x: u_t(x) - u_xx(x) / 10)(points)


def start(params, points):
    return network(params, points) - exact(points)


GROUPS = {"equation": equation, "start": start, "ends": network}
MODEL = ng.least_squares(GROUPS, {"start": 100.0, "ends": 100.0})


def initial_params(key):
    """The first layer's features bend all over the domain."""
    key1, key2, key3 = jax.random.split(key, 3)
    return {
        "w1": 2 * jax.random.normal(key1, (2, WIDTH)),
        "b1": jax.random.uniform(key2, (WIDTH,), minval=-2, maxval=2),
        "w2": jax.random.normal(key3, (WIDTH,)) / WIDTH**0.5,
        "b2": jnp.zeros(()),
    }


def gauss(count):
    """Gauss-Legendre points of [0, 1] and weights of mean 1."""
    points, weights = np.polynomial.legendre.leggauss(count)
    return (points + 1) / 2, weights / weights.mean()


def grid(t, x):
    return jnp.stack(jnp.meshgrid(t, x, indexing="ij"), -1).reshape(-1, 2)


@jax.jit
def train(params, batch):
    """Parameters after all accelerated Levenberg-Marquardt steps."""
    solve = ng.scale_by_curvature(ng.curvature.Dense(MODEL))
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


def main(seeds=2):
    """Relative L2 errors, one a seed."""
    (t, t_weights), (x, x_weights) = gauss(24), gauss(40)
    batch = {
        "equation": grid(t, x),
        "start": grid(np.zeros(1), x),
        "ends": grid(gauss(20)[0], np.array([0.0, 1.0])),
        "weights": {"equation": np.outer(t_weights, x_weights).ravel()},
    }
    test, errors = grid(np.linspace(0, 1, 30), np.linspace(0, 1, 80)), []
    for seed in range(seeds):
        begin = time.process_time()
        params = train(initial_params(jax.random.key(seed)), batch)
        wrong = jnp.linalg.norm(network(params, test) - exact(test))
        errors.append(float(wrong / jnp.linalg.norm(exact(test))))
        seconds = time.process_time() - begin
        print(f"seed {seed}  error {errors[-1]:.1e}  {seconds:.1f} CPU seconds")
    return errors


if __name__ == "__main__":
    main()
