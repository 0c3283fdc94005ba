"""How fast are dense solves, against the floor set by this machine's matmul rate?

    floor = (2 M P² + P³/3) / rate,      rate: float32 [n, n] @ [n, n], 2 n³ operations

for JᵀJ from M score rows, counted in full, and a Cholesky factorisation; the rate is
measured in the same rounds, at the largest P. Tasks, for each P:

    gram    JᵀWJ from given score rows [M, P], M as in `whole`
    solve   (F + λI)⁻¹ v from a given F
    kernel  both, under one jit: the ratio to the floor is the figure of merit
    whole   Dense(model).at(params, x).solve(v, λ) of a two-layer classifier with
            about P parameters: score rows, F and solve from nothing

Then `batch`: 256 systems of size 32 by vmap, against Python loops over the jitted
solve. `loop` goes from the same stacked arrays to the same stacked array; `calls`
leaves slicing and stacking out, a lower bound of any loop.

See `benchmarks.timing` for how time is taken and which thread settings matter.

    python -m benchmarks.solvers --sizes 100 1000 3000 --json solvers.json
"""

from __future__ import annotations

import argparse
import json
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np

import natgrad as ng
from benchmarks.timing import Timing, compiled, environment, interleaved, positive
from natgrad.curvature.dense import weighted_gram
from natgrad.solvers.dense import direct_solution

INPUTS, CLASSES = 16, 10
DAMPING = 1e-3


def main(argv: list[str] | None = None) -> dict[str, Any]:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--sizes", type=positive, nargs="+", default=[100, 1000, 3000])
    parser.add_argument("--rounds", type=positive, default=9)
    parser.add_argument("--batch", type=positive, nargs=2, default=[256, 32])
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    options = parser.parse_args(argv)

    report = {
        "environment": environment(),
        "dense": dense(options.sizes, options.rounds),
        "batch": batch(*options.batch, options.rounds),
    }
    if options.json is not None:
        options.json.write_text(json.dumps(report, indent=2) + "\n")
    show(report)
    return report


def dense(sizes: list[int], rounds: int) -> dict[str, Any]:
    """All tasks of all sizes, interleaved with the matmul that sets the floor."""
    side = max(sizes)
    square = normal((side, side))
    tasks = {"matmul": compiled(lambda a: a @ a, square)}
    shapes = {}
    for size in sizes:
        model, params, x = classifier(size)
        parameters = sum(leaf.size for leaf in jax.tree.leaves(params))
        shapes[size] = (x.shape[0] * CLASSES, parameters)
        tasks |= {
            f"{name} {size}": task
            for name, task in dense_tasks(model, params, x, *shapes[size]).items()
        }
    timings = interleaved(tasks, rounds)
    operations = 2 * side**3
    seconds = timings["matmul"].summary()["seconds"]
    return {
        "matmul": {
            "size": side,
            "operations_per_second": operations / seconds,
            **timings["matmul"].summary(),
        },
        "sizes": [
            {
                "parameters": parameters,
                "score_rows": rows,
                "floor_seconds": floor(rows, parameters) / operations * seconds,
                "tasks": {
                    name: against_floor(
                        timings[f"{name} {size}"],
                        timings["matmul"],
                        floor(rows, parameters) / operations,
                    )
                    for name in ("gram", "solve", "kernel", "whole")
                },
            }
            for size, (rows, parameters) in shapes.items()
        ],
    }


def dense_tasks(model, params, x, rows: int, parameters: int) -> dict[str, Any]:
    """The four tasks of one size, compiled."""
    g = normal((rows, parameters))
    weights = jnp.full(rows, 1 / rows, jnp.float32)
    v = normal((parameters,))
    tree = jax.tree.map(jnp.ones_like, params)
    damping = jnp.float32(DAMPING)
    gram = compiled(weighted_gram, g, weights)
    matrix = gram[0]()
    kernel = lambda g, weights, v: direct_solution(
        weighted_gram(g, weights), v, damping
    )
    whole = lambda params, x, v: (
        ng.curvature.Dense(model).at(params, x).solve(v, damping)
    )
    return {
        "gram": gram,
        "solve": compiled(direct_solution, matrix, v, damping),
        "kernel": compiled(kernel, g, weights, v),
        "whole": compiled(whole, params, x, tree),
    }


def classifier(size: int):
    """(model, params, x) with about `size` parameters and as many score rows."""
    hidden = max(1, round((size - CLASSES) / (INPUTS + 1 + CLASSES)))
    shapes = {
        "w1": (INPUTS, hidden),
        "b1": (hidden,),
        "w2": (hidden, CLASSES),
        "b2": (CLASSES,),
    }
    params = {name: 0.3 * normal(shape) for name, shape in shapes.items()}

    def apply(params, x):
        hidden = jnp.tanh(x @ params["w1"] + params["b1"][None])
        return hidden @ params["w2"] + params["b2"][None]

    x = normal((max(1, round(size / CLASSES)), INPUTS))
    return ng.Model(apply, ng.families.Categorical()), params, x


def batch(count: int, size: int, rounds: int) -> dict[str, Any]:
    """`count` systems of size `size` by vmap, and by Python loops."""
    factors = normal((count, size, size))
    matrices = jnp.einsum("bmp,bmq->bpq", factors, factors) / size
    vectors = normal((count, size))
    damping = jnp.float32(DAMPING)
    batched = jax.vmap(lambda matrix, v: direct_solution(matrix, v, damping).value)
    single = jax.jit(lambda matrix, v: direct_solution(matrix, v, damping).value)
    pairs = [(matrices[i], vectors[i]) for i in range(count)]

    def calls(pairs=pairs):
        return [single(matrix, v) for matrix, v in pairs]

    def loop():
        return jnp.stack(calls(zip(matrices, vectors, strict=True)))

    compile_seconds = compiled(single, *pairs[0])[1]
    tasks = {
        "vmap": compiled(batched, matrices, vectors),
        "loop": (loop, compile_seconds),
        "calls": (calls, compile_seconds),
    }
    timings = interleaved(tasks, rounds)
    return {
        "count": count,
        "size": size,
        "tasks": {name: timing.summary() for name, timing in timings.items()},
        "speedup": {
            name: {
                "ratio": paired(timings[name].wall, timings["vmap"].wall),
                "cpu_ratio": paired(timings[name].cpu, timings["vmap"].cpu),
            }
            for name in ("loop", "calls")
        },
    }


def floor(rows: int, parameters: int) -> float:
    """Operations of JᵀJ and of a Cholesky factorisation."""
    return 2 * rows * parameters**2 + parameters**3 / 3


def against_floor(timing: Timing, matmul: Timing, share: float) -> dict[str, float]:
    """A summary, with ratios to `share` of the matmul's time."""
    return {
        **timing.summary(),
        "ratio": paired(timing.wall, matmul.wall) / share,
        "cpu_ratio": paired(timing.cpu, matmul.cpu) / share,
    }


def paired(times: list[float], others: list[float]) -> float:
    """The median over rounds of the ratio within a round."""
    return float(np.median(np.divide(times, others)))


def normal(shape: tuple[int, ...]) -> jax.Array:
    """Standard normal float32 numbers, the same at each call."""
    return jnp.asarray(np.random.default_rng(0).normal(size=shape), jnp.float32)


def show(report: dict[str, Any]) -> None:
    environment, matmul = report["environment"], report["dense"]["matmul"]
    print(f"{environment['device']}, {environment['processor']}, ", end="")
    print(f"{environment['cores']} cores, load average {environment['load_average']}")
    rate = matmul["operations_per_second"] / 1e9
    print(f"matmul of size {matmul['size']}: {rate:.0f} GFLOP/s")
    print("     P      M  task     wall ms    CPU ms  compile s  wall/floor  CPU/floor")
    for row in report["dense"]["sizes"]:
        for name, task in row["tasks"].items():
            print(
                f"{row['parameters']:6} {row['score_rows']:6}  {name:6} "
                f"{1e3 * task['seconds']:9.2f} {1e3 * task['cpu_seconds']:9.2f} "
                f"{task['compile_seconds']:10.2f} {task['ratio']:11.2f} "
                f"{task['cpu_ratio']:10.2f}"
            )
    batch = report["batch"]
    print(f"{batch['count']} systems of size {batch['size']}")
    for name, task in batch["tasks"].items():
        speedup = batch["speedup"].get(name, {"ratio": 1, "cpu_ratio": 1})
        print(
            f"  {name:6} {1e3 * task['seconds']:9.2f} ms  {speedup['ratio']:.1f} times "
            f"as long as vmap ({speedup['cpu_ratio']:.1f} in CPU time)"
        )


if __name__ == "__main__":
    main()
