"""How far may a step go? Trust regions of K-FAC, fixed and adapted, by problem.

`kfac` as it comes, but for the learning rate and the radius in nats a label:

    0.01, 0.03, 0.1     fixed
    adaptive            `natgrad.damping.AdaptiveRadius()`, which it has by default

on problems of the races (`benchmarks.race_problems`), 200 steps. Tables have medians
over seeds of training losses after an eighth of the steps and after all, and of
held-out losses after all.

    python -m benchmarks.radius --output benchmarks/results
    python -m benchmarks.radius --problems vit gru --rates 0.1 0.3 --batch 32
"""

from __future__ import annotations

import argparse
import itertools
from pathlib import Path
from typing import Any

import numpy as np

import natgrad as ng
from benchmarks.optimizers import Entry
from benchmarks.race_problems import RACES
from benchmarks.racing import Local, measure, prepared, together
from benchmarks.report import table, write
from benchmarks.timing import environment, positive

# Initial, least and largest radius, and gain.
RULE = ng.damping.AdaptiveRadius()
RADII = {str(r): (r, r, r, 0.0) for r in (0.01, 0.03, 0.1)}
RADII["adaptive"] = (RULE.initial, RULE.least, RULE.most, RULE.gain)
PROBLEMS = ["digits_mlp", "digits_cnn", "gru", "residual_mlp", "vit", "transformer"]
PROBLEMS += ["unet", "small_autoencoder"]
SHOWN = ("early", "last", "held-out")


def main(argv: list[str] | None = None) -> dict[str, Any]:
    parser = argparse.ArgumentParser(description=__doc__.split("\n")[0])
    parser.add_argument("--problems", nargs="+", choices=RACES, default=PROBLEMS)
    parser.add_argument("--radii", nargs="+", choices=RADII, default=[*RADII])
    parser.add_argument("--rates", nargs="+", type=float, default=[0.1, 0.3])
    parser.add_argument("--seeds", type=positive, default=3)
    parser.add_argument("--steps", type=positive, default=200)
    parser.add_argument("--batch", type=positive, help="instead of the problem's own")
    parser.add_argument("--output", type=Path, help="the folder for JSON and Markdown")
    options = parser.parse_args(argv)
    report = {"environment": environment(), "seeds": options.seeds}
    report |= {"steps": options.steps, "batch": options.batch, "problems": {}}
    for name in options.problems:
        found = report["problems"][name] = of_problem(name, options)
        for setting, losses in found.items():
            print(name, setting, losses, flush=True)
    name = f"radius-{options.batch}" if options.batch else "radius"
    write(options.output, name, report, page(report))
    return report


def of_problem(name: str, options) -> dict[str, dict[str, list[float]]]:
    """Losses by "learning rate: radius", seed by seed, from one compiled step."""
    problem = prepared(RACES[name].make(None), options.batch)
    measured, first = measure(problem, RACES[name].evaluated), (0.1, *RADII["0.01"])
    runner = Local(problem, Entry((first,), make), measured)
    looks, found = sorted({max(options.steps // 8, 1), options.steps}), {}
    for rate, radius in itertools.product(options.rates, options.radii):
        runner.setting, losses = (rate, *RADII[radius]), []
        for seed in range(1, options.seeds + 1):
            run = together(problem, {"kfac": runner}, seed, looks)["kfac"]
            losses.append((run["loss"][1], run["loss"][-1], run["held"][-1]))
        columns = zip(SHOWN, zip(*losses, strict=True), strict=True)
        found[f"{rate}: {radius}"] = {kind: list(each) for kind, each in columns}
    return found


def make(model: ng.Model, rate: Any, *rule: Any):
    return ng.kfac(rate, model, trust_region=ng.damping.AdaptiveRadius(*rule))


def page(report: dict[str, Any]) -> str:
    """Markdown: a table for each kind of loss, with a column for each problem."""
    parts = ["# Radii of trust regions"]
    batch = f"batch {report['batch']}, " if report["batch"] else ""
    parts.append(f"{report['steps']} steps, {batch}{report['seeds']} seeds, medians.")
    titles = {
        "early": "Training loss after an eighth of the steps",
        "last": "Training loss after all steps",
        "held-out": "Held-out loss after all steps",
    }
    found = report["problems"].values()
    for kind, title in titles.items():
        rows = [
            (*setting.split(": "), *(median(each[setting][kind]) for each in found))
            for setting in next(iter(found))
        ]
        heads = ("learning rate", "radius", *report["problems"])
        parts += [f"## {title}", table(heads, rows)]
    return "\n\n".join(parts)


def median(losses: list[float]) -> float:
    return float(np.median([v if np.isfinite(v) else np.inf for v in losses]))


if __name__ == "__main__":
    main()
