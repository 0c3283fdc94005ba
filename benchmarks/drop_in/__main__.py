r"""`python -m benchmarks.drop_in`: the report card, every optimizer as it comes.

    python -m benchmarks.drop_in --problems digits_mlp,digits_cnn --optimizers kfac \
        --rates 0.1,0.3 --momentum 0,0.9 --set trust_region=1e-2
    python -m benchmarks.drop_in --quick
    python -m benchmarks.drop_in --stress --optimizers kfac
    python -m benchmarks.drop_in --output benchmarks/results/drop_in/after
    python -m benchmarks.drop_in --write      # docs/report_card.md, running nothing

Each line is an optimizer on a problem: by rate, the last loss of all data over that of
Adam, which has the best of five rates, as have Muon and, where they are named, the
other tuned ones of `benchmarks.drop_in.running`; `benchmarks.drop_in.problems` has the
floors. It ends with the cells in each class, by optimizer, and in words.
Adam's runs are read from `--output`, or from benchmarks/results/drop_in/after, where
they are there with as many steps. Losses are kept in `--output`, a file a problem; with
none nothing is written.
"""

from __future__ import annotations

import argparse
import json
import time
from pathlib import Path

import jax

from benchmarks.drop_in import card, page, running, stress, tables
from benchmarks.drop_in.problems import PROBLEMS, Small
from benchmarks.drop_in.running import ALWAYS, MATRIX, NATURAL, TUNED, Cell, Limits
from benchmarks.report import finite
from benchmarks.timing import environment, positive

QUICK = {
    "problems": ["digits_mlp", "digits_cnn", "diabetes", "logistic"],
    "optimizers": ["natural_gradient", "kfac", "kfac_adaptive"],
    "batches": [64],
    "steps": 100,
    "limit": 15.0,
}


def parsed(argv: list[str] | None) -> argparse.Namespace:
    parser = argparse.ArgumentParser(
        description=__doc__, formatter_class=argparse.RawDescriptionHelpFormatter
    )
    some = lambda of: lambda text: [of(one) for one in text.split(",") if one]
    rate = lambda text: text if text == "default" else float(text)
    parser.add_argument("--problems", type=some(str), default=[*PROBLEMS])
    parser.add_argument("--optimizers", type=some(str), default=[*NATURAL])
    parser.add_argument("--rates", type=some(rate), default=MATRIX["rates"])
    parser.add_argument("--batches", type=some(int), default=MATRIX["batches"])
    parser.add_argument("--momentum", type=some(float), default=MATRIX["momentum"])
    parser.add_argument("--steps", type=positive, default=200)
    parser.add_argument("--seeds", type=positive, default=1)
    parser.add_argument(
        "--limit", type=float, default=60.0, help="CPU seconds of a cell"
    )
    parser.add_argument("--output", type=Path, help="a folder")
    number = lambda text: None if text == "None" else float(text)
    pair = lambda text: (text.split("=")[0], number(text.split("=")[1]))
    parser.add_argument(
        "--set",
        type=some(pair),
        default=[],
        help="not as it comes: trust_region=1e-2,damping=None; without --output",
    )
    parser.add_argument(
        "--keep", action="store_true", help="run only what --output lacks"
    )
    parser.add_argument(
        "--stress", action="store_true", help="trials that must not diverge instead"
    )
    parser.add_argument(
        "--write", action="store_true", help="run nothing: the page of what was run"
    )
    parser.add_argument("--quick", action="store_true", help="a part: five minutes")
    given, _ = parser.parse_known_args(argv)
    if given.quick:
        parser.set_defaults(**QUICK)
    options = parser.parse_args(argv)
    if options.set and options.output:
        parser.error("--output is for optimizers as they come, without --set.")
    for names, known in (
        (options.problems, PROBLEMS),
        (options.optimizers, NATURAL | TUNED),
    ):
        for name in names:
            if name not in known:
                parser.error(f"{name!r} is none of {', '.join(known)}.")
    return options


def main(argv: list[str] | None = None) -> None:
    options = parsed(argv)
    started = time.perf_counter()
    if options.write:
        page.write()
    found = {}
    for name in [] if options.write else options.problems:
        if options.stress:
            stressed(name, options)
        else:
            found[name] = of_problem(name, options)
    if found:
        print(verdict(found))
    print(f"{time.perf_counter() - started:.0f} s")


def stressed(name: str, options: argparse.Namespace) -> None:
    """The trials of a problem, into stress.json of `--output`."""
    found, limits = PROBLEMS[name](), Limits(options.steps, options.limit)
    path = options.output and options.output / "stress.json"
    records = json.loads(path.read_text()) if path and path.exists() else []
    for optimizer in options.optimizers:
        again = {"problem": name, "optimizer": optimizer}
        records = [r for r in records if not again.items() <= r.items()]
        for record in stress.trials(optimizer, found, limits):
            said = "DIVERGED" if record["diverged"] else record["note"] or "held"
            span = f"{record['start']:.3g} -> {record['loss']:.3g}"
            print(f"{name} {optimizer} {record['trial']}: {said}  {span}", flush=True)
            records.append(again | record)
        if path:
            path.parent.mkdir(parents=True, exist_ok=True)
            rows = ",\n ".join(json.dumps(finite(record)) for record in records)
            path.write_text(f"[\n {rows}\n]\n")


def of_problem(name: str, options: argparse.Namespace) -> card.Sheet:
    """Its cells, printed a program at a time, into `--output`."""
    found = PROBLEMS[name]()
    path = options.output and options.output / f"{name}.json"
    sheet = sheet_of(name, found, path, options)
    limits = Limits(options.steps, options.limit)
    for batch in options.batches:
        problem = found.problem._replace(batch=batch)
        tuned = [(n, 0.0) for n in TUNED if n in (*ALWAYS, *options.optimizers)]
        natural = [n for n in options.optimizers if n in NATURAL]
        wanted = tuned + [(n, m) for n in natural for m in options.momentum]
        for optimizer, momentum in wanted:
            known = any(c[:3] == (optimizer, batch, momentum) for c in sheet.cells)
            if known and (options.keep or optimizer in TUNED):
                continue
            where = (optimizer, problem, momentum, options.rates, options.seeds)
            cells = [*running.cells(*where, limits, dict(options.set))]
            for cell in cells:
                sheet.add(cell)
            if cells:
                print(line(name, sheet, cells), flush=True)
            if cells and path:
                sheet.save(path)
    return sheet


def verdict(found: dict[str, card.Sheet]) -> str:
    """The table by optimizer, and in words how many cells came near tuned Adam."""
    classes = [
        sheet.class_of(cell)
        for sheet in found.values()
        for cell in sheet.cells.values()
        if cell.optimizer in NATURAL
    ]
    near = sum(one in card.CLASSES[:2] for one in classes)
    untrained, unfinished = (classes.count(one) for one in card.CLASSES[3:])
    by_optimizer = tables.summary({"": found})
    return (
        "\nCells in each class by their last loss, over that of tuned Adam (at most 1, "
        f"at most 2, above):\n\n{by_optimizer}\n\n{near} of {len(classes)} cells end "
        "within twice the loss of Adam with the best of five rates; "
        f"{untrained} did not train, {unfinished} did not finish."
    )


def sheet_of(name: str, found: Small, path: Path | None, options) -> card.Sheet:
    """What is known from before: all cells of the file, or Adam's of the last card."""
    here = environment()
    about = {
        "data": found.problem.about,
        "parameters": sum(
            leaf.size for leaf in jax.tree.leaves(found.problem.initial(1))
        ),
        "steps": options.steps,
        "limit": options.limit,
        "environment": here,
        "commits": [here["commit"]],
    }
    sheet = card.Sheet(found.floor, about)
    before = card.load(path) if path else None
    tuned = card.load(card.FOLDER / "after" / f"{name}.json")
    for source, wanted in ((tuned, [*TUNED]), (before, [*TUNED, *NATURAL])):
        if source and source.about["steps"] == options.steps:
            for cell in source.cells.values():
                if cell.optimizer in wanted:
                    sheet.add(cell)
    if before:
        about["limit"] = max(options.limit, before.about["limit"])
        commits = {*about["commits"], *before.about["commits"]}
        about["commits"] = sorted(commit for commit in commits if commit)
    return sheet


def line(name: str, sheet: card.Sheet, cells: list[Cell]) -> str:
    """Ratios by rate, then what it cost."""
    first = cells[0]
    ratios = "  ".join(
        f"{cell.rate or 'as it comes'}: {cell.note or format(sheet.ratio(cell), '.3g')}"
        for cell in cells
    )
    momentum = f" momentum {first.momentum}" if first.momentum else ""
    cost = ""
    if first.first and first.step_seconds is not None:
        cost = (
            f"   [first step {first.first[1]:.1f}, step {first.step_seconds:.3f} CPU s]"
        )
    return f"{name} {first.optimizer} {first.batch}{momentum}   {ratios}{cost}"


if __name__ == "__main__":
    with jax.numpy_rank_promotion("allow"):
        main()
