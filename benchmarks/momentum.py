"""How many steps does a momentum that is found save, beside the best of a grid?

The ground state of the transverse-field Ising chain of 10 spins (h = J = 1, a ring), by
a restricted Boltzmann machine with as many hidden units as spins, all real: 120
parameters. Counted are the steps to a relative error of the energy, which the sum over
all 1024 configurations gives exactly, whatever the steps see:

    sampled   64 or 128 configurations drawn afresh from ψ² in each step; to 1e-3
    summed    all 1024, each with its weight; to 1e-4

by SPRING with fixed μ, with `PrincipalRange` comparing eigenvectors of sample space
("rows") or of parameter space ("parameters"), each also without the bound μ <= 1 − η
("unbounded", the paper's rule), and by MARCH with the variance of steps or of scores.
In the units of the library η = 0.04 and λ = 4e-3 where sampled, which is 0.02 and 1e-3
of stochastic reconfiguration; where summed η = 0.1, and twice and half of it. No trust
region.

    python -m benchmarks.momentum --seeds 10 --output benchmarks/results
"""

from __future__ import annotations

import argparse
import functools
from collections.abc import Callable
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import natgrad as ng
from benchmarks.report import table, write
from benchmarks.timing import environment, positive

SPINS, DAMPING = 10, 4e-3
GROUND = -2 / np.sin(np.pi / (2 * SPINS))
GRID = (0.0, 0.5, 0.8, 0.9, 0.95, 0.98, 0.99)
RULES = (
    *("rows", "rows, unbounded", "parameters", "parameters, unbounded"),
    *("march", "march by scores"),
)
VARIANCES = {"march": ng.StepVariance(), "march by scores": ng.ScoreVariance()}
STATES = 1 - 2 * ((np.arange(2**SPINS)[:, None] >> np.arange(SPINS)) & 1)
FLIPPED = np.arange(2**SPINS)[:, None] ^ (1 << np.arange(SPINS))
BONDS = np.sum(STATES * np.roll(STATES, 1, axis=1), axis=1)
# name -> (configurations a step, None for all; η; relative error; steps at most)
SETTINGS = {
    "sampled 64": (64, 0.04, 1e-3, 600),
    "sampled 128": (128, 0.04, 1e-3, 600),
    "summed": (None, 0.1, 1e-4, 300),
    "summed, η = 0.05": (None, 0.05, 1e-4, 300),
    "summed, η = 0.2": (None, 0.2, 1e-4, 300),
}


def main(argv: list[str] | None = None) -> dict[str, Any]:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--settings", nargs="+", choices=SETTINGS, default=[*SETTINGS])
    parser.add_argument("--grid", nargs="+", type=float, default=[*GRID])
    parser.add_argument("--seeds", type=positive, default=10)
    parser.add_argument(
        "--steps", type=positive, help="at most, in place of each setting's"
    )
    parser.add_argument("--output", type=Path, help="the folder for JSON and Markdown")
    options = parser.parse_args(argv)
    report = {"environment": environment(), "seeds": options.seeds, "settings": {}}
    with jax.enable_x64(True):
        for name in options.settings:
            found = of_setting(name, options)
            report["settings"][name] = found
            print(name, *(f"{k}: {v['median']}" for k, v in found.items()), flush=True)
    write(options.output, "momentum", report, page(report))
    return report


def of_setting(name: str, options: argparse.Namespace) -> dict[str, Any]:
    """Steps of every rule; a median beside the least of the grid."""
    seeds, rows = range(options.seeds), SETTINGS[name][0]
    run = functools.partial(steps, name, options.steps)
    found = {
        f"μ = {mu}": [run("fixed", seed, mu) for seed in seeds] for mu in options.grid
    }
    least = min(float(np.median(counts)) for counts in found.values())
    for rule in RULES:
        if not rule.startswith("rows") or rows is not None:
            found[rule] = [run(rule, seed, 0.95) for seed in seeds]
    return {
        rule: {
            "steps": counts,
            "median": float(np.median(counts)),
            "ratio": float(np.median(counts)) / least,
        }
        for rule, counts in found.items()
    }


def steps(name: str, most: int | None, rule: str, seed: int, momentum: float) -> float:
    """Steps to the error; infinity where there are too many."""
    count = compiled(name, most, rule)(jax.random.PRNGKey(seed), momentum)
    return float(count) if count >= 0 else float("inf")


@functools.cache
def compiled(name: str, most: int | None, rule: str) -> Callable:
    """(key, μ) -> the number of steps, or −1."""
    rows, rate, error, limit = SETTINGS[name]
    limit = limit if most is None else most

    @jax.jit
    def run(key, momentum):
        tx = transformation(rule, rows, rate, momentum)
        params = initial_params(key)
        draws = jax.random.split(jax.random.fold_in(key, 7), limit)

        def going(carry):
            return (carry[2] < limit) & (relative_error(carry[0]) > error)

        def step(carry):
            params, state, count = carry
            inputs, gradient = estimate(params, draws[count], rows)
            direction, state = tx.update(gradient, state, params, inputs=inputs)
            params = jax.tree.map(lambda p, d: p - rate * d, params, direction)
            return params, state, count + 1

        params, _, count = jax.lax.while_loop(
            going, step, (params, tx.init(params), jnp.zeros((), jnp.int32))
        )
        return jnp.where(relative_error(params) <= error, count, -1)

    return run


def transformation(rule: str, rows: int | None, rate: float, momentum: Any):
    """SPRING or MARCH, in sample space where there are fewer rows than parameters."""
    form = ng.curvature.Dense if rows is None else ng.curvature.Gram
    curvature = form(MODEL, ng.curvature.Centred())
    if rule in VARIANCES:
        return ng.scale_by_march(
            curvature, damping=DAMPING, momentum=momentum, variance=VARIANCES[rule]
        )
    kinds = {"rows": ng.PrincipalRange(rows), "parameters": ng.PrincipalRange()}
    kind, _, unbounded = rule.partition(", ")
    return ng.scale_by_spring(
        curvature,
        damping=DAMPING,
        momentum=kinds.get(kind, momentum),
        trust_region=None if unbounded else ng.damping.TrustRegion(None, rate),
    )


# The chain --------------------------------------------------------------------------


def initial_params(key):
    shapes = {"a": (SPINS,), "b": (SPINS,), "w": (SPINS, SPINS)}
    keys = jax.random.split(key, len(shapes))
    return {
        name: 0.01 * jax.random.normal(key, shape)
        for key, (name, shape) in zip(keys, shapes.items(), strict=True)
    }


def log_amplitude(params, s):
    """log ψ of configurations [M, spins] of ±1."""
    angles = s @ params["w"] + params["b"][None]
    return s @ params["a"] + jnp.sum(
        jnp.logaddexp(angles, -angles) - jnp.log(2.0), axis=-1
    )


MODEL = ng.Model(
    lambda params, inputs: 2 * log_amplitude(params, inputs["s"]),
    ng.families.Unnormalized(),
    weights=lambda inputs: inputs["weight"],
)


def whole(params):
    """(weights ψ², local energies) of all configurations."""
    logs = log_amplitude(params, jnp.asarray(STATES, float))
    changes = logs[FLIPPED] - logs[:, None]
    return jax.nn.softmax(2 * logs), -BONDS - jnp.sum(jnp.exp(changes), axis=1)


def relative_error(params):
    weights, energies = whole(params)
    return (weights @ energies - GROUND) / abs(GROUND)


def estimate(params, key, rows):
    """(the batch, the gradient of the energy) from `rows` draws, or from all."""
    weights, energies = whole(params)
    index = jnp.arange(len(STATES))
    if rows is not None:
        index = jax.random.choice(key, len(STATES), (rows,), p=weights)
        weights, energies = jnp.full(rows, 1 / rows), energies[index]
    s = jnp.asarray(STATES, float)[index]
    inputs = {"s": s, "weight": weights}
    _, gradient = ng.variational.energy_and_gradient(MODEL, params, inputs, energies)
    return inputs, gradient


def page(report: dict[str, Any]) -> str:
    lines = ["# Momentum that is found", __doc__.split("\n\n", 1)[1]]
    for name, found in report["settings"].items():
        rows = [
            (rule, v["median"], min(v["steps"]), max(v["steps"]), v["ratio"])
            for rule, v in found.items()
        ]
        heads = ("momentum", "median steps", "least", "most", "over the best fixed")
        lines += [f"## {name}, {report['seeds']} seeds", table(heads, rows)]
    return "\n\n".join(lines)


if __name__ == "__main__":
    main()
