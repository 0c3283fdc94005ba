"""How much memory does an exact step of 10⁷ parameters and 4,096 samples take?

One solve (F + λI)⁻¹ g, each in a process of its own, of a network 784-w-w-10:

    factors      `Gram`, one sampled label: the layers' factors are kept
    rows         `Gram(chunk_size="auto")` of a network whose weights pass through a
                 sine, so that rows are written out, a chunk at a time: M² P operations
    matrix_free  `MatrixFree(chunk_size=256)`, three products

`peak` is the largest resident set of the process, `compiled` XLA's own analysis of the
program: arguments, results and temporaries. With --compile the program is analysed, and
does not run.

    python -m benchmarks.sample_memory --cases factors matrix_free
    python -m benchmarks.sample_memory --cases rows --compile
    python -m benchmarks.sample_memory --cases rows --examples 192
"""

from __future__ import annotations

import argparse
import json
import resource
import subprocess
import sys
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp

import natgrad as ng
from benchmarks.timing import environment, positive
from natgrad.curvature import Gram, MatrixFree, Sampled
from natgrad.solvers.conjugate_gradients import FixedIterations

DAMPING, INPUTS, CLASSES = 1e-2, 784, 10


def main(argv: list[str] | None = None) -> dict[str, Any]:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--cases", nargs="+", choices=CURVATURES, default=[*CURVATURES])
    parser.add_argument("--examples", type=positive, default=4096)
    parser.add_argument("--width", type=positive, default=2900)
    parser.add_argument("--compile", action="store_true", help="do not run it")
    parser.add_argument("--child", action="store_true", help=argparse.SUPPRESS)
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    options = parser.parse_args(argv)
    if options.child:
        found = measured(options.cases[0], options)
        print(json.dumps(found))
        return found
    report: dict[str, Any] = {"environment": environment()}
    for name in options.cases:
        sizes = ["--examples", options.examples, "--width", options.width]
        command = [sys.executable, "-m", "benchmarks.sample_memory", "--child"]
        command += ["--cases", name, *map(str, sizes)]
        command += ["--compile"] * options.compile
        out = subprocess.run(command, check=True, stdout=subprocess.PIPE, text=True)
        report[name] = json.loads(out.stdout.splitlines()[-1])
        print(name, report[name], flush=True)
    if options.json is not None:
        options.json.write_text(json.dumps(report, indent=2) + "\n")
    return report


def network(weights):
    """x -> z, its weights as `weights` gives them."""

    def apply(params, x):
        first, second, last = (weights(w) for w in params)
        return jnp.tanh(jnp.tanh(x @ first) @ second) @ last

    return ng.Model(apply, ng.families.Categorical())


CURVATURES = {
    "factors": lambda: Gram(network(lambda w: w), Sampled(1)),
    "rows": lambda: Gram(network(jnp.sin), Sampled(1), chunk_size="auto"),
    "matrix_free": lambda: MatrixFree(
        network(lambda w: w), stop=FixedIterations(3), chunk_size=256
    ),
}


def measured(name: str, options) -> dict[str, Any]:
    """Bytes and seconds of one solve."""
    curvature = CURVATURES[name]()
    shapes = [(INPUTS, options.width), (options.width,) * 2, (options.width, CLASSES)]
    key = jax.random.PRNGKey(0)
    params = [jax.random.normal(key, s) * s[0] ** -0.5 for s in shapes]
    x = jax.random.normal(key, (options.examples, INPUTS))
    y = jnp.arange(options.examples) % CLASSES

    def solve(params, x, y):
        gradient = jax.grad(curvature.model.loss)(params, x, y)
        return curvature.at(params, x, key=key).solve(gradient, DAMPING)

    start = time.process_time()
    program = jax.jit(solve).lower(params, x, y).compile()
    analysis = program.memory_analysis()
    compiled = analysis.temp_size_in_bytes + analysis.argument_size_in_bytes
    found = {
        "parameters": sum(w.size for w in params),
        "examples": options.examples,
        "compiled": compiled + analysis.output_size_in_bytes,
        "compile_cpu_seconds": time.process_time() - start,
    }
    if not options.compile:
        start = time.process_time()
        solution = jax.block_until_ready(program(params, x, y))
        found["cpu_seconds"] = time.process_time() - start
        found["finite"] = bool(ng.tree.all_finite(solution))
        found["peak"] = 1024 * resource.getrusage(resource.RUSAGE_SELF).ru_maxrss
    return found


if __name__ == "__main__":
    main()
