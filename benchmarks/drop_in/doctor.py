r"""`python -m benchmarks.drop_in.doctor`: what `natgrad.doctor` advises, by the card.

    python -m benchmarks.drop_in.doctor --problems diabetes,gru --batches 128
    python -m benchmarks.drop_in.doctor --output benchmarks/results/drop_in

The doctor sees the start of a problem and its first batch, and nothing is trained: the
losses are those of the card, after its last step, with no momentum. The optimizers of
this library are as they come; the tuned ones have the best of their rates. With
`--output` what was advised goes into doctor.json there, of which
`python -m benchmarks.drop_in --write` makes a table of the card's page.
"""

from __future__ import annotations

import argparse
import json
import math
from collections.abc import Iterable
from pathlib import Path
from typing import Any

import jax

import natgrad as ng
from benchmarks.drop_in.card import FOLDER, Sheet, cells_of, last, load
from benchmarks.drop_in.problems import PROBLEMS
from benchmarks.drop_in.running import MATRIX, NATURAL, TUNED, default_rate
from benchmarks.report import table

NEAR = 1.2  # times the best figure that is still good advice
MODEL = "(model=model)"  # the arguments of an optimizer as it comes


def advised(name: str, batch: int) -> dict[str, Any]:
    """What the doctor says of the start of a problem and its first batch."""
    problem = PROBLEMS[name]().problem._replace(batch=batch)
    inputs, targets = problem.examples(next(problem.picks(1)))
    found = ng.doctor(problem.model, problem.initial(1), inputs, targets)
    code = found.advice.code.removeprefix("ng.")
    return {"problem": name, "batch": batch, "code": code}


def figures(sheet: Sheet, batch: int) -> tuple[dict[str, float], dict[str, float]]:
    """Optimizer -> figure of the card: this library's as they come, the tuned ones."""
    ours = {
        name: sheet.ratio(cell)
        for name in NATURAL
        for cell in cells_of(sheet, name, batch, 0.0)
        if cell.rate == default_rate(name) and math.isfinite(last(cell))
    }
    best = {name: sheet.best(name, batch, 1) for name in TUNED}
    return ours, {name: sheet.ratio(cell) for name, cell in best.items() if cell}


def beside(records: Iterable[dict[str, Any]], found: dict[str, Sheet]) -> str:
    """A table of the advice, and how often it was good, in Markdown.

    Args:
        records: of `advised`.
        found: problem -> its sheet. Problems with no finished cell at the batch size
            are left out.
    """
    rows, near = [], [0, 0]
    for record in records:
        name, batch, code = record["problem"], record["batch"], record["code"]
        ours, tuned = figures(found[name], batch) if name in found else ({}, {})
        if not ours:
            continue
        # Settings that the card has not are not measured.
        figure = ours.get(code.removesuffix(MODEL), math.nan)
        row = [name, batch, f"`{code.removesuffix(MODEL)}`", two(figure)]
        for which, rivals in enumerate((ours, ours | tuned)):
            best = min(rivals, key=rivals.__getitem__)
            times = figure / max(rivals[best], 1e-12)
            near[which] += times <= NEAR
            row += [f"`{best}`", two(times)]
        rows.append(row)
    heads = ("problem", "batch", "the doctor says", "figure")
    heads += ("best of this library", "times it", "best of all", "times it")
    return (
        f"{table(heads, rows)}\n\nWithin {NEAR} times the best of this library: "
        f"{near[0]} of {len(rows)}. Of all, the tuned ones too: {near[1]}."
    )


def two(value: float) -> str:
    return f"{value:.2g}" if math.isfinite(value) else "–"


def main(argv: list[str] | None = None) -> None:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    some = lambda of: lambda text: [of(one) for one in text.split(",") if one]
    parser.add_argument("--problems", type=some(str), default=[*PROBLEMS])
    parser.add_argument("--batches", type=some(int), default=MATRIX["batches"])
    parser.add_argument("--output", type=Path, help="a folder")
    options = parser.parse_args(argv)
    records = []
    for name in options.problems:
        if name not in PROBLEMS:
            parser.error(f"{name!r} is none of {', '.join(PROBLEMS)}.")
        for batch in options.batches:
            records.append(advised(name, batch))
            print(f"{name} {batch}   {records[-1]['code']}", flush=True)
    found = {name: load(FOLDER / "after" / f"{name}.json") for name in options.problems}
    print(beside(records, {name: sheet for name, sheet in found.items() if sheet}))
    if options.output:
        options.output.mkdir(parents=True, exist_ok=True)
        lines = ",\n ".join(json.dumps(record) for record in records)
        (options.output / "doctor.json").write_text(f"[\n {lines}\n]\n")


if __name__ == "__main__":
    with jax.numpy_rank_promotion("allow"):
        main()
