"""Files of the races, what they amount to, and a table for each problem."""

from __future__ import annotations

import json
import math
from pathlib import Path
from typing import Any

import numpy as np

from benchmarks import profiles, racing
from benchmarks.optimizers import OPTIMIZERS, PEERS
from benchmarks.race_problems import RACES
from benchmarks.racing import CLOCKS
from benchmarks.report import RESULTS, about, cell, finite, quartiles, table

FOLDER, DOCS = RESULTS / "races", Path(__file__).parent.parent / "docs"
MEASURES = {
    "steps": lambda entry: entry["reached"]["step"]["median"],
    "seconds": lambda entry: entry["reached"]["wall"]["median"],
    "CPU seconds": lambda entry: entry["reached"]["cpu"]["median"],
    "CPU seconds with compilation": lambda entry: (
        entry["reached"]["cpu"]["median"] + (entry["compile_cpu_seconds"] or math.inf)
    ),
}
Found = dict[str, dict[str, Any]]  # a record by problem
# What a file holds of an optimizer, and what of a record is found anew from the rest.
KEPT = ("setting", "tuning", "note", "compile_cpu_seconds", "temporary_bytes")
DERIVED = ("optimizers", "goal")


def save(path: Path, found: dict[str, Any]) -> None:
    """A JSON file with a line for each run, without its steps, which are the looks."""
    entries = []
    for name, entry in found["optimizers"].items():
        lines = [{k: v for k, v in run.items() if k != "step"} for run in entry["runs"]]
        runs = ",\n  ".join(packed(short(line)) for line in lines)
        rest = {key: value for key, value in entry.items() if key in KEPT}
        head = packed(short(rest))[:-1]
        entries.append(f'{json.dumps(name)}: {head}, "runs": [\n  {runs}\n ]}}')
    rest = {key: value for key, value in found.items() if key not in DERIVED}
    head = json.dumps(finite(rest), indent=1).rstrip("\n}")
    body = ",\n ".join(entries)
    path.parent.mkdir(parents=True, exist_ok=True)
    path.write_text(f'{head},\n "optimizers": {{\n {body}\n }}\n}}\n')


def packed(tree: Any) -> str:
    return json.dumps(tree, separators=(",", ":"))


def short(tree: Any, digits: int = 6) -> Any:
    """Floats with six digits, seconds with four; None where they are not finite."""
    if isinstance(tree, dict):
        return {key: short(v, 4 if key in CLOCKS else 6) for key, v in tree.items()}
    if isinstance(tree, list | tuple):
        return [short(value, digits) for value in tree]
    if isinstance(tree, float):
        return float(f"{tree:.{digits}g}") if math.isfinite(tree) else None
    return tree


def load(folder: Path) -> Found:
    """The records of a folder, with what their curves amount to."""
    found = {}
    for path in sorted(folder.glob("*.json")):
        record = json.loads(path.read_text())
        for entry in record["optimizers"].values():
            for run in entry["runs"]:
                run["step"] = [0, *racing.looks(record["steps"])][: len(run["cpu"])]
                for kind in ("loss", "held"):
                    run[kind] = [math.nan if v is None else v for v in run[kind]]
        found[path.stem] = summarised(record)
    return found


def summarised(record: dict[str, Any]) -> dict[str, Any]:
    """The record with its goal, and what `racing.summarise` adds."""
    return record | {"goal": racing.summarise(record["optimizers"])}


def costs(found: Found) -> dict[str, profiles.Costs]:
    """Measure -> optimizer -> what it needs by problem; NaN where it did not run."""
    names = [
        name
        for name in (*OPTIMIZERS, *PEERS)
        if any(name in record["optimizers"] for record in found.values())
    ]
    return {
        title: {
            name: np.array(
                [
                    measure(record["optimizers"][name])
                    if name in record["optimizers"]
                    else math.nan
                    for record in found.values()
                ]
            )
            for name in names
        }
        for title, measure in MEASURES.items()
    }


def section(name: str, record: dict[str, Any]) -> str:
    """A title, what was run, and a table of a problem."""
    record = summarised(record)
    adam = record["optimizers"]["adam"]
    heads = ("optimizer", "setting", "training loss", "held-out", "held-out at goal")
    heads += ("steps to goal", "s", "CPU s", "CPU s / Adam's", "CPU ms a step")
    heads += ("compile CPU s", "temporary MB")
    rows = []
    for optimizer, entry in record["optimizers"].items():
        if entry["note"]:
            rows.append((optimizer, entry["note"], *[""] * 10))
            continue
        memory = entry["temporary_bytes"]
        rows.append(
            (
                optimizer,
                ", ".join(cell(value) for value in entry["setting"]) or "–",
                *(
                    quartiles(entry[k], 4)
                    for k in ("last", "last_held", "held_at_goal")
                ),
                *(quartiles(entry["reached"][clock]) for clock in CLOCKS),
                entry["reached"]["cpu"]["median"] / adam["reached"]["cpu"]["median"],
                1e3 * entry["cpu_per_step"]["median"],
                entry["compile_cpu_seconds"],
                None if memory is None else memory / 1e6,
            )
        )
    held = record["held_out"]
    text = (
        f"{record['data']}; {record['parameters']} parameters; {record['examples']} "
        f"examples and {held or 'none'} held out; batch {record['batch'] or 'all'}; "
        f"{record['steps']} steps, {len(adam['runs'])} seeds; goal "
        f"{cell(record['goal'], 5)}. Medians (quartiles)."
    )
    lines = [f"## {name}", "", text, "", table(heads, rows), ""]
    return "\n".join([*lines, *about(record["environment"])])


def write_tables(folder: Path) -> None:
    """Tables of all problems of a folder, in Markdown, beside it."""
    tables = [section(name, record) for name, record in load(folder).items()]
    folder.with_suffix(".md").write_text("\n\n".join(["# Races", *tables]) + "\n")


def machines(found: Found) -> list[str]:
    """Where the problems were run; environments differ in load and cores alone."""
    environments = [record["environment"] for record in found.values()]
    first = max(environments, key=lambda environment: environment["cores"])
    loads = [environment["load_average"][0] for environment in environments]
    commits = {str(environment["commit"])[:7] for environment in environments}
    lines = [
        line for line in about(first) if "load" not in line and "commit" not in line
    ]
    adam = {name: record["optimizers"]["adam"] for name, record in found.items()}
    cores = {name: record["environment"]["cores"] for name, record in found.items()}
    lines += fewer("settings", {n: len(entry["tuning"]) for n, entry in adam.items()})
    lines += fewer("seeds", {n: len(entry["runs"]) for n, entry in adam.items()})
    lines += fewer("cores", cores)
    if missing := [name for name in RACES if name not in found]:
        lines.append(f"- not raced yet: {listed(missing)}")
    return [
        *lines,
        f"- load average when a problem began {min(loads):.1f} to {max(loads):.1f}",
        f"- commits {', '.join(sorted(commits))}",
    ]


def fewer(what: str, counts: dict[str, int]) -> list[str]:
    """A line for each number that is less than the greatest."""
    return [
        f"- {what}: {count} on {listed([n for n in counts if counts[n] == count])}"
        for count in sorted({*counts.values()} - {max(counts.values())})
    ]


def listed(names: list[str]) -> str:
    return ", ".join(names) or "no problem"
