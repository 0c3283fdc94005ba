"""How long does the first step take to trace and to compile, in Adam's times?

One training step (gradient, update, new parameters; parameters and state donated) of
each optimizer as it comes, in CPU seconds of all threads: traced, lowered to StableHLO,
compiled. The first step is `init`, these three, and the step itself. Caches of JAX are
cleared before each. Set no XLA_FLAGS: they change what is compiled.

    python -m benchmarks.compile_time --models classifier --json compile_time.json
    python -m benchmarks.compile_time --write        # to benchmarks/results/
"""

from __future__ import annotations

import argparse
import itertools
import json
import time
from pathlib import Path
from typing import Any

import jax
import optax

import natgrad as ng
from benchmarks.problems import MODELS
from benchmarks.timing import environment

RESULTS = Path(__file__).parent / "results"
# name -> model -> optimizer, each with its defaults
OPTIMIZERS = {
    "adam": lambda _: optax.with_extra_args_support(optax.adam(1e-3)),
    "muon": lambda _: optax.with_extra_args_support(optax.contrib.muon(1e-3)),
    "kfac": lambda model: ng.kfac(model=model),
    "gram": lambda model: ng.gram(model=model),
    "natural_gradient": lambda model: ng.natural_gradient(model=model),
    "kfac_adaptive": ng.kfac_adaptive,
}
STAGES = ("trace", "lower", "compile")


def main(argv: list[str] | None = None) -> dict[str, Any]:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument(
        "--against", nargs="*", choices=OPTIMIZERS, default=list(OPTIMIZERS)
    )
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    parser.add_argument(
        "--write", action="store_true", help=f"figures and tables to {RESULTS}"
    )
    options = parser.parse_args(argv)
    report = {"environment": environment(), "models": {}}
    first_step(OPTIMIZERS["adam"], *MODELS["classifier"]())  # starts XLA
    for name in options.models:
        problem = MODELS[name]()
        found = {
            optimizer: first_step(OPTIMIZERS[optimizer], *problem)
            for optimizer in dict.fromkeys(("adam", *options.against))
        }
        report["models"][name] = found
        print(table(name, found), flush=True)
    text = json.dumps(report, indent=2) + "\n"
    if options.json is not None:
        options.json.write_text(text)
    if options.write:
        (RESULTS / "compile_time.json").write_text(text)
        (RESULTS / "compile_time.md").write_text(page(report))
    return report


def first_step(make, model, params, x, y) -> dict[str, float]:
    """CPU seconds of the stages and of all, wall seconds, and the size of the program.

    Args:
        make: model -> optimizer.
        model: of the problem.
        params: of the model.
        x: inputs.
        y: labels.
    """
    jax.clear_caches()
    transformation = make(model)

    def step(params, state, x, y):
        value, gradient = jax.value_and_grad(model.loss)(params, x, y)
        given = {"inputs": x, "targets": y, "value": value, "value_fn": model.loss}
        updates, state = transformation.update(gradient, state, params, **given)
        return optax.apply_updates(params, updates), state

    wall, clock = time.perf_counter(), [time.process_time()]
    state = transformation.init(params)
    clock.append(time.process_time())
    traced = jax.jit(step).trace(params, state, x, y)
    clock.append(time.process_time())
    lowered = traced.lower()
    clock.append(time.process_time())
    program = lowered.compile()
    clock.append(time.process_time())
    jax.block_until_ready(program(params, state, x, y))
    wall = time.perf_counter() - wall
    seconds = [after - before for before, after in itertools.pairwise(clock)]
    return {
        **dict(zip(STAGES, seconds[1:], strict=True)),
        "compiled": sum(seconds[1:]),
        "first_step": time.process_time() - clock[0],
        "first_step_wall": wall,
        "operations": lowered.as_text().count("stablehlo."),
    }


def table(name: str, found: dict[str, dict[str, float]]) -> str:
    """A Markdown table of one model."""
    heads = (
        "trace",
        "lower",
        "compile",
        "all",
        "all / Adam",
        "first step",
        "StableHLO",
    )
    lines = [f"### {name}", "", f"| optimizer | {' | '.join(heads)} |"]
    lines += ["|---" * (1 + len(heads)) + "|"]
    for optimizer, figures in found.items():
        cells = [f"{figures[stage]:.2f}" for stage in (*STAGES, "compiled")]
        cells += [f"{figures['compiled'] / found['adam']['compiled']:.1f}"]
        cells += [f"{figures['first_step']:.2f}", f"{figures['operations']}"]
        lines += [f"| {optimizer} | {' | '.join(cells)} |"]
    return "\n".join([*lines, ""])


def page(report: dict[str, Any]) -> str:
    """The report as Markdown: what is measured, where, and the tables."""
    where = report["environment"]
    load = where["load_average"]
    about = [
        f"- {where['device']}, {where['processor']}, {where['cores']} cores",
        "- load average "
        + ("unknown" if load is None else ", ".join(f"{one:.1f}" for one in load)),
        "- " + ", ".join(f"{k} {v}" for k, v in where["versions"].items() if v),
        f"- commit {where['commit']}",
    ]
    head, rest = __doc__.split("\n\n", 1)
    rest = rest.split("\n\n    python")[0]
    tables = [table(name, found) for name, found in report["models"].items()]
    return "\n".join([f"# {head}", "", rest, "", *about, "", *tables])


if __name__ == "__main__":
    main()
