"""How many iterations do preconditioners save, on real data?

Conjugate gradients for (F + λI) x = g to a relative residual of 1e-4, for three
networks at their start and after sixty steps of Adam: an autoencoder of the digits, a
regression of the wines' features on raw inputs (of scales from 0.1 to 1000), and a
classifier of the digits. A row holds iterations: without a preconditioner, with the
estimated diagonal, K-FAC and Nyström's of rank 30; and the relative difference between
the solutions with and without K-FAC.

    python -m benchmarks.conjugate_gradients --json cg.json
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import optax
from sklearn.datasets import load_digits, load_wine

import natgrad as ng
from benchmarks.problems import dense_apply, dense_layers
from benchmarks.timing import environment
from natgrad.curvature import Identity, Jacobi, Kronecker, MatrixFree, Nystrom
from natgrad.solvers.conjugate_gradients import RelativeResidual

PRECONDITIONERS = {
    "identity": Identity(),
    "jacobi": Jacobi(),
    "kronecker": Kronecker(),
    "nystrom": Nystrom(30),
}


def main(argv: list[str] | None = None) -> dict[str, Any]:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--dampings", type=float, nargs="+", default=[1e-2, 1e-3, 1e-4])
    parser.add_argument("--steps", type=int, nargs="+", default=[0, 60])
    parser.add_argument("--models", nargs="+", choices=MODELS, default=[*MODELS])
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    options = parser.parse_args(argv)
    report: dict[str, Any] = {"environment": environment(), "rows": []}
    print(
        "model          steps       λ  " + "  ".join(f"{n:>9}" for n in PRECONDITIONERS)
    )
    for name in options.models:
        for steps in options.steps:
            model, params, x, y = trained(*MODELS[name](), steps)
            for damping in options.dampings:
                row = {"model": name, "steps": steps, "damping": damping}
                row |= iterations(model, params, x, y, damping)
                report["rows"].append(row)
                counts = "  ".join(f"{row[n]:9}" for n in PRECONDITIONERS)
                print(f"{name:13}  {steps:5}  {damping:6.0e}  {counts}", flush=True)
    if options.json is not None:
        options.json.write_text(json.dumps(report, indent=2) + "\n")
    return report


def iterations(model, params, x, y, damping: float) -> dict[str, Any]:
    gradient = jax.jit(jax.grad(model.loss))(params, x, y)
    found = {}
    for name, preconditioner in PRECONDITIONERS.items():
        curvature = MatrixFree(
            model, stop=RelativeResidual(1e-4, 5000), preconditioner=preconditioner
        )
        solve = jax.jit(lambda p, g, c=curvature: c.at(p, x).solution(g, damping))
        found[name] = solve(params, gradient)
    counts = {name: int(solution.iterations) for name, solution in found.items()}
    plain, scaled = found["identity"].value, found["kronecker"].value
    difference = optax.tree.norm(optax.tree.sub(plain, scaled))
    return counts | {"difference": float(difference / optax.tree.norm(plain))}


def trained(model, params, x, y, steps: int):
    tx = optax.adam(3e-3)

    def step(carry, _):
        params, state = carry
        updates, state = tx.update(jax.grad(model.loss)(params, x, y), state)
        return (optax.apply_updates(params, updates), state), None

    run = lambda p: jax.lax.scan(step, (p, tx.init(p)), None, steps)[0][0]
    return model, jax.jit(run)(params), x, y


def digits(count: int = 512):
    data = load_digits()
    x = jnp.asarray(data.data[:count] / 16 - 0.3, jnp.float32)
    return x, jnp.asarray(data.target[:count])


def autoencoder():
    x, _ = digits()
    model = ng.Model(dense_apply, ng.families.NormalMean(), example_inputs=x[:1])
    return model, dense_layers([64, 32, 16, 32, 64]), x, x


def regression():
    """Each wine's standardised features from its raw ones."""
    x = jnp.asarray(load_wine().data, jnp.float32)
    y = (x - x.mean(0)[None]) / x.std(0)[None]
    params = dense_layers([13, 20, 13])
    params[0]["w"] = params[0]["w"] / x.std(0)[:, None]
    model = ng.Model(dense_apply, ng.families.NormalMean(), example_inputs=x[:1])
    return model, params, x, y


def classifier():
    x, y = digits()
    model = ng.Model(dense_apply, ng.families.Categorical(), example_inputs=x[:1])
    return model, dense_layers([64, 32, 10]), x, y


MODELS = {
    "autoencoder": autoencoder,
    "regression": regression,
    "classifier": classifier,
}

if __name__ == "__main__":
    main()
