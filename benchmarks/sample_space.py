"""What does an exact step cost in sample space, in gradient steps?

    autoencoder  784-1000-500-250-30 and back, 2.8 million parameters, labels sampled
                 once: a whole step (gradient, Gram matrix, solve, new parameters) over
                 a step of plain gradient descent, and the temporary memory of both,
                 the gradient itself counted in
    parameters   the same for a classifier with two hidden layers of growing width
    examples     `Gram` against `Dense` for one classifier and ever more examples: where
                 parameter space takes over
    kernel       (B Bᵀ + λI)⁻¹ b from given rows B [M, M], over the matmul's time for
                 2 M³ + M³/3 operations

All tasks of a section are interleaved; see `benchmarks.timing`.

    python -m benchmarks.sample_space --sections autoencoder kernel --json gram.json
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import natgrad as ng
from benchmarks.problems import autoencoder, classified, dense_apply, dense_layers
from benchmarks.solvers import normal, paired
from benchmarks.timing import compiled, environment, interleaved, positive
from natgrad.curvature import Dense, Gram, Sampled
from natgrad.solvers.gram import gram_solution
from natgrad.solvers.jacobian_blocks import DenseRows
from natgrad.solvers.score_jacobian import Jacobian

DAMPING = 1e-2


def main(argv: list[str] | None = None) -> dict[str, Any]:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--sections", nargs="+", choices=SECTIONS, default=[*SECTIONS])
    parser.add_argument("--rounds", type=positive, default=9)
    parser.add_argument("--scale", type=float, default=1.0, help="of all sizes")
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    options = parser.parse_args(argv)
    report: dict[str, Any] = {"environment": environment()}
    for name in options.sections:
        report[name] = SECTIONS[name](options.rounds, options.scale)
        show(name, report[name])
    if options.json is not None:
        options.json.write_text(json.dumps(report, indent=2) + "\n")
    return report


def autoencoder_step(rounds: int, scale: float) -> list[dict[str, Any]]:
    return [step_over_gradient(*autoencoder(max(2, round(256 * scale))), rounds)]


def parameter_sweep(rounds: int, scale: float) -> list[dict[str, Any]]:
    rows = []
    for width in (600, 2048, 8192):
        width = max(4, round(width * scale))
        x = normal((max(2, round(128 * scale)), 784))
        model, params, x, y = classified(
            dense_apply, dense_layers([784, width, width, 10]), x
        )
        rows.append(step_over_gradient(model, params, x, y, rounds))
    return rows


def step_over_gradient(model, params, x, y, rounds: int) -> dict[str, Any]:
    """A whole step with `Gram` over one of gradient descent."""
    tx = optax.chain(
        ng.scale_by_curvature(Gram(model, Sampled(1)), damping=DAMPING),
        optax.scale(-1e-3),
    )
    state = tx.init(params)

    def plain(params, x, y):
        gradient = jax.grad(model.loss)(params, x, y)
        return jax.tree.map(lambda p, g: p - 1e-3 * g, params, gradient)

    def exact(params, state, x, y):
        gradient = jax.grad(model.loss)(params, x, y)
        updates, state = tx.update(gradient, state, params, inputs=x)
        return optax.apply_updates(params, updates), state

    timings = interleaved(
        {
            "gradient": compiled(plain, params, x, y),
            "gram": compiled(exact, params, state, x, y),
        },
        rounds,
    )
    size = sum(leaf.size for leaf in jax.tree.leaves(params))
    grad = jax.value_and_grad(model.loss)
    memory = {
        "gradient": temporary(grad, params, x, y) + 4 * size,
        "gram": temporary(exact, params, state, x, y),
    }
    return {
        "parameters": size,
        "examples": x.shape[0],
        "tasks": {name: timing.summary() for name, timing in timings.items()},
        "ratio": paired(timings["gram"].wall, timings["gradient"].wall),
        "cpu_ratio": paired(timings["gram"].cpu, timings["gradient"].cpu),
        "memory_bytes": memory,
        "memory_ratio": memory["gram"] / memory["gradient"],
    }


def temporary(function, *arguments) -> int:
    """Bytes that the compiled function needs beside arguments and results."""
    program = jax.jit(function).lower(*arguments).compile()
    return program.memory_analysis().temp_size_in_bytes


def example_sweep(rounds: int, scale: float) -> list[dict[str, Any]]:
    """Exact labels, ten columns each, for about 1,500 parameters."""
    rows = []
    for examples in (16, 64, 256):
        x = normal((max(2, round(examples * scale)), 64))
        model, params, x, _ = classified(dense_apply, dense_layers([64, 20, 10]), x)
        v = jax.tree.map(jnp.ones_like, params)

        def step(form, model=model, x=x, v=v):
            return lambda p: form(model).at(p, x).solve(v, DAMPING)

        timings = interleaved(
            {form.__name__: compiled(step(form), params) for form in (Gram, Dense)},
            rounds,
        )
        rows.append(
            {
                "parameters": sum(leaf.size for leaf in jax.tree.leaves(params)),
                "rows": 10 * x.shape[0],
                "tasks": {name: timing.summary() for name, timing in timings.items()},
                "ratio": paired(timings["Gram"].wall, timings["Dense"].wall),
                "cpu_ratio": paired(timings["Gram"].cpu, timings["Dense"].cpu),
            }
        )
    return rows


def kernel(rounds: int, scale: float) -> list[dict[str, Any]]:
    """The dense form of a sample-space solve against the matmul of its size."""
    size = max(8, round(4000 * scale))
    rows, b = normal((size, size)) / float(np.sqrt(size)), normal((size,))
    layout = ng.tree.Layout.of(rows[0])

    def solve(rows, b):
        piece = DenseRows((rows[None, :, None, :, None],))
        jacobian = Jacobian(layout, None, (piece,), None)
        return gram_solution(jacobian, b, jnp.float32(DAMPING))[0]

    timings = interleaved(
        {
            "matmul": compiled(lambda a: a @ a, rows),
            "solve": compiled(solve, rows, b),
        },
        rounds,
    )
    share = (2 + 1 / 3) / 2
    return [
        {
            "rows": size,
            "parameters": size,
            "tasks": {name: timing.summary() for name, timing in timings.items()},
            "ratio": paired(timings["solve"].wall, timings["matmul"].wall) / share,
            "cpu_ratio": paired(timings["solve"].cpu, timings["matmul"].cpu) / share,
        }
    ]


def show(name: str, rows: list[dict[str, Any]]) -> None:
    print(name)
    for row in rows:
        sizes = {k: row[k] for k in ("parameters", "examples", "rows") if k in row}
        tasks = ", ".join(
            f"{task} {1e3 * found['seconds']:.1f} ms (compile "
            f"{found['compile_seconds']:.1f} s)"
            for task, found in row["tasks"].items()
        )
        memory = ""
        if "memory_ratio" in row:
            memory = f", x{row['memory_ratio']:.2f} in temporary memory"
        print(
            "  " + ", ".join(f"{value} {key}" for key, value in sizes.items()) + ":"
            f" {tasks}\n    x{row['ratio']:.2f}, x{row['cpu_ratio']:.2f} in CPU time"
            f"{memory}",
            flush=True,
        )


SECTIONS = {
    "autoencoder": autoencoder_step,
    "parameters": parameter_sweep,
    "examples": example_sweep,
    "kernel": kernel,
}

if __name__ == "__main__":
    main()
