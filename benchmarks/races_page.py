"""docs/races.md: the text, tables and pictures of what was raced."""

from __future__ import annotations

import math
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import profiles
from benchmarks.curves import COLOURS, figure
from benchmarks.optimizers import OURS
from benchmarks.races import DOCS, FOLDER, Found, costs, listed, load, machines
from benchmarks.report import cell, table

HEAD = """---
hide: [toc]
---

# Races

Which optimizer reaches a loss in how many steps and seconds, and what is the model
worth then on examples that it has not seen? Every optimizer but `kfac_adaptive`, which
has nothing to tune, has the best of five settings. The goal of a problem is the
training loss that tuned Adam ends at. `python -m benchmarks.convergence` runs the races
and writes this page; `benchmarks/results/races/` has all curves, `races.md` beside it a
table for each problem, `benchmarks/optimizers.py` the settings. The
[report card](report_card.md) has this library's optimizers as they come. Their radius
[adapted](damping.md#how-long-a-step-may-be), but for `autoencoder`, `linear`,
`logistic`, `pinn` and `unet` before rises beyond what F says counted in full.
"""
COMPILED = """With compilation the plain optimizers come first: the steps of these races
take less than what a program with Fisher information takes to compile.
"""
GROUP = """On how many problems an optimizer of this library with a model's Fisher
information is the best of all, and at most one and a half times the best. These are
{ours}, as many as can train a problem, and the best of them is known afterwards alone.
`soap` and `kl_shampoo`, which know no model, count as others:
"""
PROFILE = """For every optimizer, medians over seeds. Looks at the losses are a seventh
of the steps apart, so optimizers tie. Dolan and Moré (2002) draw the same for every
factor: the share of problems on which an optimizer needs at most so many times the
best, of those where it ran.
"""
HELD = """How many problems' median held-out loss is lower than tuned Adam's after all
its steps: after all steps, at the goal (of the problems where it was reached), and the
lowest of the run beside Adam's lowest. With few examples the optimizers that fit them
best generalise worst unless they stop, Adam among them.
"""
COST = """Over tuned Adam's on the same problem, medians over problems; CPU seconds to
compile as they are. Last, how often the setting that was kept is the least or the
greatest of its grid, so that a wider one might be better. What kfac-jax takes to
compile has its first step in it, and its memory is not known.
"""
BY_PROBLEM = """Steps and CPU seconds to the goal of the optimizer that is first, and of
the first of this library with a model's Fisher information; then held-out losses after
all steps: Adam's, and that of the one of this library with the fewest CPU seconds.
"""
FIGURES = """Medians over seeds, bands between quartiles; solid lines are this
library's, Adam is black, the goal is dotted.
"""


def write(folder: Path = FOLDER, docs: Path = DOCS) -> str:
    """The page and its pictures.

    Returns:
        The text of the page.
    """
    found = load(folder)
    images = docs / "images" / "races"
    images.mkdir(parents=True, exist_ok=True)
    profile = profiles.picture(costs(found), OURS, COLOURS)
    profile.savefig(images / "profiles.webp", dpi=130)
    for name, record in found.items():
        options = {"pil_kwargs": {"quality": 50, "method": 6}}
        figure(record).savefig(images / f"{name}.webp", dpi=120, **options)
    text = page(found)
    (docs / "races.md").write_text(text)
    return text


def page(found: Found) -> str:
    """Markdown."""
    by_measure = costs(found)
    ours = ", ".join(f"`{name}`" for name in OURS)
    seeds = {len(r["optimizers"]["adam"]["runs"]) for r in found.values()}
    count = " or ".join(map(str, sorted(seeds)))
    pictures = [
        f"### {name}\n\n{caption(record)}\n\n"
        f"[![losses over steps and CPU seconds](images/races/{name}.webp)"
        f"{{ loading=lazy }}](images/races/{name}.webp)\n{{ .strip }}"
        for name, record in found.items()
    ]
    parts = [
        HEAD,
        GROUP.format(ours=ours),
        profiles.of_group(by_measure, OURS),
        losing(found),
        COMPILED,
        "## Performance profiles",
        PROFILE,
        "[![Share of problems over the factor](images/races/profiles.webp)]"
        "(images/races/profiles.webp)\n{ .strip }",
        profiles.summary(by_measure),
        "## Held-out losses",
        HELD,
        held_out(found),
        "## Time and memory",
        COST,
        resources(found),
        "## By problem",
        BY_PROBLEM,
        by_problem(found),
        "## Curves",
        FIGURES,
        *pictures,
        "## What was run",
        "\n".join([f"- {len(found)} problems, {count} seeds", *machines(found)]),
    ]
    return "\n\n".join(part.strip() for part in parts) + "\n"


def caption(record: dict[str, Any]) -> str:
    notes = [f"`{n}` {e['note']}" for n, e in record["optimizers"].items() if e["note"]]
    return "; ".join(
        [
            f"{record['data']}, {record['parameters']} parameters, batch "
            f"{record['batch'] or 'all'}, {record['steps']} steps",
            *notes,
        ]
    )


def best(record: dict[str, Any], names, clock: str) -> tuple[str, float]:
    """(optimizer, what it needs) of the first at the goal; ("", ∞) where none is."""
    reached = {
        name: entry["reached"][clock]["median"]
        for name, entry in record["optimizers"].items()
        if name in names
    }
    name = min(reached, key=reached.__getitem__, default="")
    return (
        (name, reached[name])
        if name and math.isfinite(reached[name])
        else ("", math.inf)
    )


def by_problem(found: Found) -> str:
    rows = []
    for name, record in found.items():
        row = [name]
        everyone = record["optimizers"]
        for clock in ("step", "cpu"):
            first, least = best(record, everyone, clock)
            ours, needs = best(record, OURS, clock)
            number = (lambda v: f"{v:.0f}") if clock == "step" else cell
            row.append(f"`{first}` {number(least)}")
            factor = f"`{ours}` {number(needs)}, × {needs / least:.2g}"
            row.append(factor if ours else "not reached")
        of_ours, _ = best(record, OURS, "cpu")
        for who in ("adam", of_ours):
            held = everyone[who]["last_held"]["median"] if who else math.inf
            row.append(cell(held, 4))
        rows.append(row)
    heads = ("problem", "fewest steps", "of this library", "fewest CPU seconds")
    heads += ("of this library", "held-out, Adam", "held-out, of this library")
    return table(heads, rows)


def losing(found: Found) -> str:
    """Sentences on where this library's optimizers are not near the best."""
    lines = []
    for clock, title in (("step", "steps"), ("cpu", "CPU seconds")):
        far, never = [], []
        for name, record in found.items():
            _, least = best(record, record["optimizers"], clock)
            ours, needs = best(record, OURS, clock)
            if not ours:
                never.append(name)
            elif needs > profiles.NEAR * least:
                far.append(f"{name} ({needs / least:.3g})")
        if clock == "step":
            lines.append(
                f"None of them reaches the goal on {listed(never)}."
                if never
                else "On every problem one of them reaches the goal."
            )
        lines.append(
            f"In {title} they need more than {profiles.NEAR} times the best on "
            f"{listed(far)}."
        )
    return " ".join(lines)


def names_of(found: Found) -> list[str]:
    return [*costs(found)["steps"]]


def held_out(found: Found) -> str:
    rows = []
    records = [record for record in found.values() if record["held_out"]]
    for name in names_of(found):
        if name == "adam":
            continue
        pairs = [
            (record["optimizers"][name], record["optimizers"]["adam"])
            for record in records
            if name in record["optimizers"] and record["optimizers"][name]["runs"]
        ]
        if not pairs:
            continue
        lower = lambda kind: sum(
            mine[kind]["median"] < adam["last_held"]["median"]
            for mine, adam in pairs  # noqa: B023
        )
        reached = sum(math.isfinite(m["held_at_goal"]["median"]) for m, _ in pairs)
        lowest = sum(
            mine["lowest_held"]["median"] < adam["lowest_held"]["median"]
            for mine, adam in pairs
        )
        rows.append(
            (
                f"`{name}`",
                f"{lower('last_held')} of {len(pairs)}",
                f"{lower('held_at_goal')} of {reached}",
                f"{lowest} of {len(pairs)}",
            )
        )
    return table(("optimizer", "after all steps", "at the goal", "lowest"), rows)


def resources(found: Found) -> str:
    rows = []
    for name in names_of(found):
        pairs = [
            (record["optimizers"][name], record["optimizers"]["adam"])
            for record in found.values()
            if name in record["optimizers"] and record["optimizers"][name]["runs"]
        ]
        if not pairs:
            continue
        step = [
            m["cpu_per_step"]["median"] / a["cpu_per_step"]["median"] for m, a in pairs
        ]
        compiled = [m["compile_cpu_seconds"] for m, _ in pairs]
        memory = [
            m["temporary_bytes"] / max(a["temporary_bytes"], 1)
            for m, a in pairs
            if m["temporary_bytes"] is not None
        ]
        ends = sum(at_an_end(mine) for mine, _ in pairs)
        rows.append(
            (
                f"`{name}`",
                float(np.median(step)),
                float(np.median(memory)) if memory else None,
                float(np.median(compiled)),
                f"{ends} of {len(pairs)}",
            )
        )
    heads = ("optimizer", "CPU seconds a step", "temporary memory")
    return table((*heads, "CPU seconds to compile", "at an end of its grid"), rows)


def at_an_end(entry: dict[str, Any]) -> bool:
    """Is the setting that was kept the least or the greatest of several rates?"""
    rates = {tried["setting"][0] for tried in entry["tuning"] if tried["setting"]}
    return len(rates) > 2 and entry["setting"][0] in (min(rates), max(rates))
