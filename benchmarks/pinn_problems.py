"""Four equations for `python -m benchmarks.pinn`, and how far our steps come on each.

    poisson2    −Δu = 2π² u*, u* = sin πx sin πy; u = 0 on the edge by construction
    poisson5    −Δu = π² u*, u* = Σ cos πx_i on the unit cube of 5 dimensions
    heat        u_t = u_xx / 10,     u(0, x) = sin πx + ½ sin 2πx,  u = 0 at both ends
    burgers     u_t + u u_x = u_xx / 20,     u(0, x) = −sin πx,     u = 0 at both ends

In float64, at Gauss-Legendre points, at which a mean of squares is nearly its integral
(of 5 dimensions random points are taken).

    python -m benchmarks.pinn_problems [seeds]

poisson2  seed 1  error 5.5e-09  0.4 CPU seconds
poisson5  seed 1  error 1.0e-05  3.0 CPU seconds
heat  seed 1  error 1.6e-05  1.6 CPU seconds
burgers  seed 1  error 1.7e-05  4.2 CPU seconds

The first seed takes 10 to 15 seconds more, to compile. Relative L2 errors of ten seeds
of poisson2: 5.5e-9 to 4.5e-8.
"""

from __future__ import annotations

import itertools
import sys
import time
from functools import partial

import jax
import jax.numpy as jnp
import numpy as np
import optax

import natgrad as ng

PI = jnp.pi


def initial_params(key, sizes, spread):
    """Layers (w, b); the first one's features bend all over a box of this size."""
    layers = []
    for fan_in, fan_out in itertools.pairwise(sizes):
        key, key1, key2 = jax.random.split(key, 3)
        scale, shift = (1, 0) if layers else (spread * fan_in**0.5, spread)
        w = scale * jax.random.normal(key1, (fan_in, fan_out)) / fan_in**0.5
        b = shift * jax.random.uniform(key2, (fan_out,), minval=-1, maxval=1)
        layers.append((w, b))
    return layers


def network(params, x):
    """u(x) for points [..., d]."""
    *hidden, (w, b) = params
    for wi, bi in hidden:
        x = jnp.tanh(x @ wi + bi)
    return (x @ w + b)[..., 0]


def derivatives(u, x):
    """(∂u/∂x_i, ∂²u/∂x_i²) at one point, both [d], by forward mode."""

    def along(direction):
        first = lambda x: jax.jvp(u, (x,), (direction,))[1]
        return jax.jvp(first, (x,), (direction,))

    return jax.vmap(along)(jnp.eye(x.size))


def at_each_point(equation, u=network):
    """residual(params, points) of equation(x, u, u', u'') at each point."""

    def at_point(params, x):
        value = partial(u, params)
        return equation(x, value(x), *derivatives(value, x))

    return jax.vmap(at_point, (None, 0))


def gauss(*edges):
    """Gauss-Legendre points of a box [M, d] and weights of mean 1; (n, low, high)s."""
    rules = [np.polynomial.legendre.leggauss(n) for n, _, _ in edges]
    axes = [
        low + (high - low) * (x + 1) / 2
        for (x, _), (_, low, high) in zip(rules, edges, strict=True)
    ]
    points = np.stack(np.meshgrid(*axes, indexing="ij"), -1).reshape(-1, len(edges))
    weights = np.prod(np.meshgrid(*[w for _, w in rules], indexing="ij"), axis=0)
    return jnp.asarray(points), jnp.asarray(weights.ravel() / weights.mean())


@partial(jax.jit, static_argnums=(0, 3))
def train(model, params, batch, steps):
    """Parameters after so many accelerated Levenberg-Marquardt steps."""
    solve = ng.scale_by_curvature(ng.curvature.Dense(model))
    direction = ng.geodesic_acceleration(solve, model)
    tx = ng.levenberg_marquardt(
        optax.chain(direction, optax.scale(-1.0)),
        model,
        damping=1e-2,
        rule=ng.adaptive.Nielsen(),
    )

    def step(carry, _):
        params, state = carry
        loss, gradient = jax.value_and_grad(model.loss)(params, batch)
        more = {"inputs": batch, "value": loss, "value_fn": model.loss}
        updates, state = tx.update(gradient, state, params, **more)
        return (optax.apply_updates(params, updates), state), loss

    return jax.lax.scan(step, (params, tx.init(params)), length=steps)[0][0]


# The problems: model, batch, sizes, spread, steps, u, exact solution, test points ---


def poisson2():
    exact = lambda x: jnp.sin(PI * x[..., 0]) * jnp.sin(PI * x[..., 1])
    zero_on_edge = lambda p, x: 16 * jnp.prod(x * (1 - x), axis=-1) * network(p, x)
    equation = lambda x, _u, _d, dd: jnp.sum(dd) + 2 * PI**2 * exact(x)
    points, weights = gauss((16, 0, 1), (16, 0, 1))
    residual = at_each_point(equation, zero_on_edge)
    model = ng.least_squares({"inside": residual}, {"inside": weights})
    test = gauss((50, 0, 1), (50, 0, 1))[0]
    return model, {"inside": points}, (2, 48, 1), 1.5, 150, zero_on_edge, exact, test


def poisson5():
    exact = lambda x: jnp.sum(jnp.cos(PI * x), axis=-1)
    equation = lambda x, _u, _d, dd: jnp.sum(dd) + PI**2 * exact(x)
    keys = jax.random.split(jax.random.key(0), 3)
    inside, edge, test = (jax.random.uniform(key, (1500, 5)) for key in keys)
    n = jnp.arange(len(edge))
    edge = edge.at[n, n % 5].set(n // 5 % 2)  # a face each
    model = ng.least_squares(
        {
            "inside": at_each_point(equation),
            "edge": lambda params, x: network(params, x) - exact(x),
        },
        {"edge": 100.0},
    )
    batch = {"inside": inside, "edge": edge[:1000]}
    return model, batch, (5, 48, 1), 0.7, 60, network, exact, test


def in_time(equation, start, exact, low, sizes, steps):
    """A problem for t in [0, 1] and x in [low, 1] from u(0, x) = start(x)."""
    inside, weights = gauss((24, 0, 1), (40, low, 1))
    x, t = gauss((40, low, 1))[0], gauss((20, 0, 1))[0]
    at_time_0 = jnp.concatenate([0 * x, x], 1)
    ends = jnp.concatenate([jnp.concatenate([t, 0 * t + end], 1) for end in (low, 1)])
    model = ng.least_squares(
        {
            "equation": at_each_point(equation),
            "start": lambda params, x: network(params, x) - start(x[:, 1]),
            "ends": network,
        },
        {"equation": weights, "start": 100.0, "ends": 100.0},
    )
    batch = {"equation": inside, "start": at_time_0, "ends": ends}
    test = gauss((30, 0.01, 1), (80, low, 1))[0]
    return model, batch, sizes, 2.0, steps, network, exact, test


def heat():
    modes = ((1, 1.0), (2, 0.5))

    def exact(x):
        decay = lambda k: jnp.exp(-((k * PI) ** 2) * x[..., 0] / 10)
        return sum(a * decay(k) * jnp.sin(k * PI * x[..., 1]) for k, a in modes)

    start = lambda x: exact(jnp.stack([0 * x, x], -1))
    equation = lambda _x, _u, d, dd: d[0] - dd[1] / 10
    return in_time(equation, start, exact, 0, (2, 48, 1), 150)


def burgers():
    nodes, weights = np.polynomial.hermite.hermgauss(100)

    def exact(x):
        """Cole and Hopf's quotient of integrals against a Gaussian of the heat flow."""
        t, x = x[..., :1], x[..., 1:]
        y = x - jnp.sqrt(4 * t / 20) * nodes
        density = weights * jnp.exp(-20 * jnp.cos(PI * y) / (2 * PI))
        return -jnp.sum(density * jnp.sin(PI * y), -1) / jnp.sum(density, -1)

    start = lambda x: -jnp.sin(PI * x)
    equation = lambda _x, u, d, dd: d[0] + u * d[1] - dd[1] / 20
    return in_time(equation, start, exact, -1, (2, 20, 20, 1), 100)


PROBLEMS = (poisson2, poisson5, heat, burgers)


def main(seeds=1, problems=PROBLEMS):
    """name -> relative L2 errors, one a seed."""
    errors = {}
    for problem in problems:
        model, batch, sizes, spread, steps, u, exact, test = problem()
        name, errors[problem.__name__] = problem.__name__, []
        for seed in range(seeds):
            begin = time.process_time()
            params = initial_params(jax.random.key(seed), sizes, spread)
            params = train(model, params, batch, steps)
            difference = u(params, test) - exact(test)
            error = jnp.linalg.norm(difference) / jnp.linalg.norm(exact(test))
            errors[name].append(float(error))
            seconds = time.process_time() - begin
            print(f"{name}  seed {seed}  error {error:.1e}  {seconds:.1f} CPU seconds")
    return errors


if __name__ == "__main__":
    with jax.enable_x64(True):
        main(*map(int, sys.argv[1:]))
