"""docs/report_card.md and its picture, from the files of cells alone."""

from __future__ import annotations

import json
from pathlib import Path
from typing import Any

from benchmarks.drop_in import doctor, tables
from benchmarks.drop_in.card import FOLDER, Sheet, load, panels
from benchmarks.drop_in.picture import picture
from benchmarks.drop_in.problems import PROBLEMS
from benchmarks.drop_in.running import (
    MATRIX,
    NATURAL,
    extra_arguments,
    settings,
)
from benchmarks.report import about

DOCS = Path(__file__).parent.parent.parent / "docs"

HEAD = """---
hide: [toc]
---

# Report card

What happens to a person who puts an optimizer of this library in Adam's place and tunes
nothing? Small problems of many kinds; every optimizer **as it comes** but for the
learning rate; against Adam with the best of five rates, on each problem. The
[races](races.md) have tuned optimizers on these problems and larger ones, held-out
losses, and performance profiles.

[![Heat maps of classes by problem, optimizer and rate](images/report_card.png)]\
(images/report_card.png)
{ .strip }

A figure is the training loss of all data after the last step, less what the loss of no
model goes below, over that of tuned Adam: 0.5 is half of Adam's after as many steps.
*Not trained*: the loss is not finite, or fell by less than half of what it fell by
under Adam. *Unfinished*: the steps took longer than the limit that stands below, or too
much memory.
"""
SHARES = """How many cells end within twice tuned Adam's loss, over all problems,
batch sizes, rates and momenta that were run. The others are unfinished, not trained or
worse."""
RUN = """## What was run

Problems, floors and networks are described in `benchmarks/drop_in/problems.py`; nothing
is downloaded. Optax's Adam, Muon, Sophia and schedule-free AdamW, and `soap` and
`kl_shampoo`, have the best of the rates 0.001, 0.003, 0.01, 0.03 and 0.1 on each
problem and batch size, chosen by the figure itself; L-BFGS searches steps up to a
hundred times these, on each batch. One seed, the same start and batches for all. The
tuned ones ran with XLA flags that compile in half the time and slow steps down; the
others, and the table of costs, without.
"""
DOCTOR = """What `natgrad.doctor` says to use, from the start of a problem and its first
batch, and the figure that it has above, with no momentum: how many times the lowest
figure of this library's optimizers as they come, and of all, the tuned ones too.
"""
STRESS = """How many problems diverged: the last loss is not finite, or more than twice
as far above its floor as the first. `benchmarks/drop_in/stress.py` has the trials, here
of {steps} steps on {problems}."""


def sheets(folder: Path) -> dict[str, Sheet]:
    """Problem -> its sheet, of a folder."""
    found = {name: load(folder / f"{name}.json") for name in PROBLEMS}
    return {name: sheet for name, sheet in found.items() if sheet}


def write(folder: Path = FOLDER, docs: Path = DOCS) -> str:
    """The page and its picture.

    Args:
        folder: holds `after`, with a file a problem. May hold stress.json; doctor.json;
            `before`, as `after` with an older version; and `costs`, of which times are
            taken.
        docs: where report_card.md and images/report_card.png go.

    Returns:
        The text of the page.
    """
    found = {side: sheets(folder / side) for side in ("after", "before")}
    sides = {side: some for side, some in found.items() if some}
    records, advice = (
        json.loads(path.read_text()) if path.exists() else []
        for path in (folder / "stress.json", folder / "doctor.json")
    )
    (docs / "images").mkdir(parents=True, exist_ok=True)
    picture(sides).savefig(docs / "images" / "report_card.png", dpi=160)
    timed = sheets(folder / "costs") or next(iter(sides.values()))
    text = page(sides, timed, records, advice)
    (docs / "report_card.md").write_text(text)
    return text


def page(
    sides: dict[str, dict[str, Sheet]],
    timed: dict[str, Sheet],
    records: list[dict[str, Any]],
    advice: list[dict[str, Any]],
) -> str:
    """Markdown."""
    newest = next(iter(sides.values()))
    parts = [HEAD, "## By optimizer", SHARES, tables.shares(newest)]
    parts += ["Cells in each class, over problems and rates.", tables.summary(sides)]
    for side, batch, momentum in panels(sides):
        what = f"momentum {momentum:g}" if momentum else "no momentum"
        where = f"{side}: " * (len(sides) > 1)
        parts.append(f"## {f'{where}batches of {batch}, {what}'.capitalize()}")
        parts.append("Figures at the default rates; **bold**: at most Adam's.")
        parts.append(tables.as_they_come(sides[side], batch, momentum))
    if advice:
        parts += ["## What the doctor advises", DOCTOR, doctor.beside(advice, newest)]
    parts.append("## What a step costs")
    commit = next(iter(timed.values())).about["environment"]["commit"]
    parts.append(
        "CPU seconds of all threads; the first step with trace and compilation, "
        f"batches of the sizes above, commit {commit}."
    )
    parts.append(tables.costs(timed))
    if records:
        problems = ", ".join(dict.fromkeys(record["problem"] for record in records))
        steps = max(record["steps"] for record in records)
        text = STRESS.format(steps=steps, problems=problems)
        parts += ["## Under stress", text, tables.stressed(records)]
    first = next(iter(newest.values())).about
    parts.append(RUN.strip())
    limits = sorted(
        {f"{sheet.about['limit']:.0f}" for sheet in newest.values()}, key=int
    )
    steps = (
        f"- {first['steps']} steps; {' or '.join(limits)} CPU seconds a cell at most"
    )
    commits = sorted({c[:7] for s in newest.values() for c in s.about["commits"]})
    of = f"- cells of commits {', '.join(commits)}; those that later ones change, anew"
    parts.append("\n".join([share(newest), steps, of, *about(first["environment"])]))
    return "\n\n".join(part.strip() for part in parts) + "\n"


def share(found: dict[str, Sheet]) -> str:
    """How many cells of the whole matrix there are, of one seed."""
    run = [
        cell
        for sheet in found.values()
        for cell in sheet.cells.values()
        if cell.optimizer in NATURAL and cell.seed == 1
    ]
    whole = sum(
        len(settings(name, [*MATRIX["rates"]]))
        for name in NATURAL
        for momentum in MATRIX["momentum"]
        if extra_arguments(name, momentum) is not None
    )
    whole *= len(PROBLEMS) * len(MATRIX["batches"])
    return f"- {len(run)} of the {whole} cells of the whole matrix"
