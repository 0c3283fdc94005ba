"""What does a K-FAC step cost, in Adam steps, and which stage does it go to?

One training step (gradient, update, new parameters; parameters and state donated) of
Adam and of natural gradients, compiled ahead of time:

    kfac            `natgrad.kfac` as it comes
    kfac rows       the same, the gradient of narrow batches as rows
    kfac every 5    statistics in every step, inverses every five
    kfac 5 and 5    both every five, statistics of the same part as where it comes
    ekfac           `natgrad.ekfac` as it comes
    kfac_adaptive   `natgrad.kfac_adaptive` as it comes, with rows
    gram            `natgrad.gram` as it comes: on the transformer with the exact labels
                    of 32 examples of ten classes, else with one sampled an example

What is kept is renewed in some steps only, so ten steps are run and divided by ten; the
rounds of all tasks are interleaved. How good a solution is, which costs as much as the
solution, is measured about once in a hundred steps and so in few of the rounds. A floor
is Adam's step, as measured, and those of the stages that a step has, shared over the
steps from one renewal to the next. `benchmarks.stages` times the stages of K-FAC and
their floors. Compile times are CPU times, tracing too.

See `benchmarks.timing` for how time is taken and which thread settings matter.

    python -m benchmarks.step_cost --models classifier --json step_cost.json
    python -m benchmarks.step_cost --write        # to benchmarks/results/
"""

from __future__ import annotations

import argparse
import dataclasses
import json
import time
from pathlib import Path
from typing import Any

import jax
import jax.numpy as jnp
import numpy as np
import optax

import natgrad as ng
from benchmarks.problems import MODELS
from benchmarks.stages import PARTS, SHARED, matmul_rate, stages
from benchmarks.timing import environment, interleaved, positive
from natgrad.curvature import KFAC
from natgrad.optimizers.approximate import SPARING

FIVE_AND_FIVE = dataclasses.replace(SPARING, inverses=5, warm_up=0)
STEPS, WARM_UP, RATE, DAMPING = 10, 21, 1e-3, 1e-2
RESULTS = Path(__file__).parent / "results"


def renewed(model, refresh):
    return ng.kfac(RATE, model, damping=DAMPING, refresh=refresh)


# name -> (model -> optimizer, is the gradient given as rows too?)
OPTIMIZERS = {
    "adam": (lambda _: optax.with_extra_args_support(optax.adam(RATE)), False),
    "kfac": (lambda model: ng.kfac(RATE, model, damping=DAMPING), False),
    "kfac rows": (lambda model: ng.kfac(RATE, model, damping=DAMPING), True),
    "kfac every 5": (lambda model: renewed(model, ng.Refresh(1, 5)), False),
    "kfac 5 and 5": (lambda model: renewed(model, FIVE_AND_FIVE), False),
    "ekfac": (lambda model: ng.ekfac(RATE, model, damping=DAMPING), False),
    "kfac_adaptive": (lambda model: ng.kfac_adaptive(model), True),
    "gram": (lambda model: ng.gram(RATE, model, damping=DAMPING), False),
}
AGAINST = [name for name in OPTIMIZERS if name != "adam"]


def main(argv: list[str] | None = None) -> dict[str, Any]:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--models", nargs="+", choices=MODELS, default=list(MODELS))
    parser.add_argument("--against", nargs="*", choices=AGAINST, default=AGAINST)
    parser.add_argument("--rounds", type=positive, default=5)
    parser.add_argument("--json", type=Path, help="write the figures to this file")
    parser.add_argument(
        "--write", action="store_true", help=f"figures and tables to {RESULTS}"
    )
    options = parser.parse_args(argv)
    report = {"environment": environment(), "models": {}}
    for name in options.models:
        problem = MODELS[name]()
        report["models"][name] = cost(*problem, options.against, options.rounds)
        print(table({name: report["models"][name]}), flush=True)
    text = json.dumps(report, indent=2) + "\n"
    if options.json is not None:
        options.json.write_text(text)
    if options.write:
        RESULTS.mkdir(exist_ok=True)
        (RESULTS / "step_cost.json").write_text(text)
        (RESULTS / "step_cost.md").write_text(page(report))
    return report


def cost(model, params, x, y, against, rounds: int) -> dict[str, Any]:
    """Seconds of every task, steps over Adam's, stages and their floors."""
    tasks, seconds = {}, {}
    for name in ("adam", *against):
        make, narrow = OPTIMIZERS[name]
        tasks[name] = training(make(model), narrow, model, params, x, y)
        seconds[name] = tasks[name][1]
    parts, operations = stages(model, params, x, y, DAMPING)
    rate_task, rate_operations = matmul_rate()
    timings = interleaved({**tasks, **parts, "product": rate_task}, rounds)
    found = {name: timing.summary() for name, timing in timings.items()}
    for name in seconds:
        for figure in ("seconds", "fastest_seconds", "cpu_seconds"):
            found[name][figure] /= STEPS

    def paired(name, clock):
        both = (np.array(getattr(timings[n], clock)) for n in (name, "adam"))
        return float(np.median(np.divide(*both)))

    rate = rate_operations / found["product"]["cpu_seconds"]
    split = {name: {"cpu_seconds": found[name]["cpu_seconds"]} for name in PARTS}
    for name, other in SHARED.items():
        split[name]["cpu_seconds"] -= found[other]["cpu_seconds"]
    for name in PARTS:
        split[name] |= {"operations": operations[name]}
        split[name]["floor_seconds"] = operations[name] / rate
    return {
        "parameters": sum(leaf.size for leaf in jax.tree.leaves(params)),
        "tasks": found,
        "over_adam": {name: paired(name, "wall") for name in seconds},
        "cpu_over_adam": {name: paired(name, "cpu") for name in seconds},
        "compile_over_adam": {n: seconds[n] / seconds["adam"] for n in seconds},
        "operations_per_cpu_second": rate,
        "stages": split,
        "floors_over_adam": floors(split, found["adam"]["cpu_seconds"]),
    }


def floors(split, adam: float) -> dict[str, float]:
    """Steps at the measured rate of products, the gradient as measured, over Adam's."""
    floor = {name: stage["floor_seconds"] for name, stage in split.items()}
    part, inverse = floor["statistics of part"], floor["inverse"]
    rows = min(floor["apply"], floor["apply rows"])
    used = {
        "kfac": part / 5 + inverse / 10 + floor["apply"],
        "kfac rows": part / 5 + inverse / 10 + rows,
        "kfac every 5": floor["statistics"] + inverse / 5 + floor["apply"],
        "kfac 5 and 5": (part + inverse) / 5 + floor["apply"],
    }
    return {name: 1 + (s + floor["divergence"]) / adam for name, s in used.items()}


def training(tx, narrow, model, params, x, y):
    """A task of STEPS steps from a state that has left its warm-up behind."""

    def step(params, state, x, y):
        given = {"inputs": x, "targets": y, "value_fn": model.loss}
        if narrow:
            found = KFAC(model).value_grad_and_rows(params, x, y)
            given["value"], gradient, given["rows"] = found
        else:
            given["value"], gradient = jax.value_and_grad(model.loss)(params, x, y)
        updates, state = tx.update(gradient, state, params, **given)
        return optax.apply_updates(params, updates), state

    params = jax.tree.map(jnp.copy, params)  # these are donated
    state = tx.init(params)
    begun = time.process_time()
    whole = jax.jit(step, donate_argnums=(0, 1))
    program = whole.lower(params, state, x, y).compile()
    seconds = time.process_time() - begun
    carry = [(params, state)]
    for _ in range(WARM_UP):
        carry[0] = program(*carry[0], x, y)

    def run():
        for _ in range(STEPS):
            carry[0] = program(*carry[0], x, y)
        return carry[0]

    return run, seconds


def table(models: dict[str, Any]) -> str:
    """Two Markdown tables a model: steps over Adam's, and stages over their floors."""
    lines = []
    for name, found in models.items():
        lines += [f"### {name}: {found['parameters']} parameters", ""]
        heads = "CPU ms | CPU / Adam | floor | over it | wall / Adam | compile / Adam"
        lines += [f"| step | {heads} |", "|---" * 7 + "|"]
        for task, over in found["cpu_over_adam"].items():
            floor = found["floors_over_adam"].get(task)
            cells = [
                f"{1e3 * found['tasks'][task]['cpu_seconds']:.2f}",
                f"{over:.2f}",
                "" if floor is None else f"{floor:.2f}",
                "" if floor is None else f"{over / floor:.2f}",
                f"{found['over_adam'][task]:.2f}",
                f"{found['compile_over_adam'][task]:.1f}",
            ]
            lines += [f"| {task} | " + " | ".join(cells) + " |"]
        rate = found["operations_per_cpu_second"] / 1e9
        lines += ["", f"| stage | CPU ms | floor at {rate:.0f} GFLOP/s, ms |"]
        lines += ["|---|---|---|"]
        for part in PARTS:
            stage = found["stages"][part]
            seconds = (1e3 * stage[f] for f in ("cpu_seconds", "floor_seconds"))
            lines += [f"| {part} | " + " | ".join(f"{s:.2f}" for s in seconds) + " |"]
        lines += [""]
    return "\n".join(lines)


def page(report: dict[str, Any]) -> str:
    """The report as Markdown: what is measured, where, and the tables."""
    where = report["environment"]
    load = where["load_average"]
    about = [
        f"- {where['device']}, {where['processor']}, {where['cores']} cores",
        "- load average "
        + ("unknown" if load is None else ", ".join(f"{one:.1f}" for one in load)),
        "- " + ", ".join(f"{k} {v}" for k, v in where["versions"].items() if v),
        "- " + ", ".join(f"{k}={v}" for k, v in where["threads"].items() if v),
        f"- commit {where['commit']}",
    ]
    head, rest = __doc__.split("\n\n", 1)
    rest = rest.split("\n\nSee `benchmarks.timing`")[0]
    return "\n".join([f"# {head}", "", rest, "", *about, "", table(report["models"])])


if __name__ == "__main__":
    main()
