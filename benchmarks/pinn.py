"""Levenberg-Marquardt beside quasi-Newton methods on physics-informed networks.

The problems of `benchmarks.pinn_problems`: float64, the same points, weights, first
parameters and loss for all. Each method runs alone; its clocks stop while the error is
measured, and leave out compiling.

    ours               accelerated Levenberg-Marquardt of `ng.least_squares`
    adam               optax, 1e-3
    l-bfgs             optax, memory 50, zoom line search
    bfgs               optimistix
    ssbroyden          self-scaled Broyden of ssbroyden-optimistix
    jinns              its `vanilla_ngd`, (F + 1e-5 I)⁻¹ g and a line search:
                       jinns' own update, fed with the rows of our residuals

The last three need an environment that has them:

    pip install -e . optimistix ssbroyden-optimistix jinns
    python -m benchmarks.pinn --problems poisson2 --seconds 20

What does not import is left out, and said so.
"""

from __future__ import annotations

import argparse
import json
import time
from collections.abc import Callable
from pathlib import Path
from typing import Any, NamedTuple

import jax
import jax.numpy as jnp
import optax
from jax.flatten_util import ravel_pytree

import natgrad as ng
from benchmarks import pinn_problems
from benchmarks.report import table
from benchmarks.timing import environment

TARGETS = (1e-3, 1e-4, 1e-5, 1e-6, 1e-7)


class Task(NamedTuple):
    """A problem: model, batch, first parameters (flat), and the relative error."""

    model: Any
    batch: Any
    start: jax.Array
    unravel: Callable
    error: Callable


class Method(NamedTuple):
    """A way to minimise: `init(x) -> state`, `step(x, state) -> (x, state)`."""

    init: Callable
    step: Callable
    every: int  # steps between two measurements


def task(name: str, seed: int) -> Task:
    """A problem from one seed."""
    problem = getattr(pinn_problems, name)
    model, batch, sizes, spread, _, u, exact, test = problem()
    params = pinn_problems.initial_params(jax.random.key(seed), sizes, spread)
    start, unravel = ravel_pytree(params)
    truth = exact(test)

    def error(x):
        difference = u(unravel(x), test) - truth
        return jnp.linalg.norm(difference) / jnp.linalg.norm(truth)

    return Task(model, batch, start, unravel, error)


def by_optax(of: Task, tx: Any, every: int) -> Method:
    """A transformation of optax."""

    def loss(x, inputs=None):
        return of.model.loss(of.unravel(x), of.batch if inputs is None else inputs)

    def step(x, state):
        value, gradient = jax.value_and_grad(loss)(x)
        more = {"value": value, "grad": gradient, "value_fn": loss}
        updates, state = tx.update(gradient, state, x, **more)
        return optax.apply_updates(x, updates), state

    return Method(tx.init, step, every)


def ours(of: Task) -> Method:
    """As in the example."""
    model = of.model
    direction = ng.scale_by_curvature(ng.curvature.Dense(model))
    tx = ng.levenberg_marquardt(
        optax.chain(ng.geodesic_acceleration(direction, model), optax.scale(-1.0)),
        model,
        damping=1e-2,
        rule=ng.adaptive.Nielsen(),
    )

    def step(x, state):
        params = of.unravel(x)
        value, gradient = jax.value_and_grad(model.loss)(params, of.batch)
        more = {"inputs": of.batch, "value": value, "value_fn": model.loss}
        updates, state = tx.update(gradient, state, params, **more)
        return ravel_pytree(optax.apply_updates(params, updates))[0], state

    return Method(lambda x: tx.init(of.unravel(x)), step, 5)


def by_optimistix(of: Task, solver: Any) -> Method:
    """A minimiser of optimistix, one of its steps at a time."""
    import equinox as eqx

    def loss(x, _):
        return of.model.loss(of.unravel(x), of.batch), None

    shape = jax.ShapeDtypeStruct((), of.start.dtype)
    state = solver.init(loss, of.start, None, {}, shape, None, frozenset())
    _, static = eqx.partition(state, eqx.is_array)

    def init(_):
        return eqx.filter(state, eqx.is_array)

    def step(x, arrays):
        whole = eqx.combine(arrays, static)
        x, whole, _ = solver.step(loss, x, None, {}, whole, frozenset())
        return x, eqx.filter(whole, eqx.is_array)

    return Method(init, step, 20)


def bfgs(of: Task) -> Method:
    import optimistix as optx  # pyright: ignore[reportMissingImports]

    return by_optimistix(of, optx.BFGS(rtol=0.0, atol=0.0))


def ssbroyden(of: Task) -> Method:
    import ssbroyden_optimistix as ss  # pyright: ignore[reportMissingImports]

    return by_optimistix(of, ss.SSBroyden(rtol=0.0, atol=0.0))


def jinns(of: Task) -> Method:
    """jinns' update, whose loss is |z|² of our weighted residuals z / √M."""
    from jinns.optimizers import vanilla_ngd  # pyright: ignore[reportMissingImports]
    from jinns.parameters import Params  # pyright: ignore[reportMissingImports]

    def residuals(x):
        z = of.model.outputs(of.unravel(x), of.batch)
        return z / jnp.sqrt(z.size)

    def rows(x):
        gram, params = ng.curvature.Gram(of.model), of.unravel(x)
        return gram.jacobian(gram.init(params), params, of.batch, None).explicit()

    class Loss:
        def evaluate_per_sample(self, params, batch):
            del batch
            return {"all": residuals(params.nn_params[0])[:, None]}

    tx = vanilla_ngd()
    wrapped = lambda x: Params(nn_params=[x], eq_params=None)

    def step(x, state):
        r = {"all": residuals(x)[:, None]}
        g = {"all": wrapped(rows(x)[:, None, :])}
        value = jnp.sum(r["all"] ** 2)
        weights = {"all": jnp.ones(())}
        updates, state = tx.update(
            (r, g, weights), state, wrapped(x), Loss(), None, value
        )
        return x + updates.nn_params[0], state

    return Method(lambda x: tx.init(wrapped(x)), step, 5)


METHODS = {
    "ours": ours,
    "adam": lambda of: by_optax(of, optax.adam(1e-3), 500),
    "l-bfgs": lambda of: by_optax(of, optax.lbfgs(memory_size=50), 20),
    "bfgs": bfgs,
    "ssbroyden": ssbroyden,
    "jinns": jinns,
}


def measured(of: Task, method: Method, seconds: float) -> dict[str, list[float]]:
    """Seconds, CPU seconds, steps and errors, until the CPU seconds are spent."""

    def several(x, state):
        step = lambda carry, _: (method.step(*carry), None)
        return jax.lax.scan(step, (x, state), length=method.every)[0]

    error = jax.jit(of.error)
    x, state = of.start, method.init(of.start)
    advance = jax.jit(several).lower(x, state).compile()
    found = {"seconds": [0.0], "cpu": [0.0], "steps": [0], "error": [float(error(x))]}
    while found["cpu"][-1] < seconds:
        wall, cpu = time.perf_counter(), time.process_time()
        x, state = jax.block_until_ready(advance(x, state))
        found["seconds"].append(found["seconds"][-1] + time.perf_counter() - wall)
        found["cpu"].append(found["cpu"][-1] + time.process_time() - cpu)
        found["steps"].append(found["steps"][-1] + method.every)
        found["error"].append(float(error(x)))
    return found


def row(name: str, found: dict[str, list[float]]) -> list[str]:
    """Name, CPU seconds (and seconds) to each target, steps, and the least error."""
    cells = []
    for target in TARGETS:
        hits = [i for i, e in enumerate(found["error"]) if e <= target]
        times = (found["cpu"][hits[0]], found["seconds"][hits[0]]) if hits else ()
        cells.append("{:.1f} ({:.1f})".format(*times) if hits else "")
    return [name, *cells, str(found["steps"][-1]), f"{min(found['error']):.1e}"]


def main(argv: list[str] | None = None) -> dict[str, Any]:
    """Race, print a table for each problem, and return all curves."""
    parser = argparse.ArgumentParser(description=(__doc__ or "").split("\n")[0])
    names = ["poisson2", "poisson5", "heat", "burgers"]
    parser.add_argument("--problems", nargs="+", choices=names, default=names)
    parser.add_argument("--methods", nargs="+", choices=METHODS, default=[*METHODS])
    parser.add_argument("--seconds", type=float, default=20.0, help="CPU, each method")
    parser.add_argument("--seed", type=int, default=0)
    parser.add_argument("--output", type=Path, help="write curves to this file")
    options = parser.parse_args(argv)
    results: dict[str, Any] = {"environment": environment()}
    for problem in options.problems:
        of, rows = task(problem, options.seed), []
        results[problem] = {}
        for name in options.methods:
            try:
                method = METHODS[name](of)
            except ImportError as error:
                print(f"{name} is left out: {error}")
                continue
            found = results[problem][name] = measured(of, method, options.seconds)
            rows.append(row(name, found))
        heads = ["CPU s (s) to", *(f"{t:.0e}" for t in TARGETS), "steps", "least error"]
        print(f"\n{problem}\n\n{table(heads, rows)}", flush=True)
    if options.output is not None:
        options.output.write_text(json.dumps(results))
    return results


if __name__ == "__main__":
    jax.config.update("jax_enable_x64", True)
    main()
