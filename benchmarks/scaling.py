"""How does the time of a step grow with parameters, examples and devices?

    parameters   dense classifiers 784-w-w-10 of growing width w, one batch size
    examples     the classifier 784-512-512-10 at growing batch sizes
    devices      one batch, divided over 1, 2, 4, ... devices by sharded jit; where
                 there is one device alone, only that

A step is gradient, update and new parameters, ahead-of-time compiled; ten steps are run
and divided by ten, since what is kept is renewed in some only. Steps of one row are
interleaved; see `benchmarks.timing`. The slope is that of log CPU time (of log seconds
on an accelerator) over the log of what grows, by least squares.

On a CPU several devices are had by XLA_FLAGS=--xla_force_host_platform_device_count=4;
they share the cores.

    python -m benchmarks.scaling --sections parameters examples --output results
"""

from __future__ import annotations

import argparse
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax
from jax.sharding import AxisType, NamedSharding, PartitionSpec
from matplotlib.figure import Figure

from benchmarks.memory import OPTIMIZERS
from benchmarks.problems import classified, dense_apply, dense_layers
from benchmarks.report import cell, table, write
from benchmarks.timing import environment, interleaved, positive

SECTIONS = ("parameters", "examples", "devices")
WIDTHS, BATCHES = (128, 256, 512, 1024, 2048), (64, 128, 256, 512, 1024)
STEPS, WARM_UPS = 10, 3  # of a task; tasks run before it


def main(argv: list[str] | None = None) -> dict[str, Any]:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--sections", nargs="+", choices=SECTIONS, default=[*SECTIONS])
    parser.add_argument("--optimizers", nargs="+", choices=OPTIMIZERS)
    parser.add_argument("--widths", type=positive, nargs="+", default=[*WIDTHS])
    parser.add_argument("--batches", type=positive, nargs="+", default=[*BATCHES])
    parser.add_argument("--rounds", type=positive, default=5)
    parser.add_argument("--output", type=Path, help="write files to this folder")
    options = parser.parse_args(argv)
    names = options.optimizers or ["adam", "kfac", "gram"]
    width, batch = options.widths[len(options.widths) // 2], options.batches[-1]
    middle = options.batches[len(options.batches) // 2]
    counts = [1]
    while counts[-1] * 2 <= jax.device_count():
        counts.append(counts[-1] * 2)
    sweeps = {
        "parameters": [(w, middle, 1) for w in options.widths],
        "examples": [(width, b, 1) for b in options.batches],
        "devices": [(width, batch - batch % counts[-1], d) for d in counts],
    }
    report: dict[str, Any] = {"environment": environment()}
    text, figures = [f"# {__doc__.splitlines()[0]}", ""], {}
    for section in options.sections:
        rows = [
            row(*sizes, names, options.rounds, section) for sizes in sweeps[section]
        ]
        report[section] = {"rows": rows, "slopes": slopes(rows, names)}
        text += [shown(section, report[section], names), ""]
        print(text[-2], flush=True)
        figures[section] = figure(section, rows, names)
        write(options.output, "scaling", report, "\n".join(text), figures)
    return report


def row(width: int, batch: int, devices: int, names, rounds: int, section: str):
    """Seconds a step of each optimizer for one size."""
    x = jax.random.normal(jax.random.PRNGKey(1), (batch, 784), jnp.float32)
    sizes = [784, width, width, 10]
    model, params, x, y = classified(dense_apply, dense_layers(sizes), x)
    mesh = jax.make_mesh(
        (devices,),
        ("data",),
        axis_types=(AxisType.Auto,),
        devices=jax.devices()[:devices],
    )
    everywhere = NamedSharding(mesh, PartitionSpec())
    x, y = jax.device_put((x, y), NamedSharding(mesh, PartitionSpec("data")))
    tasks = {}
    for name in names:
        tx = OPTIMIZERS[name](model)
        carry = jax.device_put((params, tx.init(params)), everywhere)
        tasks[name] = settled(steps_of(tx, model), carry, x, y)
    found = {}
    for name, timing in interleaved(tasks, rounds).items():
        figures = timing.summary()
        for key in ("seconds", "fastest_seconds", "cpu_seconds"):
            figures[key] /= STEPS
        found[name] = figures
    count = sum(leaf.size for leaf in jax.tree.leaves(params))
    grown = {"parameters": count, "examples": batch, "devices": devices}
    return {"width": width, **grown, "grown": grown[section], "tasks": found}


def settled(run, carry, x, y):
    """A task from a state that has left its warm-up behind, and its compile time."""
    begun = time.process_time()
    program = jax.jit(run).lower(carry, x, y).compile()
    seconds = time.process_time() - begun
    for _ in range(WARM_UPS):
        carry = program(carry, x, y)
    return lambda: program(carry, x, y), seconds


def steps_of(tx, model):
    """(carry, x, y) -> carry after STEPS steps, in one program."""

    def run(carry, x, y):
        def step(carry, _):
            params, state = carry
            gradient = jax.grad(model.loss)(params, x, y)
            updates, state = tx.update(gradient, state, params, inputs=x)
            return (optax.apply_updates(params, updates), state), None

        return jax.lax.scan(step, carry, length=STEPS)[0]

    return run


def slopes(rows, names) -> dict[str, float | None]:
    if len(rows) < 2:
        return dict.fromkeys(names)
    clock = "cpu_seconds" if jax.default_backend() == "cpu" else "seconds"
    grown = np.log([r["grown"] for r in rows])
    each = {n: np.log([r["tasks"][n][clock] for r in rows]) for n in names}
    return {n: float(np.polyfit(grown, times, 1)[0]) for n, times in each.items()}


def shown(section: str, found: dict[str, Any], names) -> str:
    heads = ["width", "parameters", "examples", "devices"]
    heads += [f"{name}: ms (CPU ms)" for name in names]
    rows = [
        [
            *(r[key] for key in ("width", "parameters", "examples", "devices")),
            *(
                f"{cell(1e3 * r['tasks'][n]['seconds'])} "
                f"({cell(1e3 * r['tasks'][n]['cpu_seconds'])})"
                for n in names
            ),
        ]
        for r in found["rows"]
    ]
    steep = [
        "" if found["slopes"][name] is None else f"{found['slopes'][name]:.2f}"
        for name in names
    ]
    rows += [["slope", "", "", "", *steep]]
    return f"## {section}\n\n{table(heads, rows)}"


def figure(section: str, rows, names) -> Figure:
    drawn = Figure(figsize=(6, 4.5), layout="constrained")
    axes = drawn.subplots()
    for name in names:
        seconds = [r["tasks"][name]["seconds"] for r in rows]
        axes.loglog([r["grown"] for r in rows], seconds, marker="o", label=name)
    axes.set(xlabel=section, ylabel="seconds a step")
    axes.legend()
    return drawn


if __name__ == "__main__":
    main()
